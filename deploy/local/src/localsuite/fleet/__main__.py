"""`python -m localsuite.fleet`: the simulated GPU fleet as a process of its own."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

import aiohttp
import uvloop
from aiohttp import web

from fleetsim.vllm_http import SimulatedFleetServer
from localsuite.fleet.control import control_application
from localsuite.fleet.fleet import FleetSettings, SimulatedFleet
from localsuite.fleet.instance_feed import InstanceFeed
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.telemetry import Telemetry, TelemetrySettings, configure_logging

_NOTICE = (
    "These GPU hosts are simulated: no GPU, no model. Their servers answer with canned prose at "
    "the pace a real one would; their agents and all they send are real."
)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m localsuite.fleet",
        description="Plays a GPU host for every instance that the local AWS runs: a simulated "
        "model server and a real metrics agent. Prints one JSON line when ready.",
    )
    parser.add_argument("--aws-url", required=True, help="the local AWS, http://127.0.0.1:PORT")
    parser.add_argument(
        "--collector",
        action="append",
        required=True,
        metavar="HOST:PORT",
        help="a gpu_metrics collector; repeat for several",
    )
    parser.add_argument("--port", type=int, default=0, help="control port on 127.0.0.1; 0: free")
    parser.add_argument(
        "--time-compression",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="divides the phases of cold starts; requests and tokens keep their pace",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    parser.add_argument(
        "--log-format", choices=("json", "console"), default="json", help="of the log on stderr"
    )
    arguments = parser.parse_args(argv)
    if not arguments.time_compression > 0:
        parser.error("--time-compression must be positive")
    return arguments


async def _run(arguments: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(wanted, stopping.set)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            # One connection per server is kept alive for its agent's scrapes.
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0))
        )
        channels = {
            target: await stack.enter_async_context(open_channel(target))
            for target in arguments.collector
        }
        servers = await stack.enter_async_context(SimulatedFleetServer(seed=arguments.seed))
        fleet = SimulatedFleet(
            servers,
            channels,
            session,
            settings=FleetSettings(
                seed=arguments.seed, time_compression=arguments.time_compression
            ),
            clock=clock,
            telemetry=Telemetry("simulated_fleet"),
        )
        runner = web.AppRunner(control_application(fleet), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
        port = runner.addresses[0][1]
        ready = {
            "event": "ready",
            "control_url": f"http://127.0.0.1:{port}/_local",
            "simulation": True,
            "time_compression": arguments.time_compression,
            "seed": arguments.seed,
            "pid": os.getpid(),
        }
        print(json.dumps(ready), flush=True)
        await fleet.run(InstanceFeed(arguments.aws_url, session, clock), stopping)


def main(argv: Sequence[str] | None = None) -> int:
    """Play the fleet until SIGINT or SIGTERM and return the exit status."""
    arguments = _arguments(argv)
    print(_NOTICE, file=sys.stderr, flush=True)
    configure_logging(TelemetrySettings(log_format=arguments.log_format), "simulated_fleet")
    try:
        uvloop.run(_run(arguments))
    except OSError as error:
        print(f"the simulated fleet cannot start: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
