"""A service out of file descriptors serves whom it serves, and takes new callers when some go."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from service_processes import ServiceProcess, collector_process

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc

SPARE = 20
"""Descriptors that the service may open beyond what it has when the limit is set."""
RECOVERY_SECONDS = 15.0
"""gRPC's core looks again a second after it found no descriptor, and each time takes as many of
those who went away as it has descriptors; a caller behind them has its turn at the second to fourth
look.
"""


def limit_descriptors(service: ServiceProcess) -> None:
    """Leaves the running service `SPARE` more descriptors than it has."""
    pid = service.process.pid
    limit = psutil.Process(pid).num_fds() + SPARE
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))


async def ask(channel: grpc.aio.Channel, timeout_seconds: float = 5.0) -> None:
    stub: Any = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)
    await stub.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=timeout_seconds)


def fresh_channel(address: str) -> grpc.aio.Channel:
    """A channel with a connection of its own."""
    return grpc.aio.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    )


async def test_out_of_descriptors_it_serves_its_callers_refuses_others_and_recovers_alone(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with (
        collector_process(tmp_path / "collector.log") as service,
        fresh_channel(service.address) as known,
    ):
        await ask(known)
        limit_descriptors(service)
        host, _, port = service.address.rpartition(":")
        process = psutil.Process(service.process.pid)
        before = process.num_fds()
        crowd = []
        try:
            # Connections that never say a word, opened as fast as they are taken.
            for _ in range(5 * SPARE):
                with contextlib.suppress(OSError):
                    crowd.append((await asyncio.open_connection(host, int(port)))[1])
            async with asyncio.timeout(10):
                while process.num_fds() < before + SPARE:  # noqa: ASYNC110 - another process acts
                    await asyncio.sleep(0.01)

            async with fresh_channel(service.address) as stranger:
                refused = None
                try:
                    await ask(stranger, timeout_seconds=1.0)
                except grpc.aio.AioRpcError as error:
                    refused = error.code()
            for _ in range(20):
                await ask(known, timeout_seconds=2.0)
            spent = sum(process.cpu_times()[:2])
            await asyncio.sleep(1.0)
            busy = sum(process.cpu_times()[:2]) - spent
        finally:
            for writer in crowd:
                writer.close()
        gone = time.monotonic()
        async with asyncio.timeout(30):
            while True:
                async with fresh_channel(service.address) as stranger:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await ask(stranger, timeout_seconds=1.0)
                        break
        recovered_seconds = time.monotonic() - gone
        figures = {
            "a new caller was told": refused.name if refused else "OK",
            "CPU while full, s/s": round(busy, 2),
            "new callers are taken again after, s": round(recovered_seconds, 2),
        }
        record_property("figures", figures)
        print(figures)
        assert refused in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert busy < 0.5  # it does not spin over connections that it cannot take
        assert recovered_seconds < RECOVERY_SECONDS
        await ask(known)
        assert service.process.returncode is None
