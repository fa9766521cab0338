"""The game as a process: plays one evening against the services, and ends when all is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import grpc
import structlog
import uvloop

from fleetsim.players import PlayerCurve
from gamekeeper.addresses import Addresses
from gaming.ai_router.v1 import ai_router_pb2_grpc
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from localsuite.game.feed import Feed
from localsuite.game.players import evening_curve, players_online
from localsuite.game.requests import evening_requests
from localsuite.game.story import tell_story
from localsuite.game.traffic import Traffic, error_reason
from localsuite.game.world_events import tell_players, tell_world
from messaging.service_bus import open_publisher
from messaging.settings import MessagingSettings
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.settings import SettingsError, load_settings, setting

log = structlog.get_logger(__name__)

_SAMPLE_SECONDS = 0.5
_REPORT_PLAYERS_SECONDS = 2.0
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GameSettings:
    """Where the services are, and what kind of evening it is."""

    messaging: MessagingSettings
    router: str = setting("LOCALSUITE_GAME_ROUTER", help="address of the router")
    autoscaler: str = setting("LOCALSUITE_GAME_AUTOSCALER", help="address of the autoscaler")
    knowledge_base: str = setting(
        "LOCALSUITE_GAME_KNOWLEDGE_BASE", help="address of the knowledge base"
    )
    peak_players: int = setting(
        "LOCALSUITE_GAME_PLAYERS", default=1000, minimum=0, help="players online at the peak"
    )
    duration_seconds: float = setting(
        "LOCALSUITE_GAME_SECONDS", default=120.0, minimum=1, help="length of the evening"
    )
    seed: int = setting("LOCALSUITE_GAME_SEED", default=1, help="same seed, same players")
    requests_per_player_second: float = setting(
        "LOCALSUITE_GAME_REQUESTS_PER_PLAYER_SECOND",
        default=0.05,
        minimum=0,
        help="how often a player's game asks for text; the figure that decides the bill",
    )

    def addresses(self) -> Addresses:
        """The services as the SDK wants them."""
        return Addresses(
            autoscaler=self.autoscaler,
            ai_router=self.router,
            knowledge_base=self.knowledge_base,
        )


async def play(settings: GameSettings, feed: Feed) -> None:
    """Plays the evening and returns once the last request's fate is known."""
    curve = evening_curve(
        peak_players=settings.peak_players, duration_seconds=settings.duration_seconds
    )
    async with AsyncExitStack() as stack:
        routers = [
            ai_router_pb2_grpc.AiRouterServiceStub(
                await stack.enter_async_context(open_channel(settings.router))
            )
            for _ in range(_CONNECTIONS)
        ]
        traffic = Traffic(routers)
        autoscaler = autoscaler_pb2_grpc.AutoscalerServiceStub(
            await stack.enter_async_context(open_channel(settings.autoscaler))
        )
        publisher = None
        if settings.messaging.publishes:
            publisher = await stack.enter_async_context(
                open_publisher(settings.messaging, clock=SystemClock())
            )
        started = time.monotonic()
        async with asyncio.TaskGroup() as background:
            tasks = [
                background.create_task(_sample(traffic, curve, started, feed)),
                background.create_task(_report_players(autoscaler, curve, started)),
            ]
            if publisher is not None:
                tasks += [
                    background.create_task(
                        tell_world(
                            publisher, started=started, duration_seconds=settings.duration_seconds
                        )
                    ),
                    background.create_task(tell_players(publisher, curve, started=started)),
                ]
            story = background.create_task(
                tell_story(
                    settings.addresses(),
                    duration_seconds=settings.duration_seconds,
                    started=started,
                    hear=feed.story,
                )
            )
            async with traffic.open():
                await _send_all(traffic, curve, settings, started)
            await story
            for task in tasks:
                task.cancel()
        feed.finished(traffic.sample(at_seconds=time.monotonic() - started, players_online=0))


async def _send_all(
    traffic: Traffic, curve: PlayerCurve, settings: GameSettings, started: float
) -> None:
    requests = evening_requests(
        curve,
        requests_per_player_second=settings.requests_per_player_second,
        seed=settings.seed,
    )
    for request in requests:
        delay = started + request.at_seconds - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        traffic.send(request)
    remaining = started + curve.duration_seconds - time.monotonic()
    await asyncio.sleep(max(0.0, remaining))


async def _sample(traffic: Traffic, curve: PlayerCurve, started: float, feed: Feed) -> None:
    while True:
        at = time.monotonic() - started
        feed.sample(traffic.sample(at_seconds=at, players_online=players_online(curve, at)))
        await asyncio.sleep(_SAMPLE_SECONDS)


async def _report_players(
    autoscaler: autoscaler_pb2_grpc.AutoscalerServiceAsyncStub,
    curve: PlayerCurve,
    started: float,
) -> None:
    while True:
        players = players_online(curve, time.monotonic() - started)
        try:
            await autoscaler.ReportPlayers(
                autoscaler_pb2.ReportPlayersRequest(players_online=players), timeout=2.0
            )
        except grpc.aio.AioRpcError as error:
            log.warning("players_not_reported", reason=error_reason(error))
        await asyncio.sleep(_REPORT_PLAYERS_SECONDS)


async def _play_until_told_to_stop(settings: GameSettings) -> None:
    task = asyncio.ensure_future(play(settings, Feed()))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


def main() -> int:
    """Runs the process; returns its exit code."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        settings = load_settings(GameSettings, os.environ)
    except SettingsError as error:
        print(*error.problems, sep="\n", file=sys.stderr)  # before there is a log
        return 2
    uvloop.run(_play_until_told_to_stop(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
