"""What tests of a change of the embedding model ask of the service, and callers beside it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
)

__all__ = [
    "DEEDS",
    "EVENTS",
    "FAST",
    "PLACES",
    "QUERIES",
    "SCORE_TOLERANCE",
    "TIMEOUT_SECONDS",
    "WORKER",
    "Answer",
    "Load",
    "answers",
    "deed",
    "fill_memory",
    "filling",
    "finish",
    "lore_page",
    "new_id",
    "owners_connection",
    "record",
    "refusal",
    "start",
    "status",
    "status_of",
    "two_models",
    "until",
    "vector_columns",
]

TIMEOUT_SECONDS = 60
FAST: dict[str, Any] = {"KNOWLEDGE_BASE_FILLED_ROWS_PER_SECOND": "100000"}
EVENTS = 150
SCORE_TOLERANCE = 1e-5
PLACES = ("mill", "weir", "tollgate", "chapel", "ferry", "orchard", "quarry", "inn")
DEEDS = ("lit a lamp", "hid a letter", "paid the toll", "rang the bell", "mended a net")
QUERIES = ("Who lit a lamp at the mill?", "letter hidden in the orchard", "bell of the chapel")
WORKER = Path(__file__).parents[1] / "embedding_fill_worker.py"


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


@asynccontextmanager
async def owners_connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection as the tables' owner; a change that is unfinished in the end is taken back."""
    connection = await asyncpg.connect(database)
    yield connection
    # It has altered the tables, which the next test shares.
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


async def status_of(owner: asyncpg.Connection, model: str) -> str:
    state: str = await owner.fetchval(
        "SELECT state FROM knowledge_base.embedding_models WHERE name = $1", model
    )
    return state
