"""A whole service process: how it starts, refuses to start, stops and fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel

SERVICE = """
import asyncio
import sys
from dataclasses import dataclass

from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from servicekit.runtime import run_service
from servicekit.server import ServerSettings, ServiceRegistration
from servicekit.settings import setting
from servicekit.telemetry import TelemetrySettings

FAILURES = ("", "task", "task during a call", "bug")
entered = asyncio.Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySettings:
    server: ServerSettings
    telemetry: TelemetrySettings
    hold_seconds: float = setting("TINY_HOLD_SECONDS", help="how long a call takes", default=0.0)
    mode: str = setting("TINY_MODE", help="what fails", default="", choices=FAILURES)
    token: str = setting("TINY_TOKEN", help="a secret", secret=True, default="")


class Servicer(autoscaler_pb2_grpc.AutoscalerServiceServicer):
    def __init__(self, settings):
        self.settings = settings

    async def GetTier(self, request, context):
        print("entered", flush=True)
        entered.set()
        await asyncio.sleep(self.settings.hold_seconds)
        return autoscaler_pb2.GetTierResponse(tier=autoscaler_pb2.TierState(desired=3))

    async def WatchDecisions(self, request, context):
        yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.1")
        await asyncio.Event().wait()


async def main(settings, runtime):
    async def background():
        if settings.mode == "task":
            raise RuntimeError("the background work failed")
        if settings.mode == "task during a call":
            await entered.wait()
            raise RuntimeError("the background work failed")
        try:
            await asyncio.Event().wait()
        finally:
            print("background ended", flush=True)

    if settings.mode == "bug":
        raise LookupError("wrong from the start")
    registration = ServiceRegistration.of(
        autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
        Servicer(settings),
        autoscaler_pb2.DESCRIPTOR.services_by_name["AutoscalerService"],
    )
    await runtime.serve([registration], settings.server, background)


if __name__ == "__main__":
    sys.exit(run_service("tiny", TinySettings, main))
"""

GOLD = autoscaler_pb2.GetTierRequest(tier=tier_pb2.TIER_GOLD)


class Service:
    """The process and what it wrote to stderr so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def event(self, name: str) -> dict[str, Any]:
        """Returns the next log line of the event `name`."""
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            async for raw in self.process.stderr:
                self.lines.append(raw.decode())
                with suppress(json.JSONDecodeError):
                    entry = json.loads(raw)
                    if isinstance(entry, dict) and entry.get("event") == name:
                        return entry
        raise AssertionError(f"no {name} in {self.lines}")

    async def ended(self) -> int:
        """Returns the exit code, having read the rest of the log."""
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            self.lines += (await self.process.stderr.read()).decode().splitlines(keepends=True)
            return await self.process.wait()

    async def output_line(self) -> bytes:
        assert self.process.stdout is not None
        return await asyncio.wait_for(self.process.stdout.readline(), 60)

    @property
    def log(self) -> str:
        return "".join(self.lines)


@asynccontextmanager
async def start(tmp_path: Path, **environ: str) -> AsyncIterator[Service]:
    program = tmp_path / "tiny_service.py"
    program.write_text(SERVICE)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        env={"PATH": os.environ["PATH"]} | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Service(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else it warns when collected


def stub_of(channel: grpc.aio.Channel) -> Any:
    return autoscaler_pb2_grpc.AutoscalerServiceStub(channel)


async def test_wrong_settings_are_all_listed_and_nothing_starts(tmp_path: Path) -> None:
    async with start(
        tmp_path,
        GAMEKEEPER_LOG_LEVEL="loud",
        TINY_HOLD_SECONDS="soon",
        GAMEKEEPER_DRAIN_SECONDS="-1",
    ) as service:
        assert await service.ended() == 2
    assert service.log.startswith("tiny cannot start: 3 settings wrong\n")
    assert "  TINY_HOLD_SECONDS='soon' is wrong: must be a number\n" in service.log
    assert "GAMEKEEPER_LOG_LEVEL='loud' is wrong: allowed are debug, info" in service.log
    assert "GAMEKEEPER_DRAIN_SECONDS='-1' is wrong: must be from 0 to 600" in service.log
    assert "Traceback" not in service.log


async def test_settings_that_do_not_fit_together_are_refused_too(tmp_path: Path) -> None:
    async with start(
        tmp_path,
        GAMEKEEPER_LISTEN_ADDRESS="0.0.0.0:0",
        GAMEKEEPER_TLS_CA_FILE=str(tmp_path / "none.pem"),
    ) as service:
        assert await service.ended() == 2
    assert "tiny cannot start: 3 settings wrong" in service.log
    assert "there is no such file" in service.log


async def test_a_port_in_use_is_a_usage_error_in_one_line(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, start(tmp_path, GAMEKEEPER_LISTEN_ADDRESS=address) as service:
        assert await service.ended() == 2
    assert f"GAMEKEEPER_LISTEN_ADDRESS='{address}' cannot be served" in service.log
    assert "Traceback" not in service.log


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_one_table_shows_the_settings_without_secrets(
    tmp_path: Path, log_format: str
) -> None:
    async with start(
        tmp_path, TINY_TOKEN="hunter2", TINY_MODE="bug", GAMEKEEPER_LOG_FORMAT=log_format
    ) as service:
        assert await service.ended() == 1
    assert "hunter2" not in service.log
    assert "(redacted)" in service.log
    assert service.log.count("TINY_HOLD_SECONDS") == 1
    assert service.log.count("GAMEKEEPER_TLS_KEY_FILE") >= 1


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_finishes_calls_ends_streams_and_exits_cleanly(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    async with start(tmp_path, TINY_HOLD_SECONDS="1.0") as service:
        address = (await service.event("server_started"))["address"]
        async with open_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            states = health_pb2.HealthCheckResponse
            watching = aiter(health.Watch(health_pb2.HealthCheckRequest(), timeout=20))
            while (await anext(watching)).status != states.SERVING:
                pass
            stream = aiter(stub_of(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest()))
            await anext(stream)
            call = stub_of(channel).GetTier(GOLD)
            calling = asyncio.ensure_future(finish(call))
            assert await service.output_line() == b"entered\n"
            service.process.send_signal(signal_number)
            assert (await anext(watching)).status == states.NOT_SERVING
            assert not calling.done(), "health must turn before calls are finished"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(stream)
            assert (await calling).tier.desired == 3
        assert await service.ended() == 0
        assert await service.output_line() == b"background ended\n"
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "service_stopped" in service.log


async def finish(call: Any) -> Any:
    return await call


async def test_a_call_longer_than_the_drain_does_not_keep_the_process(tmp_path: Path) -> None:
    async with start(tmp_path, TINY_HOLD_SECONDS="60", GAMEKEEPER_DRAIN_SECONDS="0.2") as service:
        address = (await service.event("server_started"))["address"]
        async with open_channel(address) as channel:
            calling = asyncio.ensure_future(finish(stub_of(channel).GetTier(GOLD, timeout=30)))
            assert await service.output_line() == b"entered\n"
            service.process.terminate()
            with pytest.raises(grpc.aio.AioRpcError):
                await calling
        assert await service.ended() == 0


async def test_failed_background_work_takes_the_service_down(tmp_path: Path) -> None:
    async with start(tmp_path, TINY_MODE="task") as service:
        assert await service.ended() == 1
    assert "service_failed" in service.log
    assert "the background work failed" in service.log


async def test_calls_under_way_are_finished_when_background_work_fails(tmp_path: Path) -> None:
    async with start(tmp_path, TINY_MODE="task during a call", TINY_HOLD_SECONDS="0.5") as service:
        address = (await service.event("server_started"))["address"]
        async with open_channel(address) as channel:
            stream = aiter(stub_of(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest()))
            await anext(stream)
            assert (await stub_of(channel).GetTier(GOLD)).tier.desired == 3
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(stream)
        assert await service.ended() == 1
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the background work failed" in service.log


async def test_a_service_that_fails_to_start_says_why_in_its_log(tmp_path: Path) -> None:
    async with start(tmp_path, TINY_MODE="bug") as service:
        assert await service.ended() == 1
    (failure,) = [json.loads(line) for line in service.lines if "service_failed" in line]
    assert failure["level"] == "error"
    assert failure["service"] == "tiny"
    assert "LookupError" in json.dumps(failure["exception"])


async def test_an_absent_telemetry_collector_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    async with start(
        tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", GAMEKEEPER_DRAIN_SECONDS="0"
    ) as service:
        address = (await service.event("server_started"))["address"]
        async with open_channel(address) as channel:
            await stub_of(channel).GetTier(GOLD)
        service.process.terminate()
        async with asyncio.timeout(60):
            assert await service.ended() == 0
