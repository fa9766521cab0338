"""A call whose deadline has passed on its way is refused at once, and does nothing.

A client library would not even send it; so the frames are written here.
"""

from __future__ import annotations

import asyncio
import struct
import time
import uuid
from collections.abc import AsyncIterator

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

from ai_router.adapters.static_fleet import StaticFleetSource
from ai_router.domain.fleet import ServerReport
from ai_router.domain.tiers import Tier
from ai_router.testing.running_router import run_router
from ai_router.testing.scripted_model_server import ScriptedModelServer, serve_script
from gaming.ai_router.v1 import ai_router_pb2
from gaming.common.v1 import tier_pb2
from gaming.knowledge_base.v1 import worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base
from servicekit.clock import SystemClock

DEADLINE_EXCEEDED = "4"
TIMEOUT_SECONDS = 20.0


async def call(address: str, path: str, message: bytes, grpc_timeout: str) -> str:
    """Makes one gRPC call (gRPC over HTTP/2, protocol page) and returns its status number.

    A stream the server resets counts as DEADLINE_EXCEEDED: gRPC's own timer does that.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    connection.send_headers(
        stream,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", grpc_timeout),
        ],
    )
    body = struct.pack(">BI", 0, len(message)) + message
    connection.send_data(stream, body, end_stream=True)
    writer.write(connection.data_to_send())
    status = ""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                received = await reader.read(65_536)
                assert received, "the server closed the connection"
                for event in connection.receive_data(received):
                    match event:
                        case ResponseReceived() | TrailersReceived():
                            headers = {str(key): str(value) for key, value in event.headers or ()}
                            status = headers.get("grpc-status", status)
                        case DataReceived():
                            connection.acknowledge_received_data(
                                event.flow_controlled_length or 0, stream
                            )
                        case StreamReset():
                            return status or DEADLINE_EXCEEDED
                        case StreamEnded():
                            return status
                writer.write(connection.data_to_send())
    finally:
        writer.close()


@pytest.fixture
async def knowledge_base(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


@pytest.fixture
async def model_server() -> AsyncIterator[ScriptedModelServer]:
    async with serve_script() as server:
        yield server


CREATE_WORLD = "/gaming.knowledge_base.v1.KnowledgeBaseService/CreateWorld"


def world(name: str) -> bytes:
    return worlds_pb2.CreateWorldRequest(
        name=name, request_id=str(uuid.uuid4())
    ).SerializeToString()


@pytest.mark.parametrize("grpc_timeout", ["0n", "1n", "0S"])
async def test_an_expired_mutation_changes_nothing(
    knowledge_base: RunningKnowledgeBase, grpc_timeout: str
) -> None:
    begun = time.monotonic()
    for number in range(20):
        status = await call(
            knowledge_base.address, CREATE_WORLD, world(f"late {number}"), grpc_timeout
        )
        assert status == DEADLINE_EXCEEDED
    assert time.monotonic() - begun < TIMEOUT_SECONDS / 2
    # The same call in time does its work.
    assert await call(knowledge_base.address, CREATE_WORLD, world("in time"), "10S") == "0"
    answer = await knowledge_base.stub.ListWorlds(
        worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS
    )
    assert [each.name for each in answer.worlds] == ["in time"]


async def test_an_expired_generation_never_reaches_a_model_server(
    model_server: ScriptedModelServer,
) -> None:
    report = ServerReport(
        server_id="b-1", endpoint_url=model_server.url, tier=Tier.BRONZE, model="m"
    )
    message = ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_USER, content="Who?")
    request = ai_router_pb2.GenerateOnceRequest(
        spec=ai_router_pb2.GenerationSpec(messages=[message], tier=tier_pb2.TIER_BRONZE)
    ).SerializeToString()
    path = "/gaming.ai_router.v1.AiRouterService/GenerateOnce"
    async with run_router(StaticFleetSource([report], SystemClock())) as running:
        for _ in range(20):
            assert await call(running.address, path, request, "1n") == DEADLINE_EXCEEDED
        assert await call(running.address, path, request, "10S") == "0"
    assert len(model_server.bodies) == 1
