"""One of two model servers is killed with SIGKILL under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio

from ai_router.adapters.static_fleet import StaticFleetSource
from ai_router.domain.fleet import ServerReport
from ai_router.domain.tiers import Tier
from ai_router.testing.running_router import RunningRouter, run_router
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.common.v1 import tier_pb2
from servicekit.clock import SystemClock

SERVER_PROGRAM = """
import asyncio
from fleetsim.profiles import GOLD
from fleetsim.vllm_http import SimulatedFleetServer

async def main():
    async with SimulatedFleetServer(seed=1) as fleet:
        print(await fleet.add_server("victim", GOLD), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
CALLERS = 12
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class ServerProcess:
    process: asyncio.subprocess.Process
    url: str

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def model_server_process() -> AsyncIterator[ServerProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER_PROGRAM, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            url = (await process.stdout.readline()).decode().strip()
        yield ServerProcess(process, url)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(slots=True)
class Tally:
    answered: int = 0
    broken_off: int = 0
    failed_before_first_token: int = 0
    silently_short: int = 0
    rescued: int = 0
    codes: set[grpc.StatusCode] = field(default_factory=set)


async def one_call(running: RunningRouter, number: int, tally: Tally) -> None:
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=f"What is behind door {number}?")
    spec = pb.GenerationSpec(
        messages=[message], tier=tier_pb2.TIER_GOLD, max_output_tokens=24, forbid_fallback=True
    )
    call = running.stub.Generate(pb.GenerateRequest(spec=spec), timeout=TIMEOUT_SECONDS)
    begun, ended = False, False
    try:
        async for response in call:
            begun = True
            if response.WhichOneof("event") == "route" and response.route.failed_attempts:
                tally.rescued += 1
            ended = response.WhichOneof("event") == "end"
    except grpc.aio.AioRpcError as error:
        tally.codes.add(error.code())
        if begun:
            tally.broken_off += 1
        else:
            tally.failed_before_first_token += 1
        return
    if ended:
        tally.answered += 1
    else:
        tally.silently_short += 1


async def test_no_call_fails_before_its_first_token_and_none_is_cut_short_silently() -> None:
    async with model_server_process() as victim, model_server_process() as survivor:
        reports = [
            ServerReport(
                server_id=name,
                endpoint_url=server.url,
                tier=Tier.GOLD,
                model="gamekeeper-gold-3b",
            )
            for name, server in (("victim", victim), ("survivor", survivor))
        ]
        async with run_router(StaticFleetSource(reports, SystemClock())) as running:
            tally = Tally()
            stop = asyncio.Event()

            async def caller(offset: int) -> None:
                number = offset
                while not stop.is_set():
                    await one_call(running, number, tally)
                    number += CALLERS

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                for offset in range(CALLERS):
                    group.create_task(caller(offset))
                while tally.answered < 2 * CALLERS:  # noqa: ASYNC110  # both servers are in use
                    await asyncio.sleep(0.01)
                victim.kill()
                at_kill = tally.answered
                while tally.answered < at_kill + 4 * CALLERS:  # noqa: ASYNC110  # work goes on
                    await asyncio.sleep(0.01)
                stop.set()
            tiers = await running.stub.ListTiers(pb.ListTiersRequest(), timeout=TIMEOUT_SECONDS)
    print(json.dumps({"answered": tally.answered, "broken_off": tally.broken_off}))
    assert tally.failed_before_first_token == 0
    assert tally.silently_short == 0
    assert tally.codes <= {grpc.StatusCode.UNAVAILABLE}
    # At most what ran on the victim when it died was broken off, and its callers were told.
    assert tally.broken_off <= CALLERS
    states = {server.server_id: server.state for server in tiers.tiers[0].servers}
    assert states["victim"] == pb.ROUTER_SERVER_STATE_BROKEN
    assert states["survivor"] == pb.ROUTER_SERVER_STATE_READY
