"""A server from start to stop: its address, health, inspection by operators, drain."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from autoscaler.testing.partial_service import (
    GOLD,
    SERVICE,
    answer_tier,
    autoscaler_stub,
    autoscaler_with,
)
from gaming.autoscaler.v1 import autoscaler_pb2
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings
from servicekit.settings import SettingsError, load_settings
from servicekit.testing import failure_of, reason_of, serve_for_test


def stub(kind: Any, channel: Any) -> Any:
    """The type stubs of these services know the blocking channel only."""
    return kind(channel)


class TestAddresses:
    @pytest.mark.parametrize("variable", ["GAMEKEEPER_LISTEN_ADDRESS", "GAMEKEEPER_ADMIN_ADDRESS"])
    async def test_a_port_in_use_is_named(self, variable: str) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            settings = load_settings(ServerSettings, {variable: address})
            server = RpcServer([autoscaler_with()], settings, clock=SystemClock())
            with pytest.raises(SettingsError) as caught:
                await server.start()
        assert variable in caught.value.problems[0]
        assert address in caught.value.problems[0]
        assert "another process has the port" in caught.value.problems[0]

    async def test_two_servers_cannot_share_a_port(self) -> None:
        async with serve_for_test([autoscaler_with()]) as (first, _):
            settings = load_settings(ServerSettings, {"GAMEKEEPER_LISTEN_ADDRESS": first.address})
            with pytest.raises(SettingsError, match="another process"):
                await RpcServer([autoscaler_with()], settings, clock=SystemClock()).start()

    async def test_plaintext_is_refused_off_loopback(self) -> None:
        with pytest.raises(SettingsError, match="only loopback"):
            open_channel("10.1.2.3:50062")
        settings = load_settings(ServerSettings, {"GAMEKEEPER_LISTEN_ADDRESS": "0.0.0.0:0"})
        with pytest.raises(SettingsError, match="plaintext is served on loopback only"):
            RpcServer([autoscaler_with()], settings, clock=SystemClock())


def run_probe(address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servicekit.health_probe", address],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


class TestHealth:
    async def test_health_follows_the_service_from_start_to_stop(self) -> None:
        server = RpcServer(
            [autoscaler_with()], load_settings(ServerSettings, {}), clock=SystemClock()
        )
        await server.start()
        async with open_channel(server.address) as channel:
            health = stub(health_pb2_grpc.HealthStub, channel)
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            states = health_pb2.HealthCheckResponse
            assert (await health.Check(request)).status == states.NOT_SERVING
            await server.set_serving(True)
            assert (await health.Check(request)).status == states.SERVING
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == states.SERVING
            await server.set_serving(False)
            assert (await health.Check(request)).status == states.NOT_SERVING
            await server.set_serving(True)
            watched = aiter(health.Watch(request, timeout=10))
            assert (await anext(watched)).status == states.SERVING
            stopping = asyncio.create_task(server.stop(100))
            assert (await anext(watched)).status == states.NOT_SERVING
            # The watcher stays connected for as long as it likes; that does not hold up the stop.
            await asyncio.wait_for(stopping, 30)

    async def test_health_of_an_unknown_service_is_not_found(self) -> None:
        async with serve_for_test([autoscaler_with()]) as (_, channel):
            error = await failure_of(
                stub(health_pb2_grpc.HealthStub, channel).Check(
                    health_pb2.HealthCheckRequest(service="no.Such")
                )
            )
        assert error.code() is grpc.StatusCode.NOT_FOUND

    @pytest.mark.parametrize("serving", [True, False])
    async def test_the_container_probe_agrees_with_health(self, serving: bool) -> None:
        async with serve_for_test([autoscaler_with()]) as (server, _):
            await server.set_serving(serving)
            probe = await asyncio.to_thread(run_probe, server.address)
        assert probe.returncode == (0 if serving else 1)
        assert probe.stderr == ("" if serving else f"{server.address}: not serving\n")

    async def test_the_container_probe_reports_a_dead_server(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unused.getsockname()[1]}"
            probe = await asyncio.to_thread(run_probe, address)
        assert probe.returncode == 1
        assert "refused" in probe.stderr


class TestInspection:
    async def test_reflection_lists_the_services_on_the_serving_port(self) -> None:
        async with serve_for_test([autoscaler_with()]) as (_, channel):
            reflection = stub(reflection_pb2_grpc.ServerReflectionStub, channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            names: set[str] = set()
            async for response in reflection.ServerReflectionInfo(iter([request])):
                names |= {item.name for item in response.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names

    async def test_channelz_is_served_on_the_admin_port_only(self) -> None:
        async with serve_for_test(
            [autoscaler_with(GetTier=answer_tier)], GAMEKEEPER_ADMIN_ADDRESS="127.0.0.1:0"
        ) as (server, channel):
            await autoscaler_stub(channel).GetTier(GOLD)
            async with open_channel(f"127.0.0.1:{server.admin_port}") as admin:
                servers = await stub(channelz_pb2_grpc.ChannelzStub, admin).GetServers(
                    channelz_pb2.GetServersRequest(start_server_id=0)
                )
            error = await failure_of(
                stub(channelz_pb2_grpc.ChannelzStub, channel).GetServers(
                    channelz_pb2.GetServersRequest(start_server_id=0)
                )
            )
        assert any(item.data.calls_started for item in servers.server)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


class TestStopping:
    async def test_running_calls_finish_and_streams_are_sent_elsewhere(self) -> None:
        entered, release = asyncio.Event(), asyncio.Event()

        async def hold(request: Any, context: Any) -> Any:
            entered.set()
            await release.wait()
            return autoscaler_pb2.GetTierResponse(tier=autoscaler_pb2.TierState(desired=3))

        async def stay(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.7")
            await asyncio.Event().wait()

        async with serve_for_test([autoscaler_with(GetTier=hold, WatchDecisions=stay)]) as (
            server,
            channel,
        ):
            call = autoscaler_stub(channel).GetTier(GOLD)
            stream = autoscaler_stub(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            assert (await anext(aiter(stream))).resume_token == "e.7"
            await entered.wait()
            stopping = asyncio.create_task(server.stop(100))
            error = await asyncio.wait_for(failure_of(stream), 30)
            assert not stopping.done()
            release.set()
            assert (await call).tier.desired == 3
            await asyncio.wait_for(stopping, 30)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "SHUTTING_DOWN"

    async def test_a_stream_whose_reader_is_slow_does_not_hold_up_the_stop(self) -> None:
        large = autoscaler_pb2.Decision(summary="s" * 500_000)

        async def flood(request: Any, context: Any) -> AsyncIterator[Any]:
            while True:
                yield autoscaler_pb2.WatchDecisionsResponse(decision=large)

        async with serve_for_test([autoscaler_with(WatchDecisions=flood)]) as (server, channel):
            stream = autoscaler_stub(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            await anext(aiter(stream))
            await asyncio.wait_for(server.stop(0.5), 30)

    async def test_calls_that_outlast_the_drain_are_ended(self) -> None:
        entered = asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            entered.set()
            await asyncio.Event().wait()

        async with serve_for_test([autoscaler_with(GetTier=endless)]) as (server, channel):
            call = autoscaler_stub(channel).GetTier(GOLD)
            await entered.wait()
            await asyncio.wait_for(server.stop(0.1), 30)
            error = await failure_of(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE

    async def test_stopping_twice_and_stopping_the_unstarted_do_nothing(self) -> None:
        settings = load_settings(ServerSettings, {})
        await RpcServer([autoscaler_with()], settings, clock=SystemClock()).stop()
        async with serve_for_test([autoscaler_with()]) as (server, _):
            await server.stop(0)
            await server.stop(0)
