"""What every service's server and channel do, over real sockets."""

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
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.errors import FieldViolation, InvalidRequest, NotFound
from servicekit.server import RpcServer, ServerSettings, ServiceRegistration
from servicekit.settings import SettingsError, load_settings
from servicekit.streams import ResumableLog
from servicekit.testing import serve_for_test, servicer_with
from servicekit.watching import watch

SERVICE = "gaming.autoscaler.v1.AutoscalerService"
GOLD = autoscaler_pb2.GetTierRequest(tier=tier_pb2.TIER_GOLD)
SECRET = "the database password is hunter2"


def autoscaler_with(**methods: Any) -> ServiceRegistration:
    return ServiceRegistration.of(
        autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
        servicer_with(autoscaler_pb2_grpc.AutoscalerServiceServicer, **methods),
        autoscaler_pb2.DESCRIPTOR.services_by_name["AutoscalerService"],
    )


def collector_with(**methods: Any) -> ServiceRegistration:
    (descriptor,) = (
        service
        for service in gpu_metrics_pb2.DESCRIPTOR.services_by_name.values()
        if "StreamReports" in service.methods_by_name
    )
    return ServiceRegistration.of(
        getattr(gpu_metrics_pb2_grpc, f"add_{descriptor.name}Servicer_to_server"),
        servicer_with(getattr(gpu_metrics_pb2_grpc, f"{descriptor.name}Servicer"), **methods),
        descriptor,
    )


def stub(kind: Any, channel: Any) -> Any:
    """The type stubs of these services know the blocking channel only."""
    return kind(channel)


def stub_of(channel: grpc.aio.Channel) -> autoscaler_pb2_grpc.AutoscalerServiceAsyncStub:
    return autoscaler_pb2_grpc.AutoscalerServiceStub(channel)


def raw(channel: Any, path: str, kind: str = "unary_unary") -> Any:
    """A method that sends bytes as they are."""
    return getattr(channel, kind)(path)


async def answer(request: Any, context: Any) -> Any:
    return autoscaler_pb2.GetTierResponse(tier=autoscaler_pb2.TierState(tier=request.tier))


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    async def finish() -> None:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    return caught.value


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the call's interface
    assert status is not None, "every failure carries details"
    found: dict[str, Any] = {}
    for detail in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
        ):
            if detail.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind.FromString(detail.value)
    return found


def reason_of(error: grpc.aio.AioRpcError) -> str:
    return str(details_of(error)["ErrorInfo"].reason)


class TestErrors:
    async def test_a_service_error_arrives_with_code_message_and_details(self) -> None:
        async def missing(request: Any, context: Any) -> Any:
            raise NotFound("There is no tier gold.", metadata={"tier": "gold"})

        async with serve_for_test([autoscaler_with(GetTier=missing)]) as (_, channel):
            error = await failure_of(stub_of(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "There is no tier gold."
        info = details_of(error)["ErrorInfo"]
        assert (info.reason, info.domain, dict(info.metadata)) == (
            "NOT_FOUND",
            "gamekeeper",
            {"tier": "gold"},
        )

    async def test_an_unexpected_error_says_nothing_of_itself(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(request: Any, context: Any) -> Any:
            raise RuntimeError(SECRET)

        async with serve_for_test([autoscaler_with(GetTier=broken)]) as (_, channel):
            error = await failure_of(stub_of(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert reason_of(error) == "INTERNAL"
        assert "hunter2" not in repr(error) + str(error.trailing_metadata())
        assert "RuntimeError" not in repr(error)

    async def test_an_unexpected_error_in_the_middle_of_a_stream_says_nothing_of_itself(
        self,
    ) -> None:
        async def breaks(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.1")
            raise KeyError(SECRET)

        async with serve_for_test([autoscaler_with(WatchDecisions=breaks)]) as (_, channel):
            call = stub_of(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            assert (await anext(aiter(call))).resume_token == "e.1"
            error = await failure_of(call)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in repr(error)

    async def test_a_service_error_in_the_middle_of_a_stream_keeps_its_details(self) -> None:
        async def breaks(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.1")
            raise NotFound("The tier is gone.")

        async with serve_for_test([autoscaler_with(WatchDecisions=breaks)]) as (_, channel):
            error = await failure_of(
                stub_of(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            )
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert reason_of(error) == "NOT_FOUND"

    async def test_an_error_in_a_handlers_task_group_is_mapped_like_any_other(self) -> None:
        async def fail() -> None:
            raise NotFound("There is no tier gold.")

        async def grouped(request: Any, context: Any) -> Any:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())

        async with serve_for_test([autoscaler_with(GetTier=grouped)]) as (_, channel):
            error = await failure_of(stub_of(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.NOT_FOUND

    async def test_a_timeout_inside_a_handler_is_a_deadline_exceeded(self) -> None:
        async def slow(request: Any, context: Any) -> Any:
            raise TimeoutError(SECRET)

        async with serve_for_test([autoscaler_with(GetTier=slow)]) as (_, channel):
            error = await failure_of(stub_of(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "hunter2" not in repr(error)

    async def test_an_error_too_large_for_the_trailers_still_arrives_as_itself(self) -> None:
        async def verbose(request: Any, context: Any) -> Any:
            raise InvalidRequest(
                "ü" * 5000,
                metadata={"much": "m" * 5000},
                field_violations=[FieldViolation(f"field_{i}", "é" * 400) for i in range(50)],
            )

        async with serve_for_test([autoscaler_with(GetTier=verbose)]) as (_, channel):
            error = await failure_of(stub_of(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(error) == "INVALID_REQUEST"

    async def test_an_unknown_method_is_unimplemented(self) -> None:
        async with serve_for_test([autoscaler_with()]) as (_, channel):
            error = await failure_of(raw(channel, f"/{SERVICE}/Nothing")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


class TestRequests:
    async def test_malformed_bytes_are_an_invalid_argument_without_python_text(self) -> None:
        async with serve_for_test([autoscaler_with(GetTier=answer)]) as (_, channel):
            error = await failure_of(raw(channel, f"/{SERVICE}/GetTier")(b"\xff\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(error) == "INVALID_REQUEST"
        for python_text in ("DecodeError", "Traceback", "Exception", "parsing", "google"):
            assert python_text not in (error.details() or "")

    async def test_malformed_bytes_in_a_request_stream_are_an_invalid_argument(self) -> None:
        async def read(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for _ in requests:
                yield gpu_metrics_pb2.StreamReportsResponse()

        registration = collector_with(StreamReports=read)
        async with serve_for_test([registration]) as (_, channel):
            path = f"/{registration.full_name}/StreamReports"
            error = await failure_of(raw(channel, path, "stream_stream")(iter([b"\xff\xff\xff"])))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_validation_lists_every_wrong_field(self) -> None:
        request = autoscaler_pb2.SetOverrideRequest(
            override=autoscaler_pb2.Override(reason="", set_by="x" * 300), request_id="no-uuid"
        )
        async with serve_for_test([autoscaler_with()]) as (_, channel):
            error = await failure_of(stub_of(channel).SetOverride(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        fields = {item.field for item in details_of(error)["BadRequest"].field_violations}
        assert {
            "tier",
            "override.kind",
            "override.reason",
            "override.expire_time",
            "override.set_by",
            "request_id",
        } <= fields

    async def test_an_oversized_message_is_refused(self) -> None:
        async with serve_for_test([autoscaler_with(GetTier=answer)]) as (_, channel):
            error = await failure_of(
                raw(channel, f"/{SERVICE}/GetTier")(b"\x00" * (1024 * 1024 + 1))
            )
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_oversized_metadata_is_refused(self) -> None:
        async with serve_for_test([autoscaler_with(GetTier=answer)]) as (_, channel):
            error = await failure_of(
                stub_of(channel).GetTier(GOLD, metadata=[("x-much", "m" * 20_000)])
            )
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


class TestDeadlines:
    async def test_a_caller_without_a_deadline_is_capped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        limit_interactive_calls(monkeypatch, 0.05)
        async with (
            serve_for_test([autoscaler_with(GetTier=endless)]) as (server, _),
            grpc.aio.insecure_channel(server.address) as bare,
        ):
            error = await failure_of(stub_of(bare).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "set a deadline" in (error.details() or "")
        assert ended.is_set()

    async def test_a_stream_that_reached_its_greatest_age_asks_to_be_resumed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def endless(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.1")
            await asyncio.Event().wait()

        limit_interactive_calls(monkeypatch, 0.05)
        async with (
            serve_for_test([autoscaler_with(WatchDecisions=endless)]) as (server, _),
            grpc.aio.insecure_channel(server.address) as bare,
        ):
            error = await failure_of(
                stub_of(bare).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            )
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "STREAM_EXPIRED"

    async def test_our_channel_sets_the_methods_deadline_when_the_caller_sets_none(self) -> None:
        seen: list[float] = []

        async def look(request: Any, context: Any) -> Any:
            seen.append(context.time_remaining())
            return autoscaler_pb2.GetTierResponse()

        async with serve_for_test([autoscaler_with(GetTier=look)]) as (_, channel):
            await stub_of(channel).GetTier(GOLD)
            await stub_of(channel).GetTier(GOLD, timeout=3)
        assert 8 < seen[0] < 10.5
        assert 2 < seen[1] < 3.5

    async def test_the_handler_ends_at_the_callers_deadline(self) -> None:
        ended = asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(GetTier=endless)]) as (_, channel):
            error = await failure_of(stub_of(channel).GetTier(GOLD, timeout=0.1))
            await asyncio.wait_for(ended.wait(), 1)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def limit_interactive_calls(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    from servicekit import method_policies  # noqa: PLC0415  # patched here only

    shortened = dict.fromkeys(method_policies.DEADLINE_SECONDS, seconds)
    monkeypatch.setattr(method_policies, "DEADLINE_SECONDS", shortened)


class TestLimits:
    async def test_more_calls_than_the_limit_are_told_when_to_come_back(self) -> None:
        entered, release = asyncio.Event(), asyncio.Event()

        async def hold(request: Any, context: Any) -> Any:
            entered.set()
            await release.wait()
            return autoscaler_pb2.GetTierResponse()

        async with serve_for_test(
            [autoscaler_with(GetTier=hold)], GAMEKEEPER_MAX_CONCURRENT_CALLS="1"
        ) as (_, channel):
            first = stub_of(channel).GetTier(GOLD)
            await entered.wait()
            error = await failure_of(stub_of(channel).GetTier(GOLD))
            release.set()
            await first
            await stub_of(channel).GetTier(GOLD)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(error) == "OVERLOADED"
        assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() == 1000

    async def test_streams_do_not_count_as_calls(self) -> None:
        async def stay(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.0")
            await asyncio.Event().wait()

        request = autoscaler_pb2.WatchDecisionsRequest()
        async with serve_for_test(
            [autoscaler_with(GetTier=answer, WatchDecisions=stay)],
            GAMEKEEPER_MAX_CONCURRENT_CALLS="1",
            GAMEKEEPER_MAX_CONCURRENT_STREAMS="1",
        ) as (_, channel):
            stream = stub_of(channel).WatchDecisions(request)
            await anext(aiter(stream))
            await stub_of(channel).GetTier(GOLD)
            error = await failure_of(stub_of(channel).WatchDecisions(request))
            stream.cancel()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_a_cancelled_stream_gives_its_place_back(self) -> None:
        left = asyncio.Event()

        async def stay(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.0")
                await asyncio.Event().wait()
            finally:
                left.set()

        request = autoscaler_pb2.WatchDecisionsRequest()
        async with serve_for_test(
            [autoscaler_with(WatchDecisions=stay)], GAMEKEEPER_MAX_CONCURRENT_STREAMS="1"
        ) as (_, channel):
            for _ in range(3):
                left.clear()
                stream = stub_of(channel).WatchDecisions(request)
                await anext(aiter(stream))
                stream.cancel()
                await asyncio.wait_for(left.wait(), 1)


class TestCancellation:
    async def test_a_clients_cancel_reaches_a_unary_handler(self) -> None:
        entered, ended = asyncio.Event(), asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(GetTier=endless)]) as (_, channel):
            call = stub_of(channel).GetTier(GOLD)
            await entered.wait()
            call.cancel()
            await asyncio.wait_for(ended.wait(), 1)

    async def test_a_clients_cancel_ends_a_stream_whose_reader_does_not_read(self) -> None:
        """The handler is stuck in flow control then, not in its own code."""
        filling, ended = asyncio.Event(), asyncio.Event()
        large = autoscaler_pb2.Decision(summary="s" * 500_000)

        async def flood(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                for number in range(1000):
                    if number == 3:
                        filling.set()
                    yield autoscaler_pb2.WatchDecisionsResponse(decision=large)
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(WatchDecisions=flood)]) as (_, channel):
            stream = stub_of(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            await anext(aiter(stream))
            await asyncio.wait_for(filling.wait(), 5)
            assert not ended.is_set()
            stream.cancel()
            await asyncio.wait_for(ended.wait(), 1)

    async def test_a_client_that_dies_ends_the_handler(self) -> None:
        ended = asyncio.Event()

        async def stay(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.0")
                await asyncio.Event().wait()
            finally:
                ended.set()

        client = """
import sys, grpc
from gaming.autoscaler.v1 import autoscaler_pb2 as pb2, autoscaler_pb2_grpc as pb2_grpc
stub = pb2_grpc.AutoscalerServiceStub(grpc.insecure_channel(sys.argv[1]))
for response in stub.WatchDecisions(pb2.WatchDecisionsRequest()):
    print(response.resume_token, flush=True)
"""
        async with serve_for_test([autoscaler_with(WatchDecisions=stay)]) as (server, _):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", client, server.address), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 10) == b"e.0\n"
            assert not ended.is_set()
            process.kill()
            await process.communicate()
            await asyncio.wait_for(ended.wait(), 1)


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
            stopping = asyncio.create_task(server.stop(30))
            assert (await anext(watched)).status == states.NOT_SERVING
            # The watcher stays connected for as long as it likes; that does not hold up the stop.
            await asyncio.wait_for(stopping, 5)

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


def run_probe(address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servicekit.health_probe", address],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


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
            [autoscaler_with(GetTier=answer)], GAMEKEEPER_ADMIN_ADDRESS="127.0.0.1:0"
        ) as (server, channel):
            await stub_of(channel).GetTier(GOLD)
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
            call = stub_of(channel).GetTier(GOLD)
            stream = stub_of(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            assert (await anext(aiter(stream))).resume_token == "e.7"
            await entered.wait()
            stopping = asyncio.create_task(server.stop(10))
            error = await asyncio.wait_for(failure_of(stream), 2)
            assert not stopping.done()
            release.set()
            assert (await call).tier.desired == 3
            await asyncio.wait_for(stopping, 5)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "SHUTTING_DOWN"

    async def test_a_stream_whose_reader_is_slow_does_not_hold_up_the_stop(self) -> None:
        large = autoscaler_pb2.Decision(summary="s" * 500_000)

        async def flood(request: Any, context: Any) -> AsyncIterator[Any]:
            while True:
                yield autoscaler_pb2.WatchDecisionsResponse(decision=large)

        async with serve_for_test([autoscaler_with(WatchDecisions=flood)]) as (server, channel):
            stream = stub_of(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            await anext(aiter(stream))
            await asyncio.wait_for(server.stop(0.5), 5)

    async def test_calls_that_outlast_the_drain_are_ended(self) -> None:
        entered = asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            entered.set()
            await asyncio.Event().wait()

        async with serve_for_test([autoscaler_with(GetTier=endless)]) as (server, channel):
            call = stub_of(channel).GetTier(GOLD)
            await entered.wait()
            await asyncio.wait_for(server.stop(0.1), 3)
            error = await failure_of(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE

    async def test_stopping_twice_and_stopping_the_unstarted_do_nothing(self) -> None:
        settings = load_settings(ServerSettings, {})
        await RpcServer([autoscaler_with()], settings, clock=SystemClock()).stop()
        async with serve_for_test([autoscaler_with()]) as (server, _):
            await server.stop(0)
            await server.stop(0)


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


class TestRetries:
    """The first tries fail inside a raw server, without response headers, so gRPC may retry."""

    async def tries(self, method: str, request: Any) -> tuple[int, grpc.aio.AioRpcError | None]:
        count = 0

        async def flaky(request: Any, context: Any) -> Any:
            nonlocal count
            count += 1
            if count < 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            kind = getattr(autoscaler_pb2, f"{method}Response")
            return kind()

        server = grpc.aio.server()
        autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server(
            servicer_with(autoscaler_pb2_grpc.AutoscalerServiceServicer, **{method: flaky}), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with open_channel(f"127.0.0.1:{port}") as channel:
                await getattr(stub_of(channel), method)(request)
                return count, None
        except grpc.aio.AioRpcError as error:
            return count, error
        finally:
            await server.stop(0)

    async def test_a_method_that_may_be_repeated_is(self) -> None:
        assert await self.tries("GetTier", GOLD) == (3, None)

    async def test_a_mutation_with_a_request_id_is_repeated(self) -> None:
        request = autoscaler_pb2.ClearOverrideRequest(tier=tier_pb2.TIER_GOLD, request_id="r")
        assert await self.tries("ClearOverride", request) == (3, None)

    async def test_a_method_that_must_not_be_repeated_is_not(self) -> None:
        from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc  # noqa: PLC0415  # here only

        count = 0

        async def away(request: Any, context: Any) -> Any:
            nonlocal count
            count += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

        (descriptor,) = (
            service
            for service in ai_router_pb2.DESCRIPTOR.services_by_name.values()
            if "GenerateOnce" in service.methods_by_name
        )
        server = grpc.aio.server()
        getattr(ai_router_pb2_grpc, f"add_{descriptor.name}Servicer_to_server")(
            servicer_with(
                getattr(ai_router_pb2_grpc, f"{descriptor.name}Servicer"), GenerateOnce=away
            ),
            server,
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            router: Any = getattr(ai_router_pb2_grpc, f"{descriptor.name}Stub")(channel)
            await failure_of(router.GenerateOnce(ai_router_pb2.GenerateOnceRequest()))
        await server.stop(0)
        assert count == 1


class TestWatching:
    """watch() and ResumableLog, joined by a real connection."""

    async def test_a_restarted_server_loses_nothing_that_its_successor_knows(self) -> None:
        log: ResumableLog[int] = ResumableLog(clock=SystemClock(), epoch="run1")

        async def feed(request: Any, context: Any) -> AsyncIterator[Any]:
            async for step in log.subscribe(request.resume_token):
                decision = autoscaler_pb2.Decision(desired=step.item) if step.item else None
                yield autoscaler_pb2.WatchDecisionsResponse(
                    resume_token=step.token, decision=decision
                )

        registration = autoscaler_with(WatchDecisions=feed)
        first_token = log.latest_token
        log.publish(1)
        async with serve_for_test([registration]) as (server, _):
            address = server.address
            channel = open_channel(address)
            messages = watch(
                lambda token: stub_of(channel).WatchDecisions(
                    autoscaler_pb2.WatchDecisionsRequest(resume_token=token or first_token)
                ),
                token_of=lambda message: message.resume_token,
                clock=SystemClock(),
                name="decisions",
            )
            assert (await anext(messages)).decision.desired == 1
        log.publish(2)  # while no server is there
        waiting = asyncio.ensure_future(read_desired(messages))
        async with serve_for_test([registration], GAMEKEEPER_LISTEN_ADDRESS=address):
            assert await asyncio.wait_for(waiting, 10) == 2
            log.publish(3)
            assert await asyncio.wait_for(read_desired(messages), 5) == 3
            await messages.aclose()
            await channel.close()

    async def test_ending_a_watch_cancels_the_call_on_the_server(self) -> None:
        log: ResumableLog[int] = ResumableLog(clock=SystemClock(), epoch="run1")
        ended = asyncio.Event()

        async def feed(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for step in log.subscribe(request.resume_token):
                    yield autoscaler_pb2.WatchDecisionsResponse(resume_token=step.token)
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(WatchDecisions=feed)]) as (_, channel):
            messages = watch(
                lambda token: stub_of(channel).WatchDecisions(
                    autoscaler_pb2.WatchDecisionsRequest(resume_token=token or "run1.0")
                ),
                token_of=lambda message: message.resume_token,
                clock=SystemClock(),
                name="decisions",
            )
            log.publish(1)
            await anext(messages)
            assert not ended.is_set()
            await messages.aclose()
            await asyncio.wait_for(ended.wait(), 1)

    async def test_a_silent_stream_is_cancelled_on_the_server(self) -> None:
        opened, ended = asyncio.Queue[None](), asyncio.Queue[None]()

        async def mute(request: Any, context: Any) -> AsyncIterator[Any]:
            opened.put_nowait(None)
            try:
                yield autoscaler_pb2.WatchDecisionsResponse(resume_token="run1.1")
                await asyncio.Event().wait()
            finally:
                ended.put_nowait(None)

        async with serve_for_test([autoscaler_with(WatchDecisions=mute)]) as (_, channel):
            messages = watch(
                lambda token: stub_of(channel).WatchDecisions(
                    autoscaler_pb2.WatchDecisionsRequest(resume_token=token)
                ),
                token_of=lambda message: message.resume_token,
                clock=SystemClock(),
                name="decisions",
                idle_timeout_seconds=0.2,
            )
            await anext(messages)
            waiting = asyncio.ensure_future(read_desired(messages))
            async with asyncio.timeout(5):
                await ended.get()
                await opened.get()
                await opened.get()
                await waiting
            await messages.aclose()


async def read_desired(messages: AsyncIterator[Any]) -> int:
    return int((await anext(messages)).decision.desired)


class TestTracing:
    async def test_the_callers_trace_goes_through_a_service_to_the_next(self) -> None:
        seen: list[str] = []

        async def last(request: Any, context: Any) -> Any:
            seen.append(dict(context.invocation_metadata())["traceparent"])
            return autoscaler_pb2.GetTierResponse()

        async with serve_for_test([autoscaler_with(GetTier=last)]) as (_, onward):

            async def pass_on(request: Any, context: Any) -> Any:
                return await stub_of(onward).GetTier(request)

            async with serve_for_test([autoscaler_with(GetTier=pass_on)]) as (_, channel):
                traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
                await stub_of(channel).GetTier(GOLD, metadata=[("traceparent", traceparent)])
        assert seen[0].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
