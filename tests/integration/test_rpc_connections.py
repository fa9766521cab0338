"""One channel, many streams: connections are opened as a real collector's limit asks for them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import psutil
import pytest

from gamekeeper.addresses import Addresses
from gamekeeper.client import GamekeeperClient
from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.testing import CollectorForTest, collector_for_test
from servicekit import managed_channel
from servicekit.channels import ChannelSettings, open_channel
from servicekit.settings import load_settings
from servicekit.transport_limits import STREAMS_PER_CONNECTION

TIMEOUT_SECONDS = 60.0


@pytest.fixture
async def collector() -> AsyncIterator[CollectorForTest]:
    async with collector_for_test() as running:
        yield running


def channel_to(collector: CollectorForTest, **environ: str) -> grpc.aio.Channel:
    return open_channel(collector.address, load_settings(ChannelSettings, environ))


def stub_of(channel: grpc.aio.Channel) -> Any:
    return gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)


def connections_to(address: str) -> int:
    port = int(address.rpartition(":")[2])
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.raddr.port == port
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr
    )


async def open_streams(channel: grpc.aio.Channel, count: int) -> list[Any]:
    """Opens streams, 100 at once, and returns them when each has brought its first message.

    More at once than a server takes up in one turn are partly ended with CANCELLED and repeated,
    which is another matter.
    """
    stub = stub_of(channel)
    request = gpu_metrics_pb2.WatchFleetRequest()
    streams: list[Any] = []
    async with asyncio.timeout(TIMEOUT_SECONDS / 2):
        while len(streams) < count:
            at_once = min(100, count - len(streams))
            opened = [stub.WatchFleet(request, timeout=TIMEOUT_SECONDS) for _ in range(at_once)]
            first = await asyncio.gather(*(stream.read() for stream in opened))
            assert all(message.HasField("snapshot") for message in first)
            streams += opened
    return streams


async def until_connections(address: str, count: int) -> None:
    async with asyncio.timeout(10):
        while connections_to(address) != count:  # noqa: ASYNC110  # the sockets are gRPC's
            await asyncio.sleep(0.02)


async def test_more_streams_than_a_connection_carries_are_all_served(
    collector: CollectorForTest,
) -> None:
    async with channel_to(collector) as channel:
        streams = await open_streams(channel, 2 * STREAMS_PER_CONNECTION + 50)
        # Calls have room beside them, too.
        await stub_of(channel).GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=5)
        assert connections_to(collector.address) == 3
        for stream in streams:
            stream.cancel()


async def test_the_sdk_carries_more_streams_than_a_connection(collector: CollectorForTest) -> None:
    unused = "127.0.0.1:9"
    addresses = Addresses(
        gpu_metrics=collector.address, autoscaler=unused, ai_router=unused, knowledge_base=unused
    )
    async with GamekeeperClient.open(addresses, environ={}) as gamekeeper:
        streams = [
            gamekeeper.gpu_metrics.WatchFleet(
                gpu_metrics_pb2.WatchFleetRequest(), timeout=TIMEOUT_SECONDS
            )
            for _ in range(STREAMS_PER_CONNECTION + 20)
        ]
        async with asyncio.timeout(TIMEOUT_SECONDS / 2):
            first = await asyncio.gather(*(stream.read() for stream in streams))
        assert all(isinstance(each, gpu_metrics_pb2.WatchFleetResponse) for each in first)
        assert connections_to(collector.address) == 2
        for stream in streams:
            stream.cancel()


async def test_few_streams_take_one_connection(collector: CollectorForTest) -> None:
    async with channel_to(collector) as channel:
        await open_streams(channel, STREAMS_PER_CONNECTION)
        assert connections_to(collector.address) == 1


async def test_connections_are_bounded_and_further_calls_wait_their_turn(
    collector: CollectorForTest,
) -> None:
    async with channel_to(collector, GAMEKEEPER_CLIENT_MAX_CONNECTIONS="1") as channel:
        streams = await open_streams(channel, STREAMS_PER_CONNECTION)
        waiting = asyncio.ensure_future(
            stub_of(channel).GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=TIMEOUT_SECONDS)
        )
        async with channel_to(collector) as other:
            # This call came later and is answered, so the other one does not just take its time.
            await stub_of(other).GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=10)
        assert not waiting.done()
        streams.pop().cancel()
        async with asyncio.timeout(10):
            await waiting
        assert connections_to(collector.address) == 1


async def test_a_connection_that_nobody_needs_any_more_is_closed(
    collector: CollectorForTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed_channel, "_LOOK_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(managed_channel, "_SPARE_SECONDS", 0.0)
    async with channel_to(collector) as channel:
        streams = await open_streams(channel, STREAMS_PER_CONNECTION + 10)
        assert connections_to(collector.address) == 2
        for stream in streams[1:]:
            stream.cancel()
            await stream.code()
        del stream, streams[1:]  # gRPC keeps a connection as long as a call of it is kept
        await stub_of(channel).GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=10)
        await until_connections(collector.address, 1)
        # The stream on the first connection goes on.
        assert streams[0].done() is False


async def test_closing_the_channel_ends_its_calls_and_closes_all_connections(
    collector: CollectorForTest,
) -> None:
    async def open_and_close() -> list[bool]:
        channel = channel_to(collector)
        streams = await open_streams(channel, STREAMS_PER_CONNECTION + 10)
        reading = [asyncio.ensure_future(stream.read()) for stream in streams]
        await channel.close()
        await asyncio.gather(*reading, return_exceptions=True)
        return [stream.cancelled() for stream in streams]

    assert all(await open_and_close())
    gc.collect()  # cancelled tasks and their calls refer to each other
    await until_connections(collector.address, 0)


async def test_a_stream_outlives_its_connections_age_while_calls_move_on() -> None:
    """The server asks clients to connect anew, and gives streams the time they may last."""
    async with (
        collector_for_test(
            heartbeat_seconds=0.1, server_environ={"GAMEKEEPER_CONNECTION_AGE_SECONDS": "0.3"}
        ) as collector,
        channel_to(collector) as channel,
    ):
        (stream,) = await open_streams(channel, 1)
        clock = asyncio.get_running_loop()
        end = clock.time() + 1.5  # five times the age
        while clock.time() < end:
            await stub_of(channel).GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=10)
            async with asyncio.timeout(10):
                assert (await stream.read()).HasField("heartbeat")
        # The stream's and one more, but for the moment between an old one's end and the next.
        await until_connections(collector.address, 2)
