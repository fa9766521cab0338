"""PostgreSQL's log says which statements were slow, never what a world holds."""

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc.aio
import pytest

from gaming.knowledge_base.v1 import concepts_pb2, story_pb2, world_jobs_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base
from localsuite.postgres import EmbeddedPostgres

IMAGE = Path(__file__).parents[2] / "deploy" / "images" / "postgres" / "postgresql.conf"
TIMEOUT_SECONDS = 60
CANARY = "canaryquillon"
#: Every statement counts as slow: what a slow machine's log would hold.
ALL_ARE_SLOW: Mapping[str, str] = {"log_min_duration_statement": "0"}
#: What PostgreSQL does where it is told nothing: all parameters of what it logs are logged.
UNTOLD: Mapping[str, str] = {"log_parameter_max_length": "-1"}


def log_settings_of_image() -> dict[str, str]:
    """What the image tells PostgreSQL about its log, and nothing of what the launcher tells it."""
    lines = (line.partition("=") for line in IMAGE.read_text().splitlines())
    told = {name.strip(): value.strip().strip("'") for name, _, value in lines}
    return {**UNTOLD, **{name: told[name] for name in told if name.startswith("log_")}}


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where PostgreSQL's account may go, unlike below pytest's own directory."""
    made = Path(tempfile.mkdtemp(prefix="gamekeeper-log-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def new_id() -> str:
    return str(uuid.uuid4())


async def play_and_erase(running: RunningKnowledgeBase) -> None:
    """A world's life: the canary is in what it holds, in what is asked, and in what fails."""
    stub = running.stub
    world_id = (
        await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name=CANARY, description=CANARY, request_id=new_id()),
            timeout=TIMEOUT_SECONDS,
        )
    ).world.world_id
    await stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world_id,
            events=[story_pb2.StoryEvent(text=f"{CANARY} stole it", participants=[CANARY])],
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    await stub.Recall(
        story_pb2.RecallRequest(world_id=world_id, query=f"who is {CANARY}"),
        timeout=TIMEOUT_SECONDS,
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.RelateConcepts(
            concepts_pb2.RelateConceptsRequest(
                world_id=world_id,
                from_concept=CANARY,
                to_concept=f"{CANARY} too",
                kind=CANARY,
                request_id=new_id(),
            ),
            timeout=TIMEOUT_SECONDS,
        )
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    job = (
        await stub.EraseWorld(
            world_jobs_pb2.EraseWorldRequest(world_id=world_id, request_id=new_id()),
            timeout=TIMEOUT_SECONDS,
        )
    ).job
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not job.HasField("end_time"):
            await asyncio.sleep(0.02)
            request = world_jobs_pb2.GetJobRequest(job_id=job.job_id)
            job = (await stub.GetJob(request, timeout=TIMEOUT_SECONDS)).job
    assert job.state == world_jobs_pb2.JOB_STATE_SUCCEEDED


@pytest.mark.parametrize(
    "settings", [log_settings_of_image(), {}], ids=["of the image", "of the embedded server"]
)
async def test_a_log_of_every_statement_holds_no_word_of_a_world(
    directory: Path, settings: dict[str, str]
) -> None:
    with EmbeddedPostgres(
        directory / "postgres", durable=False, settings={**settings, **ALL_ARE_SLOW}
    ) as server:
        server.create_database("game")
        async with serve_knowledge_base(server.url("game")) as running:
            await play_and_erase(running)
    log = server.log_file.read_text(errors="replace")
    # It does tell of the calls, of the one that failed too.
    for function in ("record_events", "recall", "relate_concepts"):
        assert f"knowledge_base.{function}" in log
    assert "no such concept" in log
    assert [line for line in log.splitlines() if CANARY in line] == []
