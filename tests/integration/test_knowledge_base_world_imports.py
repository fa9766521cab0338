"""Imports that are broken, or of another embedding model, over a real PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import asyncpg
import grpc.aio
import numpy as np
import pytest
from world_job_calls import (
    TIMEOUT_SECONDS,
    export,
    import_world,
    make_world,
    new_id,
    recalled,
    ties_of,
    world_names,
)

from gaming.knowledge_base.v1 import (
    concepts_pb2,
    world_records_pb2,
)
from knowledge_base.ports_reranker import Rerankers
from knowledge_base.testing import (
    HashEmbedder,
    HashReranker,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(
        knowledge_base_database, rerankers=Rerankers(memory=HashReranker())
    ) as running:
        yield running


def broken(
    records: list[world_records_pb2.WorldRecord], how: str
) -> list[world_records_pb2.WorldRecord]:
    copies = []
    for record in records:
        copy = world_records_pb2.WorldRecord()
        copy.CopyFrom(record)
        copies.append(copy)
    events = next(each for each in copies if each.rows.table == "story_events")
    row = events.rows.rows[0]
    columns = json.loads(row.columns_json)
    changed: dict[str, Callable[[], object]] = {
        "cut": copies.pop,
        "a row less": lambda: events.rows.rows.pop(0),
        "a text changed": lambda: columns.update(text="forged"),
        "another world's row": lambda: columns.update(world_id=new_id()),
        "an unknown column": lambda: columns.update(owner="me"),
        "an unknown table": lambda: setattr(events.rows, "table", "pg_authid"),
        "a table that is not exported": lambda: setattr(events.rows, "table", "requests"),
        "a newer format": lambda: setattr(copies[0].header, "format_version", 2),
        "a vector cut": lambda: row.vectors.update(embedding=row.vectors["embedding"][:-1]),
    }
    changed.get(how, list)()
    row.columns_json = "{" if how == "not JSON" else json.dumps(columns)
    return copies


OFTEN_TRIED = ("cut", "a text changed", "another world's row")
SELDOM_TRIED = (
    "a row less",
    "an unknown column",
    "an unknown table",
    "a table that is not exported",
    "not JSON",
    "a vector cut",
    "a newer format",
)


@pytest.mark.parametrize(
    "how",
    [*OFTEN_TRIED, *(pytest.param(how, marks=pytest.mark.endurance) for how in SELDOM_TRIED)],
)
async def test_an_import_that_is_not_whole_leaves_nothing(
    running: RunningKnowledgeBase, knowledge_base_database: str, how: str
) -> None:
    source = await make_world(running, "Mauk")
    records = [step.record for step in await export(running, source)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await import_world(running, broken(records, how), name="Bad")
    told = failure_of(caught.value)
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT, told
    assert told.reason == "INVALID_WORLD_RECORDS"
    assert "Bad" not in await world_names(running)
    owner = await asyncpg.connect(knowledge_base_database)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await owner.fetchval("SELECT count(*) FROM knowledge_base.worlds") != 2:  # noqa: ASYNC110  # rows, not an event
                await asyncio.sleep(0.02)
        assert await owner.fetchval("SELECT count(*) FROM knowledge_base.story_events") == 5
    finally:
        await owner.close()
    # The same name can be used for a whole export afterwards.
    assert (await import_world(running, records, name="Bad")).world.event_count == 5


class OtherModel(HashEmbedder):
    """As a hash embedder, but of another name, with other vectors."""

    model = "hash-for-tests-turned"

    def _vector(self, text: str) -> np.ndarray:
        return np.roll(super()._vector(text), 7)


async def test_an_import_embeds_texts_anew_when_its_vectors_are_of_another_model(
    running: RunningKnowledgeBase, postgres_database: str
) -> None:
    source = await make_world(running, "Mauk")
    expected = await recalled(running, source)
    records = [step.record for step in await export(running, source)]
    async with serve_knowledge_base(
        postgres_database,
        embedder=OtherModel(),
        rerankers=Rerankers(memory=HashReranker()),
    ) as other:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await import_world(other, records)
        told = failure_of(caught.value)
        assert told.metadata["first_missing_concept"] == "Odrelle"
        await other.stub.PutConcept(
            concepts_pb2.PutConceptRequest(
                name="Odrelle", kind="place", description="d", request_id=new_id()
            ),
            timeout=TIMEOUT_SECONDS,
        )
        imported = await import_world(other, records)
        assert imported.embedded_texts == 5
        # The other model's vectors are an image of the first one's, so the answers are the same.
        answers = await recalled(other, imported.world.world_id)
        assert [each[0] for each in answers] == [each[0] for each in expected]
        assert np.allclose([each[1:] for each in answers], [each[1:] for each in expected])
        assert ("Mira", "Odrelle", "knows") in await ties_of(other, imported.world.world_id)


# --- jobs -----------------------------------------------------------------------------------------
