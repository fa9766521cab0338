"""What servicekit costs per unary call, against a bare grpc.aio server and channel.

    .venv/bin/python benchmarks/servicekit/interceptor_cost.py [--calls 4000] [--rounds 7]

Bare and full servers answer the same request in turn, in one process and one event loop, so that
the machine's mood meets both alike. The figure is process CPU time (client and server together) per
call, the least over the rounds; the ratio is what the suite pays for its defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import grpc.aio
import uvloop

from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings, ServiceRegistration
from servicekit.settings import load_settings
from servicekit.testing import servicer_with

_IN_FLIGHT = 20
_REQUEST = autoscaler_pb2.GetTierRequest(tier=tier_pb2.TIER_GOLD)


async def _echo(request: Any, context: Any) -> Any:
    return autoscaler_pb2.GetTierResponse(
        tier=autoscaler_pb2.TierState(tier=request.tier, desired=3)
    )


_ECHO = servicer_with(autoscaler_pb2_grpc.AutoscalerServiceServicer, GetTier=_echo)


async def _cpu_seconds_per_call(stub: Any, calls: int) -> float:
    async def worker() -> None:
        for _ in range(calls // _IN_FLIGHT):
            await stub.GetTier(_REQUEST, timeout=30)

    started = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(worker())
    return (time.process_time() - started) / (calls // _IN_FLIGHT * _IN_FLIGHT)


async def main(calls: int, rounds: int) -> None:
    """Prints CPU microseconds per call for each combination and the ratios."""
    bare_server = grpc.aio.server()
    autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server(_ECHO, bare_server)
    port = bare_server.add_insecure_port("127.0.0.1:0")
    await bare_server.start()
    registration = ServiceRegistration.of(
        autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
        _ECHO,
        autoscaler_pb2.DESCRIPTOR.services_by_name["AutoscalerService"],
    )
    full_server = RpcServer([registration], load_settings(ServerSettings, {}), clock=SystemClock())
    async with (
        full_server,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as bare,
        grpc.aio.insecure_channel(full_server.address) as bare_to_full,
        open_channel(full_server.address) as full,
    ):
        stubs = {
            "bare client, bare server": autoscaler_pb2_grpc.AutoscalerServiceStub(bare),
            "bare client, full server": autoscaler_pb2_grpc.AutoscalerServiceStub(bare_to_full),
            "full client, full server": autoscaler_pb2_grpc.AutoscalerServiceStub(full),
        }
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name, stub in stubs.items():
                seconds = await _cpu_seconds_per_call(stub, calls)
                best[name] = min(best.get(name, seconds), seconds)
        floor = best["bare client, bare server"]
        for name, seconds in best.items():
            print(f"{name}: {seconds * 1e6:6.1f} µs/call, ratio {seconds / floor:.2f}")
    await bare_server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cost of servicekit per unary call.")
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    uvloop.run(main(arguments.calls, arguments.rounds))
