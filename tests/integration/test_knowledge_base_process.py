"""The knowledge base as the process an operator starts, with its own model."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import psutil
import pytest

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import lore_pb2, story_pb2, worlds_pb2
from knowledge_base.testing import service_url
from localsuite.ports import free_ports
from servicekit.channels import open_channel

START_SECONDS = 60
TIMEOUT_SECONDS = 60
MAXIMUM_MEMORY_BYTES = 350 * 1024 * 1024


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("KNOWLEDGE_BASE_")
    }
    return {
        **inherited,
        "GAMEKEEPER_LOG_FORMAT": "console",
        "KNOWLEDGE_BASE_MODEL_CACHE_DIRECTORY": str(tmp_path_factory.mktemp("models")),
    }


async def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "knowledge_base", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(START_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@asynccontextmanager
async def served(
    environment: dict[str, str], log: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, grpc.aio.Channel]]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "knowledge_base"),
            env={**environment, "GAMEKEEPER_LISTEN_ADDRESS": address},
            stdout=output,
            stderr=output,
        )
    try:
        async with open_channel(address) as channel:
            yield process, channel
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_SECONDS):
            await process.wait()


async def test_it_migrates_serves_and_stops_in_order_within_its_memory(
    postgres_database: str, environment: dict[str, str], tmp_path: Path
) -> None:
    environment = {
        **environment,
        "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": postgres_database,
        "KNOWLEDGE_BASE_DATABASE_URL": service_url(postgres_database),
    }
    log = tmp_path / "log"
    async with served(environment, log) as (process, channel):
        stub = pb_grpc.KnowledgeBaseServiceStub(channel)
        await stub.ListWorlds(
            worlds_pb2.ListWorldsRequest(), timeout=START_SECONDS, wait_for_ready=True
        )
        long_text = "\n\n".join(
            f"## Part {n}\n\n" + f"The warden of part {n} lit a lamp before the tide. " * 20
            for n in range(40)
        )
        requests = [
            lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore")),
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(path="a.md", content=long_text.encode())
            ),
        ]
        async for _ in stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS):
            pass
        await asyncio.gather(
            *(
                stub.Search(lore_pb2.SearchRequest(query=f"part {n} lamp"), timeout=TIMEOUT_SECONDS)
                for n in range(40)
            )
        )
        world = await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="a", request_id=str(uuid.uuid4())),
            timeout=TIMEOUT_SECONDS,
        )
        await stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=world.world.world_id,
                events=[
                    story_pb2.StoryEvent(text=f"Something happened, number {n}.")
                    for n in range(100)
                ],
                request_id=str(uuid.uuid4()),
            ),
            timeout=TIMEOUT_SECONDS,
        )
        assert psutil.Process(process.pid).memory_info().rss < MAXIMUM_MEMORY_BYTES
    assert process.returncode == 0
    text = log.read_text()
    assert "migration_applied" in text
    assert "service_stopped" in text
    assert "GAMEKEEPER_EVENTS_TOPIC_ARN is empty" in text  # it runs without the event bus
    assert "GAMEKEEPER_EVENTS_QUEUE_URL is empty" in text
    assert "for tests" not in text  # no password
    assert "lamp" not in text  # no content of anybody's

    # A second start finds all of it; the schema's owner is not needed any more.
    del environment["KNOWLEDGE_BASE_MIGRATION_DATABASE_URL"]
    async with served(environment, log) as (_, channel):
        got = await pb_grpc.KnowledgeBaseServiceStub(channel).GetWorld(
            worlds_pb2.GetWorldRequest(name="a"), timeout=START_SECONDS, wait_for_ready=True
        )
        assert got.world.event_count == 100


async def test_migrate_is_safe_to_repeat_and_to_run_at_once(
    postgres_database: str, environment: dict[str, str]
) -> None:
    environment = {
        **environment,
        "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": postgres_database,
        "KNOWLEDGE_BASE_DATABASE_URL": service_url(postgres_database),
    }
    results = await asyncio.gather(*(run(environment, "migrate") for _ in range(2)))
    assert [code for code, _ in results] == [0, 0], results
    assert sum("migration=0001_tables" in output for _, output in results) == 1
    code, output = await run(environment, "migrate")
    assert code == 0
    assert "migration_applied" not in output


async def test_all_wrong_settings_are_named_at_once(environment: dict[str, str]) -> None:
    wrong = {
        **environment,
        "KNOWLEDGE_BASE_DATABASE_URL": "mysql://x",
        "KNOWLEDGE_BASE_POOL_SIZE": "0",
        "KNOWLEDGE_BASE_SERVICE_ROLE": "Not A Role",
    }
    code, output = await run(wrong)
    assert code == 2
    for variable in (
        "KNOWLEDGE_BASE_DATABASE_URL",
        "KNOWLEDGE_BASE_POOL_SIZE",
        "KNOWLEDGE_BASE_SERVICE_ROLE",
    ):
        assert f"{variable}=" in output


async def test_the_owners_role_is_refused_for_serving(
    postgres_database: str, environment: dict[str, str]
) -> None:
    code, output = await run(
        {
            **environment,
            "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": postgres_database,
            "KNOWLEDGE_BASE_DATABASE_URL": postgres_database,
        }
    )
    assert code == 2
    assert "superuser" in output


async def test_an_unknown_command_prints_how_to_use_it(environment: dict[str, str]) -> None:
    code, output = await run(environment, "nonsense")
    assert code == 2
    assert "prepare-model" in output
