"""Sends the players' requests to the router, each a call of its own, and counts every outcome.

The loop is open: requests start when players make them, whether or not earlier ones were answered,
so an overload is seen as the players would see it and not hidden by waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import structlog

from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from localsuite.game.feed import GameSample, TierSample
from localsuite.game.requests import TIER_NAMES, PlayerRequest
from localsuite.game.tally import Answer, TierTally
from servicekit.failure_details import failure_details

__all__ = ["Traffic", "error_reason"]

log = structlog.get_logger(__name__)

_WINDOW_SECONDS = 10.0
# Reasons that mean "not now, for lack of capacity": the suite turned the request away on purpose.
_SHED_CODES = {grpc.StatusCode.RESOURCE_EXHAUSTED}
_SHED_REASONS = {"NO_CAPACITY", "QUEUE_FULL", "OVERLOADED"}


class Traffic:
    """The requests of one evening. Nothing sent is forgotten: see `TierTally`.

    Requests take turns over `routers`, one stub per connection: a server takes 100 calls at once
    on one, and a game has many machines.
    """

    def __init__(
        self,
        routers: Sequence[ai_router_pb2_grpc.AiRouterServiceAsyncStub],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._routers = itertools.cycle(routers)
        self._monotonic = monotonic
        self._tallies = {tier: TierTally() for tier in TIER_NAMES}
        self._group: asyncio.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Takes requests in the body; leaving waits until the fate of each is known."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None

    def send(self, request: PlayerRequest) -> None:
        """Starts a request; call it within `open`."""
        if self._group is None:
            raise ValueError("requests are sent within open()")
        self._tallies[request.tier].sent += 1
        self._group.create_task(self._play(request))

    def sample(self, *, at_seconds: float, players_online: int) -> GameSample:
        """Returns the counters as of now."""
        now = self._monotonic()
        return GameSample(
            at_seconds=round(at_seconds, 3),
            players_online=players_online,
            tiers={name: _sample(self._tallies[tier], now) for tier, name in TIER_NAMES.items()},
        )

    async def _play(self, request: PlayerRequest) -> None:
        tally = self._tallies[request.tier]
        try:
            # The call's deadline is the router's concern too; this one is ours, should both fail.
            async with asyncio.timeout(request.patience_seconds + 5.0):
                answer = await self._ask(request)
        except grpc.aio.AioRpcError as error:
            reason = error_reason(error)
            shed = error.code() in _SHED_CODES or reason in _SHED_REASONS
            (tally.shed if shed else tally.failed)[reason] += 1
        except TimeoutError:
            tally.failed["CLIENT_GAVE_UP"] += 1
        except BrokenAnswerError as error:
            tally.failed["BROKEN_ANSWER"] += 1
            log.warning("broken_answer", request_id=request.message.request_id, why=str(error))
        else:
            tally.complete(answer, now=self._monotonic())

    async def _ask(self, request: PlayerRequest) -> Answer:
        started = self._monotonic()
        first_at: float | None = None
        route: ai_router_pb2.RouteTaken | None = None
        end: ai_router_pb2.GenerationEnd | None = None
        async for response in next(self._routers).Generate(
            request.message, timeout=request.patience_seconds
        ):
            if response.HasField("delta"):
                if first_at is None:
                    first_at = self._monotonic()
            elif response.HasField("route"):
                route = response.route
            elif response.HasField("end"):
                end = response.end
        ended = self._monotonic()
        if route is None or end is None or first_at is None:
            raise BrokenAnswerError("an answer has a route, text and an end")
        tokens = end.output_tokens
        return Answer(
            first_token_seconds=first_at - started,
            seconds_per_token=(ended - first_at) / (tokens - 1) if tokens > 1 else None,
            output_tokens=tokens,
            cached=route.cached,
            fell_back=route.tier != route.wanted_tier,
        )


class BrokenAnswerError(Exception):
    """A call ended well without being a whole answer."""


def error_reason(error: grpc.aio.AioRpcError) -> str:
    """Returns the reason the server gave (google.rpc.ErrorInfo), or the status code's name."""
    return failure_details(error).reason or error.code().name


def _sample(tally: TierTally, now: float) -> TierSample:
    return TierSample(
        sent=tally.sent,
        completed=tally.completed,
        cached=tally.cached,
        fell_back=tally.fell_back,
        output_tokens=tally.output_tokens,
        shed=dict(tally.shed),
        failed=dict(tally.failed),
        first_token_p95_seconds=tally.first_token_p95_seconds(
            now=now, window_seconds=_WINDOW_SECONDS
        ),
        seconds_per_token_p95=tally.seconds_per_token_p95(now=now, window_seconds=_WINDOW_SECONDS),
    )
