"""Searches of lore are reranked where all passages can be; what that needs is kept with them."""

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
from embedding_change_calls import FAST, filling, finish, start, until

from gaming.knowledge_base.v1 import lore_pb2
from knowledge_base.adapters.late_interaction import LateInteraction
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.ports_reranker import Reranker, Rerankers
from knowledge_base.testing import (
    HashEmbedder,
    HashReranker,
    IsometricEmbedder,
    RunningKnowledgeBase,
    empty_database,
    serve_knowledge_base,
)
from localsuite.postgres import EmbeddedPostgres

TIMEOUT_SECONDS = 60
LORE = Path(__file__).parents[2] / "services/knowledge_base/lore"
DOCUMENT = b"""# Tides

## Walls

The wardens mend the sea walls in spring.

## Bells

The bell is rung when the tide turns.

## Boats

Boats are tarred before the winter, and the bell boat first of all.
"""


@pytest.fixture(scope="module")
def reranking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("reranking")
    with EmbeddedPostgres(directory / "postgres", durable=False) as server:
        server.create_database("reranking")
        yield server.url("reranking")


@pytest.fixture
async def database(reranking_server: str) -> str:
    await empty_database(reranking_server)
    return reranking_server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxEmbedder]:
    embedder = OnnxEmbedder.from_package(tmp_path_factory.mktemp("models"))
    yield embedder
    embedder.close()


@pytest.fixture(params=["late_interaction", "hash"])
def reranker(request: pytest.FixtureRequest, model: OnnxEmbedder) -> Reranker:
    return HashReranker() if request.param == "hash" else LateInteraction(model)


async def ingest(
    running: RunningKnowledgeBase, documents: Iterable[tuple[str, bytes]]
) -> lore_pb2.IngestSummary:
    steps = [
        lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore")),
        *(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(path=path, content=content)
            )
            for path, content in documents
        ),
    ]
    call = running.stub.IngestDocuments(iter(steps), timeout=TIMEOUT_SECONDS)
    *_, last = [response async for response in call]
    return last.summary


async def search(
    running: RunningKnowledgeBase, query: str, **options: Any
) -> list[lore_pb2.SearchResult]:
    request = lore_pb2.SearchRequest(query=query, **options)
    return list((await running.stub.Search(request, timeout=TIMEOUT_SECONDS)).results)


async def count(database: str, table: str) -> int:
    connection = await asyncpg.connect(database)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM knowledge_base.{table}"))  # noqa: S608  # a constant of this file
    finally:
        await connection.close()


# What every reranker keeps to ---------------------------------------------------------------------


async def test_a_passage_with_the_querys_words_scores_above_one_without(reranker: Reranker) -> None:
    prepared = await reranker.prepare(["The bell is rung at dusk.", "She bought barley.", ""])
    near, far, empty = await reranker.score("When is the bell rung?", prepared.codes)
    assert 0 <= empty <= far < near <= 1


async def test_what_is_kept_depends_on_the_text_alone(reranker: Reranker) -> None:
    texts = ["The bell is rung at dusk.", "Barley and salt. " * 20]
    together = await reranker.prepare(texts)
    apart = [(await reranker.prepare([text])).codes[0] for text in texts]
    for one, other in zip(together.codes, apart, strict=True):
        assert await reranker.score("bell and salt", [one]) == pytest.approx(
            await reranker.score("bell and salt", [other]), abs=0.01
        )


async def test_nothing_to_prepare_or_to_score_is_no_error(reranker: Reranker) -> None:
    assert (await reranker.prepare([])).codes == ()
    assert await reranker.score("bell", []) == []


async def test_the_vectors_that_come_along_are_the_embedders(model: OnnxEmbedder) -> None:
    texts = ["The bell is rung at dusk.", "Barley and salt. " * 20]
    prepared = await LateInteraction(model).prepare(texts)
    assert prepared.vectors is not None
    assert np.allclose(prepared.vectors, await model.embed_documents(texts), atol=1e-5)


async def test_what_answers_one_of_two_questions_scores_nearly_as_if_it_were_asked_alone(
    model: OnnxEmbedder,
) -> None:
    reranker = LateInteraction(model)
    tarred, rung = "Boats are tarred before the winter.", "The bell is rung when the tide turns."
    codes = (await reranker.prepare([tarred, rung, "The wardens mend the sea walls."])).codes
    boats, bell = "When are the boats tarred", "why is the bell rung?"
    of_boats, of_bell = await reranker.score(boats, codes), await reranker.score(bell, codes)
    both = await reranker.score(f"{boats}, and {bell}", codes)
    assert both[0] > 0.75 * of_boats[0]
    assert both[1] > 0.75 * of_bell[1]
    assert both[2] < 0.5 * min(both[:2])


async def test_forgotten_queries_are_read_again(model: OnnxEmbedder) -> None:
    reranker = LateInteraction(model)
    codes = (await reranker.prepare(["The bell is rung at dusk."])).codes
    before = await reranker.score("bell", codes)
    reranker.forget_texts()
    assert await reranker.score("bell", codes) == before


# In the service -----------------------------------------------------------------------------------


@pytest.fixture
async def running(database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(database, rerankers=Rerankers(lore=HashReranker())) as running:
        yield running


async def test_the_rerankers_score_is_part_of_the_order(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("tides.md", DOCUMENT)])
    found = await search(running, "when is the bell rung?")
    assert len(found) == 3
    assert "rung when the tide" in found[0].text
    assert found[1].reranker_score < 1
    assert found[0].reranker_score == pytest.approx(1.0)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    by_words = await search(
        running, "when is the bell rung?", mode=lore_pb2.SearchMode.SEARCH_MODE_KEYWORD
    )
    assert not any(each.HasField("reranker_score") for each in by_words)


async def test_limit_and_neighbours_hold_after_reranking(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("tides.md", DOCUMENT)])
    (found,) = await search(running, "when is the bell rung?", limit=1, neighbours=1)
    assert (len(found.text_before), len(found.text_after)) == (1, 1)


async def test_codes_of_passages_met_lately_are_not_read_again(
    database: str, running: RunningKnowledgeBase
) -> None:
    await ingest(running, [("tides.md", DOCUMENT)])
    before = await search(running, "when is the bell rung?")
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("DELETE FROM knowledge_base.passage_codes")
    finally:
        await connection.close()
    assert await search(running, "when is the bell rung? ") == before


async def test_an_edit_prepares_one_passage_and_keeps_the_codes_of_the_others(
    database: str,
) -> None:
    reranker, embedder = HashReranker(), HashEmbedder()
    async with serve_knowledge_base(
        database, embedder=embedder, rerankers=Rerankers(lore=reranker)
    ) as running:
        assert (await ingest(running, [("tides.md", DOCUMENT)])).embedded_chunks == 3
        assert (await ingest(running, [("tides.md", DOCUMENT)])).embedded_chunks == 0
        edited = DOCUMENT.replace(b"in spring", b"in early spring")
        assert (await ingest(running, [("tides.md", edited)])).embedded_chunks == 1
        assert len(reranker.prepared) == len(embedder.embedded) == 4
        found = await search(running, "who mends the sea walls in early spring?")
        (unchanged, *_) = await search(running, "when is the bell rung?")
    assert "early spring" in found[0].text
    assert unchanged.reranker_score == pytest.approx(1.0)
    assert all(each.HasField("reranker_score") for each in found)
    assert await count(database, "passage_codes") == await count(database, "document_chunks") == 3


async def test_passages_without_codes_are_found_as_before_until_they_are_ingested_again(
    database: str,
) -> None:
    async with serve_knowledge_base(database) as running:
        await ingest(running, [("tides.md", DOCUMENT)])
        before = await search(running, "when is the bell rung?")
    async with serve_knowledge_base(database, rerankers=Rerankers(lore=HashReranker())) as running:
        assert await search(running, "when is the bell rung?") == before
        assert (await ingest(running, [("tides.md", DOCUMENT)])).embedded_chunks == 3
        after = await search(running, "when is the bell rung?")
    assert all(each.HasField("reranker_score") for each in after)


async def test_an_online_change_of_the_embedding_model_leaves_the_codes_valid(
    database: str,
) -> None:
    first, reranker = HashEmbedder(), HashReranker()
    second = IsometricEmbedder(first, 512)
    async with serve_knowledge_base(
        database, embedders=(first, second), rerankers=Rerankers(lore=reranker), **FAST
    ) as running:
        await ingest(running, [("tides.md", DOCUMENT)])
        before = await search(running, "when is the bell rung?")
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
            await finish(running)
        after = await search(running, "when is the bell rung? ")
        prepared = len(reranker.prepared)
        assert (await ingest(running, [("tides.md", DOCUMENT)])).unchanged_documents == 1
    assert [each.text for each in after] == [each.text for each in before]
    assert [each.reranker_score for each in after] == [each.reranker_score for each in before]
    assert len(reranker.prepared) == prepared


async def test_the_local_model_tells_what_is_said_in_passing(
    database: str, model: OnnxEmbedder
) -> None:
    documents = [(path.name, path.read_bytes()) for path in sorted(LORE.glob("0[39]*.md"))]
    async with serve_knowledge_base(
        database, embedder=model, rerankers=Rerankers(lore=LateInteraction(model))
    ) as running:
        await ingest(running, documents[:1])
        found = await search(running, "What do the bookkeepers want back?", limit=5)
    assert len(found) == 5
    assert all(0 < each.reranker_score <= 1 for each in found)
