"""Requests no client library would send, to real services: refused plainly, the connection stays.

Each answer is searched for Python's traces, and each attack is followed by a good call on the same
connection.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from http2_attacker import Http2Attacker
from service_processes import collector_process, router_process, service_process

from gaming.ai_router.v1 import ai_router_pb2
from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gaming.knowledge_base.v1 import story_pb2, worlds_pb2
from knowledge_base.testing import service_url

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 3, 8, 12
COLLECTOR = "/gaming.gpu_metrics.v1.GpuMetricsService/"
ROUTER = "/gaming.ai_router.v1.AiRouterService/"
KNOWLEDGE_BASE = "/gaming.knowledge_base.v1.KnowledgeBaseService/"
FLEET = COLLECTOR + "GetFleet"
PYTHON_TEXT = re.compile(
    r"Traceback|Exception|\w+Error\b|<class|<\w+ object|\.py\b|codec|asyncpg|google\.protobuf"
    r"|servicekit|grpc\._|0x[0-9a-f]{6}|line \d+"
)


@dataclass(frozen=True, slots=True)
class Attack:
    """A call as an attacker makes it, and the status that answers it."""

    status: int
    path: str | bytes = FLEET
    message: bytes = b""
    body: bytes | None = None
    metadata: tuple[tuple[str | bytes, str | bytes], ...] = ()


def text_field(message: type, field: str, raw: bytes) -> bytes:
    """Returns an encoded message whose text `field` holds bytes of any kind."""
    number = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]  # generated
    return bytes([number << 3 | 2, len(raw)]) + raw


def page_token(text: str) -> bytes:
    return gpu_metrics_pb2.ListServersRequest(page_token=text).SerializeToString()


ON_COLLECTOR = {
    "malformed protobuf": Attack(INVALID_ARGUMENT, message=b"\xff\xff\xff"),
    "bad UTF-8": Attack(
        INVALID_ARGUMENT,
        COLLECTOR + "ListServers",
        text_field(gpu_metrics_pb2.ListServersRequest, "page_token", b"\xff\xfea"),
    ),
    "NUL": Attack(INVALID_ARGUMENT, COLLECTOR + "ListServers", page_token("a\0b")),
    "zero width": Attack(INVALID_ARGUMENT, COLLECTOR + "ListServers", page_token("a\u200bb")),
    "5 MB": Attack(RESOURCE_EXHAUSTED, message=bytes(5_000_000)),
    "4 GB announced": Attack(RESOURCE_EXHAUSTED, body=b"\0\xff\xff\xff\xffa"),
    "20 KB of metadata": Attack(RESOURCE_EXHAUSTED, metadata=(("x-much", "m" * 20_000),)),
    "no message": Attack(INVALID_ARGUMENT, body=b""),
    "half a message": Attack(INVALID_ARGUMENT, body=b"\0\0\0\0\x09half"),
    "compressed without a codec": Attack(INVALID_ARGUMENT, body=b"\1\0\0\0\5hello"),
    "empty path": Attack(UNIMPLEMENTED, ""),
    "path of slashes": Attack(UNIMPLEMENTED, "//"),
    "path with a tail": Attack(UNIMPLEMENTED, FLEET + "/"),
    "path with dots": Attack(UNIMPLEMENTED, COLLECTOR + "../GpuMetricsService/GetFleet"),
    "path percent-encoded": Attack(UNIMPLEMENTED, COLLECTOR + "%47etFleet"),
    "path in lower case": Attack(UNIMPLEMENTED, FLEET.lower()),
    "path with a query": Attack(UNIMPLEMENTED, FLEET + "?all=1"),
    "path with NUL": Attack(UNIMPLEMENTED, FLEET + "\0"),
    "path that is no UTF-8": Attack(UNIMPLEMENTED, b"/\xff\xfe/\x80"),
}


def drain(server_id: str) -> bytes:
    return ai_router_pb2.DrainServerRequest(server_id=server_id).SerializeToString()


ON_ROUTER = {
    "bad UTF-8 in an id": Attack(
        INVALID_ARGUMENT,
        ROUTER + "DrainServer",
        text_field(ai_router_pb2.DrainServerRequest, "server_id", b"gold-1\xc3"),
    ),
    "NUL in an id": Attack(INVALID_ARGUMENT, ROUTER + "DrainServer", drain("gold-1\0")),
    "zero width in an id": Attack(INVALID_ARGUMENT, ROUTER + "DrainServer", drain("gold\u200b-1")),
    "direction override in an id": Attack(
        INVALID_ARGUMENT, ROUTER + "DrainServer", drain("gold\u202e-1")
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    log_file = tmp_path_factory.mktemp("collector") / "log"
    async with collector_process(log_file) as service:
        yield service.address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    log_file = tmp_path_factory.mktemp("router") / "log"
    async with router_process(log_file) as service:
        yield service.address


async def attack_and_go_on(address: str, attack: Attack, good_path: str) -> None:
    async with Http2Attacker.connect(address) as attacker:
        assert (await attacker.call(good_path)).status == 0
        answer = await attacker.call(
            attack.path, attack.message, attack.metadata, body=attack.body, seconds=30
        )
        assert answer.status == attack.status, answer.everything
        assert not PYTHON_TEXT.search(answer.everything), answer.everything
        assert (await attacker.call(good_path)).status == 0


@pytest.mark.parametrize("name", ON_COLLECTOR)
async def test_an_odd_request_is_refused_and_the_connection_stays(
    collector: str, name: str
) -> None:
    await attack_and_go_on(collector, ON_COLLECTOR[name], FLEET)


@pytest.mark.parametrize("name", ON_ROUTER)
async def test_an_id_nobody_could_read_is_refused_and_the_connection_stays(
    router: str, name: str
) -> None:
    await attack_and_go_on(router, ON_ROUTER[name], ROUTER + "ListTiers")


async def test_what_a_story_cannot_hold_is_refused_and_changes_nothing(
    postgres_database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("knowledge_base")

    def create_world(name: str) -> bytes:
        return worlds_pb2.CreateWorldRequest(
            name=name, request_id=str(uuid.uuid4())
        ).SerializeToString()

    async with (
        service_process(
            ("knowledge_base",),
            directory / "log",
            KNOWLEDGE_BASE_MIGRATION_DATABASE_URL=postgres_database,
            KNOWLEDGE_BASE_DATABASE_URL=service_url(postgres_database),
            KNOWLEDGE_BASE_MODEL_CACHE_DIRECTORY=str(directory),
        ) as service,
        Http2Attacker.connect(service.address) as attacker,
    ):
        made = await attacker.call(KNOWLEDGE_BASE + "CreateWorld", create_world("Emberfall"))
        assert made.status == 0
        world = worlds_pb2.CreateWorldResponse.FromString(bytes(made.body[5:])).world

        def record(text: str) -> bytes:
            return story_pb2.RecordEventsRequest(
                world_id=world.world_id,
                request_id=str(uuid.uuid4()),
                events=[story_pb2.StoryEvent(text=text)],
            ).SerializeToString()

        broken_text = record("The bell rang twice.").replace(b"bell", b"b\xff\xfel")
        for method, message in (
            ("CreateWorld", create_world("Ember\u200bfall")),
            ("CreateWorld", create_world("Emberfall\0")),
            ("CreateWorld", create_world("\u200b")),
            ("RecordEvents", record("The bell\0rang.")),
            ("RecordEvents", record("\u200b\u2060")),
            ("RecordEvents", broken_text),
            ("RecordEvents", record("x" * 2_000_000)),
        ):
            answer = await attacker.call(KNOWLEDGE_BASE + method, message)
            expected = RESOURCE_EXHAUSTED if len(message) > 1_000_000 else INVALID_ARGUMENT
            assert answer.status == expected, answer.everything
            assert not PYTHON_TEXT.search(answer.everything), answer.everything
        listed = await attacker.call(KNOWLEDGE_BASE + "ListWorlds")
        worlds = worlds_pb2.ListWorldsResponse.FromString(bytes(listed.body[5:])).worlds
        assert [(each.name, each.event_count) for each in worlds] == [("Emberfall", 0)]
