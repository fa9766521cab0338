"""The embedding model changes while the service answers, and nobody notices."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import embedding_models_pb2 as change_pb
from gaming.knowledge_base.v1 import lore_pb2, story_pb2, worlds_pb2
from knowledge_base.ports import Embedder
from knowledge_base.testing import (
    HashEmbedder,
    IsometricEmbedder,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
    service_url,
)

TIMEOUT_SECONDS = 60
FAST: dict[str, Any] = {"KNOWLEDGE_BASE_FILLED_ROWS_PER_SECOND": "100000"}
EVENTS = 150
SCORE_TOLERANCE = 1e-5
PLACES = ("mill", "weir", "tollgate", "chapel", "ferry", "orchard", "quarry", "inn")
DEEDS = ("lit a lamp", "hid a letter", "paid the toll", "rang the bell", "mended a net")
QUERIES = ("Who lit a lamp at the mill?", "letter hidden in the orchard", "bell of the chapel")
WORKER = Path(__file__).parent / "embedding_fill_worker.py"


def new_id() -> str:
    return str(uuid.uuid4())


def deed(number: int) -> str:
    return f"Warden {number} {DEEDS[number % 5]} at the {PLACES[number % 8]}, night {number}."


def lore_page(place: str, number: int, *, rules: int = 5) -> str:
    return f"# The {place}\n\n" + "\n\n".join(
        f"## Rule {rule}\n\nWhoever {DEEDS[rule]} at the {place} owes {number + rule}."
        for rule in range(rules)
    )


async def fill_memory(running: RunningKnowledgeBase) -> str:
    """Lore and a world with events; returns the world's id."""
    requests = [lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore"))]
    for number, place in enumerate(PLACES):
        requests.append(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(
                    path=f"{place}.md", content=lore_page(place, number).encode()
                )
            )
        )
    async for _ in running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS):
        pass
    world = await running.stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name=f"world {new_id()}", request_id=new_id())
    )
    for start in range(0, EVENTS, 50):
        await record(running, world.world.world_id, *(deed(n) for n in range(start, start + 50)))
    return world.world.world_id


async def record(running: RunningKnowledgeBase, world_id: str, *texts: str) -> None:
    await running.stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world_id,
            request_id=new_id(),
            events=[
                story_pb2.StoryEvent(text=text, occur_time=Timestamp(seconds=1_700_000_000))
                for text in texts
            ],
        ),
        timeout=TIMEOUT_SECONDS,
    )


@dataclass(frozen=True)
class Answer:
    """What was found for a query: scores, best first, and texts.

    Two answers are equal when all scores are, as far as float32 tells, and so are the texts, but
    for those with the lowest score, among which chance may choose.
    """

    scores: tuple[float, ...]
    texts: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Answer)
            and self.scores == pytest.approx(other.scores, abs=SCORE_TOLERANCE)
            and self._above_the_last() == other._above_the_last()
        )

    __hash__ = None  # type: ignore[assignment]  # equal within a tolerance

    def _above_the_last(self) -> set[str]:
        last = min(self.scores, default=0.0) + 2 * SCORE_TOLERANCE
        return {text for score, text in zip(self.scores, self.texts, strict=True) if score > last}


async def answers(running: RunningKnowledgeBase, world_id: str, query: str) -> list[Answer]:
    """What is found in the lore and recalled of the world."""
    found, recalled = await asyncio.gather(
        running.stub.Search(lore_pb2.SearchRequest(query=query, limit=10), timeout=TIMEOUT_SECONDS),
        running.stub.Recall(
            story_pb2.RecallRequest(world_id=world_id, query=query, limit=10),
            timeout=TIMEOUT_SECONDS,
        ),
    )
    return [
        Answer(tuple(r.score for r in found.results), tuple(r.text for r in found.results)),
        Answer(
            tuple(r.score for r in recalled.events), tuple(r.event.text for r in recalled.events)
        ),
    ]


@asynccontextmanager
async def filling(running: RunningKnowledgeBase) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(running.change.fill())
        yield
        task.cancel()


async def status(running: RunningKnowledgeBase) -> change_pb.GetEmbeddingChangeResponse:
    answer: change_pb.GetEmbeddingChangeResponse = await running.stub.GetEmbeddingChange(
        change_pb.GetEmbeddingChangeRequest(), timeout=TIMEOUT_SECONDS
    )
    return answer


async def until(
    running: RunningKnowledgeBase,
    condition: Callable[[change_pb.EmbeddingModel], bool],
) -> change_pb.EmbeddingModel:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            change = (await status(running)).change
            if condition(change):
                return change
            await asyncio.sleep(0.02)


async def start(running: RunningKnowledgeBase, model: str, request_id: str = "") -> Any:
    return await running.stub.StartEmbeddingChange(
        change_pb.StartEmbeddingChangeRequest(model=model, request_id=request_id or new_id()),
        timeout=TIMEOUT_SECONDS,
    )


async def finish(running: RunningKnowledgeBase, request_id: str = "") -> Any:
    return await running.stub.FinishEmbeddingChange(
        change_pb.FinishEmbeddingChangeRequest(request_id=request_id or new_id()),
        timeout=TIMEOUT_SECONDS,
    )


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failure_of(failed.value).reason


async def vector_columns(owner: asyncpg.Connection) -> list[str]:
    rows = await owner.fetch(
        "SELECT c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)"
        " || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END AS line"
        " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " WHERE c.relnamespace = 'knowledge_base'::regnamespace AND c.relkind = 'r'"
        " AND a.atttypid = 'vector'::regtype AND NOT a.attisdropped ORDER BY 1"
    )
    return [row["line"] for row in rows]


@pytest.fixture(autouse=True)
async def owner(knowledge_base_database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(knowledge_base_database)
    yield connection
    # A change that a test left unfinished has altered the tables, which the next test shares.
    await connection.execute("SELECT knowledge_base.drop_next_embedding()")
    await connection.close()


def two_models() -> tuple[Embedder, IsometricEmbedder]:
    return HashEmbedder(), IsometricEmbedder(HashEmbedder())


class Load:
    """Callers that ask and record all the time, and what went wrong for them."""

    def __init__(self, running: RunningKnowledgeBase, world_id: str, expected: Any) -> None:
        self._running, self._world_id, self._expected = running, world_id, expected
        self.failures: list[str] = []
        self.asked: list[str] = []
        self.recorded: list[str] = []
        self.other_world = ""
        self._stopping = False

    async def ask(self) -> None:
        turn = 0
        while not self._stopping:
            query = QUERIES[turn % len(QUERIES)]
            try:
                answer = await answers(self._running, self._world_id, query)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{query}: {error.code()} {error.details()}")
            else:
                self.asked.append(query)
                if answer != self._expected[query]:
                    self.failures.append(f"{query}: {answer}")
            turn += 1

    async def record(self) -> None:
        world = await self._running.stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name=f"other {new_id()}", request_id=new_id())
        )
        self.other_world = world.world.world_id
        turn = 0
        while not self._stopping:
            text = f"Ferry {turn} crossed with {turn % 7} lanterns."
            try:
                await record(self._running, self.other_world, text)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"record: {error.code()} {error.details()}")
            else:
                self.recorded.append(text)
            turn += 1

    async def more(self, count: int) -> None:
        """Waits until so many more were answered and recorded."""
        asked, recorded = len(self.asked) + count, len(self.recorded) + count
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not self.failures and (  # noqa: ASYNC110  # what is waited for is in other tasks
                len(self.asked) < asked or len(self.recorded) < recorded
            ):
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for job in (self.ask, self.ask, self.record):
                group.create_task(job())
            try:
                yield
            finally:
                self._stopping = True


async def test_every_answer_stays_the_same_before_during_and_after_a_change(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        world_id = await fill_memory(running)
        expected = {query: await answers(running, world_id, query) for query in QUERIES}
        assert all(answer.texts for found in expected.values() for answer in found)
        load = Load(running, world_id, expected)
        async with load.going_on():
            await load.more(3)
            started = await start(running, second.model)
            assert started.active.name == first.model
            assert started.change.name == second.model
            await load.more(3)
            async with filling(running):
                await running.stub.PauseEmbeddingChange(
                    change_pb.PauseEmbeddingChangeRequest(request_id=new_id())
                )
                await running.stub.ResumeEmbeddingChange(
                    change_pb.ResumeEmbeddingChangeRequest(request_id=new_id())
                )
                await until(running, lambda change: change.listed and change.remaining_rows < 32)
                await load.more(3)
                finished = await finish(running)
                assert finished.active.name == second.model
                assert not finished.HasField("change")
                await load.more(10)
        assert load.failures == []
        for query in QUERIES:
            assert await answers(running, world_id, query) == expected[query]
        # What was recorded under way is remembered, and found by its meaning.
        listed = await running.stub.ListEvents(
            story_pb2.ListEventsRequest(world_id=load.other_world, page_size=1000),
        )
        assert {event.text for event in listed.events} == set(load.recorded)
    assert await vector_columns(owner) == [
        "document_chunks.embedding vector(1024) not null",
        "story_events.embedding vector(1024) not null",
    ]
    models = await owner.fetch(
        "SELECT DISTINCT embedding_model AS name FROM knowledge_base.story_events"
        " UNION SELECT DISTINCT substr(recipe, strpos(recipe, '/') + 1)"
        " FROM knowledge_base.document_chunks"
        " UNION SELECT DISTINCT substr(recipe, strpos(recipe, '/') + 1)"
        " FROM knowledge_base.narrative_documents"
    )
    assert [row["name"] for row in models] == [second.model]


@pytest.mark.endurance
async def test_unchanged_documents_are_not_embedded_again_after_a_change(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await fill_memory(running)
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
            await finish(running)
        embedded = second.embedded
        requests = [
            lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="other")),
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(
                    path="mill.md",
                    content=lore_page("mill", 0, rules=1).encode(),
                )
            ),
        ]
        async for _ in running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS):
            pass
        assert second.embedded == embedded


@pytest.mark.endurance
async def test_a_replica_that_knows_only_the_former_model_says_so_and_harms_nothing(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with (
        serve_knowledge_base(knowledge_base_database, embedders=(first, second), **FAST) as running,
        serve_knowledge_base(knowledge_base_database, embedder=HashEmbedder()) as former,
        serve_knowledge_base(knowledge_base_database, embedders=two_models()) as replica,
    ):
        world_id = await fill_memory(running)
        expected = await answers(running, world_id, QUERIES[0])
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
        await finish(running)
        # The other replica learns of it from the database's refusal, not from its callers.
        assert await answers(replica, world_id, QUERIES[0]) == expected
        await record(replica, world_id, "A heron stood on the weir.")
        assert await refusal(answers(former, world_id, QUERIES[0])) == "EMBEDDING_UNAVAILABLE"
        assert await refusal(record(former, world_id, "An owl.")) == "EMBEDDING_UNAVAILABLE"


@pytest.mark.endurance
async def test_a_change_to_vectors_of_the_same_length_mixes_none(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    """No length tells them apart: only the name that comes with each vector does."""
    first, second = HashEmbedder(), IsometricEmbedder(HashEmbedder(), 384)
    async with (
        serve_knowledge_base(knowledge_base_database, embedders=(first, second), **FAST) as running,
        serve_knowledge_base(knowledge_base_database, embedders=(first, second)) as replica,
    ):
        world_id = await fill_memory(running)
        expected = await answers(running, world_id, QUERIES[0])
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
        await finish(running)
        assert await answers(replica, world_id, QUERIES[0]) == expected
        await record(replica, world_id, "A heron stood on the weir.")
        (vector,) = await second.embed_documents(["A heron stood on the weir."])
        stored = await owner.fetchval(
            "SELECT embedding::text FROM knowledge_base.story_events WHERE text LIKE 'A heron%'"
        )
        assert [float(x) for x in stored.strip("[]").split(",")] == pytest.approx(
            vector.tolist(), abs=1e-6
        )


@pytest.mark.endurance
async def test_a_statement_with_a_vector_keeps_its_model_active_until_it_ends(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed)
        service = await asyncpg.connect(service_url(knowledge_base_database))
        try:
            reading = service.transaction()
            await reading.start()
            await service.fetchval(
                "SELECT knowledge_base.embedded_with($1, '[1,2]'::vector)::text", first.model
            )
            finishing = asyncio.create_task(finish(running))
            waiting = (
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND"
                " relation = 'knowledge_base.embedding_models'::regclass"
            )
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await owner.fetchval(waiting):  # noqa: ASYNC110  # a lock of the server's
                    await asyncio.sleep(0.01)
            assert (await status_of(owner, first.model)) == "active"
            await reading.rollback()
            assert (await finishing).active.name == second.model
            with pytest.raises(asyncpg.PostgresError) as refused:
                await service.fetchval(
                    "SELECT knowledge_base.embedded_with($1, '[1,2]'::vector)::text", first.model
                )
            assert refused.value.sqlstate == "KB010"
        finally:
            await service.close()


async def status_of(owner: asyncpg.Connection, model: str) -> str:
    state: str = await owner.fetchval(
        "SELECT state FROM knowledge_base.embedding_models WHERE name = $1", model
    )
    return state


@pytest.mark.endurance
async def test_a_paused_change_fills_nothing_and_goes_on_where_it_was(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await fill_memory(running)
        await start(running, second.model)
        await running.stub.PauseEmbeddingChange(
            change_pb.PauseEmbeddingChangeRequest(request_id=new_id())
        )
        async with filling(running):
            for _ in range(20):
                await asyncio.sleep(0)
            paused = (await status(running)).change
            assert paused.state == change_pb.EMBEDDING_MODEL_STATE_PAUSED
            assert (paused.listed, paused.filled_rows) == (False, 0)
            assert await refusal(finish(running)) == "EMBEDDING_CHANGE_NOT_READY"
            await running.stub.ResumeEmbeddingChange(
                change_pb.ResumeEmbeddingChangeRequest(request_id=new_id())
            )
            change = await until(running, lambda c: c.listed and c.remaining_rows == 0)
            assert change.filled_rows == EVENTS + 40


@pytest.mark.endurance
async def test_a_killed_filler_loses_no_more_than_its_batch(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        world_id = await fill_memory(running)
        expected = await answers(running, world_id, QUERIES[1])
        await start(running, second.model)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(WORKER),
            env={**os.environ, "WORKER_DATABASE_URL": service_url(knowledge_base_database)},
        )
        try:
            await until(running, lambda change: change.filled_rows >= 64)
        finally:
            process.send_signal(signal.SIGKILL)
            await asyncio.wait_for(process.wait(), TIMEOUT_SECONDS)
        done = (await status(running)).change.filled_rows
        assert done < EVENTS + 40, "the filler was to be killed in the middle"
        async with filling(running):
            change = await until(running, lambda c: c.listed and c.remaining_rows == 0)
        # Counted with its vectors: the batch that was lost was not counted, and no row twice.
        assert change.filled_rows == EVENTS + 40
        assert second.embedded <= EVENTS + 40 - done + 1  # and the probe of the start
        await finish(running)
        assert await answers(running, world_id, QUERIES[1]) == expected


@pytest.mark.endurance
async def test_two_fillers_share_the_work(
    knowledge_base_database: str,
) -> None:
    models, others = two_models(), two_models()
    async with (
        serve_knowledge_base(knowledge_base_database, embedders=models, **FAST) as running,
        serve_knowledge_base(knowledge_base_database, embedders=others, **FAST) as replica,
    ):
        await fill_memory(running)
        await start(running, models[1].model)
        async with filling(running), filling(replica):
            change = await until(running, lambda c: c.listed and c.remaining_rows == 0)
        assert change.filled_rows == EVENTS + 40
        assert models[1].embedded + others[1].embedded == EVENTS + 40 + 1


@pytest.mark.endurance
async def test_a_cancelled_change_leaves_no_trace(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        world_id = await fill_memory(running)
        before = await vector_columns(owner)
        expected = await answers(running, world_id, QUERIES[2])
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.filled_rows > 0)
            await running.stub.CancelEmbeddingChange(
                change_pb.CancelEmbeddingChangeRequest(request_id=new_id())
            )
        assert await vector_columns(owner) == before
        assert await owner.fetchval("SELECT count(*) FROM knowledge_base.story_event_backlog") == 0
        assert not (await status(running)).HasField("change")
        assert await answers(running, world_id, QUERIES[2]) == expected
        await start(running, second.model)


async def test_what_cannot_be_done_is_refused_with_its_reason(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        assert list((await status(running)).offered_models) == [first.model, second.model]
        assert await refusal(finish(running)) == "NO_EMBEDDING_CHANGE"
        assert await refusal(start(running, "word2vec")) == "UNKNOWN_EMBEDDING_MODEL"
        assert await refusal(start(running, first.model)) == "EMBEDDING_MODEL_ACTIVE"
        request_id = new_id()
        await start(running, second.model, request_id)
        again = await start(running, second.model, request_id)
        assert again.change.name == second.model
        assert await refusal(start(running, second.model)) == "EMBEDDING_CHANGE_IN_PROGRESS"
        assert await refusal(start(running, first.model, request_id)) == "REQUEST_ID_REUSED"
        async with filling(running):
            await until(running, lambda change: change.listed)
        finished = new_id()
        assert (await finish(running, finished)).active.name == second.model
        assert (await finish(running, finished)).active.name == second.model


@pytest.mark.endurance
async def test_the_indexes_of_the_vectors_are_there_again_at_the_switch(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    await_indexes = (
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'knowledge_base'"
        " AND tablename = 'document_chunks' ORDER BY indexname"
    )
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        with suppress(asyncpg.DuplicateTableError):
            await owner.execute(
                "CREATE INDEX chunks_near ON knowledge_base.document_chunks"
                " USING hnsw ((embedding::halfvec(384)) halfvec_ip_ops)"
            )
        try:
            before = [row["indexdef"] for row in await owner.fetch(await_indexes)]
            await fill_memory(running)
            await start(running, second.model)
            async with filling(running):
                await until(running, lambda c: c.listed and c.remaining_rows == 0)
            await finish(running)
            after = [row["indexdef"] for row in await owner.fetch(await_indexes)]
            assert after == [line.replace("(384)", "(1024)") for line in before]
        finally:
            await owner.execute("DROP INDEX IF EXISTS knowledge_base.chunks_near")
