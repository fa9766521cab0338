"""What tests of worlds as wholes ask of the service, and the worlds they ask about."""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from gaming.events.events_pb2 import WEATHER_CHANGED
from gaming.knowledge_base.v1 import (
    concepts_pb2,
    story_pb2,
    subscriptions_pb2,
    world_jobs_pb2,
    world_records_pb2,
    worlds_pb2,
)
from knowledge_base.testing import (
    RunningKnowledgeBase,
)

__all__ = [
    "ENDED",
    "MORNING",
    "TIMEOUT_SECONDS",
    "erase",
    "events_of",
    "export",
    "fork",
    "hour",
    "import_world",
    "job_ended",
    "make_world",
    "new_id",
    "recalled",
    "record",
    "stamp",
    "ties_of",
    "world_names",
]

TIMEOUT_SECONDS = 30
MORNING = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
ENDED = (
    world_jobs_pb2.JOB_STATE_SUCCEEDED,
    world_jobs_pb2.JOB_STATE_FAILED,
    world_jobs_pb2.JOB_STATE_CANCELLED,
)


def new_id() -> str:
    return str(uuid.uuid4())


def stamp(moment: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def hour(number: int) -> datetime:
    return MORNING + timedelta(hours=number)


async def make_world(running: RunningKnowledgeBase, name: str, events: int = 5) -> str:
    """A world with an event an hour, concepts, a tie to a shared concept, and a subscription."""
    stub = running.stub
    world_id = (
        await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name=name, description="d", request_id=new_id()),
            timeout=TIMEOUT_SECONDS,
        )
    ).world.world_id
    if events:
        await record(running, world_id, *(f"Mira passed gate {n}" for n in range(events)))
    for concept, world in (("Mira", world_id), ("The Bell", world_id), ("Odrelle", "")):
        await stub.PutConcept(
            concepts_pb2.PutConceptRequest(
                world_id=world, name=concept, kind="thing", description="d", request_id=new_id()
            ),
            timeout=TIMEOUT_SECONDS,
        )
    for other in ("The Bell", "Odrelle"):
        await stub.RelateConcepts(
            concepts_pb2.RelateConceptsRequest(
                world_id=world_id,
                from_concept="Mira",
                to_concept=other,
                kind="knows",
                request_id=new_id(),
            ),
            timeout=TIMEOUT_SECONDS,
        )
    await stub.SetEventSubscription(
        subscriptions_pb2.SetEventSubscriptionRequest(
            world_id=world_id,
            subscription=subscriptions_pb2.EventSubscription(event_types=[WEATHER_CHANGED]),
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return world_id


async def record(running: RunningKnowledgeBase, world_id: str, *texts: str) -> None:
    await running.stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world_id,
            events=[
                story_pb2.StoryEvent(text=text, occur_time=stamp(hour(n)), participants=["Mira"])
                for n, text in enumerate(texts)
            ],
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )


async def job_ended(running: RunningKnowledgeBase, job_id: str) -> world_jobs_pb2.Job:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            job = (
                await running.stub.GetJob(
                    world_jobs_pb2.GetJobRequest(job_id=job_id), timeout=TIMEOUT_SECONDS
                )
            ).job
            if job.state in ENDED:
                return job
            await asyncio.sleep(0.02)


async def fork(
    running: RunningKnowledgeBase, world_id: str, name: str, end: datetime | None = None
) -> world_jobs_pb2.Job:
    answer = await running.stub.ForkWorld(
        world_jobs_pb2.ForkWorldRequest(
            world_id=world_id,
            name=name,
            end_time=stamp(end) if end else None,
            with_subscription=True,
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return await job_ended(running, answer.job.job_id)


async def erase(
    running: RunningKnowledgeBase, world_id: str, *, rewrite_tables: bool = False
) -> world_jobs_pb2.Job:
    answer = await running.stub.EraseWorld(
        world_jobs_pb2.EraseWorldRequest(
            world_id=world_id, rewrite_tables=rewrite_tables, request_id=new_id()
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return await job_ended(running, answer.job.job_id)


async def events_of(running: RunningKnowledgeBase, world_id: str) -> list[story_pb2.StoryEvent]:
    answer = await running.stub.ListEvents(
        story_pb2.ListEventsRequest(world_id=world_id, page_size=1000), timeout=TIMEOUT_SECONDS
    )
    return list(answer.events)


async def recalled(
    running: RunningKnowledgeBase, world_id: str
) -> list[tuple[str, float, float, float]]:
    answer = await running.stub.Recall(
        story_pb2.RecallRequest(world_id=world_id, query="which gate did Mira pass?", limit=50),
        timeout=TIMEOUT_SECONDS,
    )
    return [
        (each.event.event_id, each.score, each.relevance, each.recency) for each in answer.events
    ]


async def ties_of(running: RunningKnowledgeBase, world_id: str) -> list[tuple[str, str, str]]:
    answer = await running.stub.ListRelationships(
        concepts_pb2.ListRelationshipsRequest(world_id=world_id, concept="Mira"),
        timeout=TIMEOUT_SECONDS,
    )
    return [(each.from_concept, each.to_concept, each.kind) for each in answer.relationships]


async def export(
    running: RunningKnowledgeBase, world_id: str, token: str = ""
) -> list[world_records_pb2.ExportWorldResponse]:
    call = running.stub.ExportWorld(
        world_records_pb2.ExportWorldRequest(world_id=world_id, resume_token=token),
        timeout=TIMEOUT_SECONDS,
    )
    return [step async for step in call]


async def import_world(
    running: RunningKnowledgeBase,
    records: Sequence[world_records_pb2.WorldRecord],
    *,
    name: str = "",
    keep_world_id: bool = False,
    request_id: str = "",
) -> world_records_pb2.ImportWorldResponse:
    begin = world_records_pb2.ImportBegin(
        name=name, keep_world_id=keep_world_id, request_id=request_id or new_id()
    )
    requests = [world_records_pb2.ImportWorldRequest(begin=begin)]
    requests += [world_records_pb2.ImportWorldRequest(record=record) for record in records]
    return await running.stub.ImportWorld(iter(requests), timeout=TIMEOUT_SECONDS)


async def world_names(running: RunningKnowledgeBase) -> set[str]:
    answer = await running.stub.ListWorlds(worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS)
    return {world.name for world in answer.worlds}


# --- archive --------------------------------------------------------------------------------------
