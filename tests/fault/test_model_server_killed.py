"""One of two model servers is killed, or freezes, under load."""

from __future__ import annotations

import asyncio
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

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)


@asynccontextmanager
async def model_server_process() -> AsyncIterator[ServerProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER_PROGRAM, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
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


@asynccontextmanager
async def two_servers_under_load(
    **environ: str,
) -> AsyncIterator[tuple[ServerProcess, RunningRouter, Tally]]:
    """Yields the server to hurt, the router, and what callers saw so far."""
    async with model_server_process() as victim, model_server_process() as survivor:
        reports = [
            ServerReport(
                server_id=name, endpoint_url=server.url, tier=Tier.GOLD, model="gamekeeper-gold-3b"
            )
            for name, server in (("victim", victim), ("survivor", survivor))
        ]
        source = StaticFleetSource(reports, SystemClock())
        # Calls that a busy machine keeps waiting are not to be turned away: here it is who answers.
        patient = {"GAMEKEEPER_SHED_WAIT_SECONDS": "60", **environ}
        async with run_router(source, patient) as running:
            tally, stop = Tally(), asyncio.Event()

            async def caller(offset: int) -> None:
                number = offset
                while not stop.is_set():
                    await one_call(running, number, tally)
                    number += CALLERS

            async with asyncio.timeout(80), asyncio.TaskGroup() as group:
                for offset in range(CALLERS):
                    group.create_task(caller(offset))
                await answered(tally, 2 * CALLERS)  # both servers are in use
                try:
                    yield victim, running, tally
                finally:
                    stop.set()


async def answered(tally: Tally, count: int) -> None:
    while tally.answered < count:  # noqa: ASYNC110  # counted by many callers
        await asyncio.sleep(0.01)


async def state_of(running: RunningRouter, server_id: str) -> pb.RouterServerState.ValueType:
    tiers = await running.stub.ListTiers(pb.ListTiersRequest(), timeout=TIMEOUT_SECONDS)
    return next(s.state for s in tiers.tiers[0].servers if s.server_id == server_id)


async def until_broken(running: RunningRouter, server_id: str) -> None:
    broken = pb.ROUTER_SERVER_STATE_BROKEN
    async with asyncio.timeout(30):
        while await state_of(running, server_id) != broken:  # noqa: ASYNC110  # asked by RPC
            await asyncio.sleep(0.05)


async def test_a_killed_server_costs_no_call_before_its_first_token() -> None:
    async with two_servers_under_load() as (victim, running, tally):
        victim.kill()
        await answered(tally, tally.answered + 4 * CALLERS)
        await until_broken(running, "victim")
        assert await state_of(running, "survivor") == pb.ROUTER_SERVER_STATE_READY
    assert tally.failed_before_first_token == 0
    assert tally.silently_short == 0
    # At most what ran on the victim when it died was broken off, and its callers were told.
    assert tally.broken_off <= CALLERS
    assert tally.codes <= {grpc.StatusCode.UNAVAILABLE}


async def test_a_frozen_server_costs_no_call_before_its_first_token() -> None:
    settings = {
        "AI_ROUTER_GOLD_FIRST_TOKEN_TIMEOUT_SECONDS": "4",
        "AI_ROUTER_IDLE_TIMEOUT_SECONDS": "4",
        "AI_ROUTER_BREAKER_FIRST_PAUSE_SECONDS": "30",
    }
    async with two_servers_under_load(**settings) as (victim, running, tally):
        victim.freeze()
        await until_broken(running, "victim")
        await answered(tally, tally.answered + 2 * CALLERS)
    assert tally.failed_before_first_token == 0
    assert tally.silently_short == 0
    assert tally.broken_off <= CALLERS
    assert tally.codes <= {grpc.StatusCode.UNAVAILABLE}
