"""One request from its arrival to its end: waiting, attempts, failover, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from ai_router.domain.answer_cache import AnswerCache, CachedAnswer, answer_key, is_deterministic
from ai_router.domain.errors import (
    Overloaded,
    RejectedByModel,
    UpstreamFailed,
    UpstreamFailedMidstream,
)
from ai_router.domain.explanation import Explanation, explain
from ai_router.domain.fleet import FleetView
from ai_router.domain.fleet_directory import ServerState
from ai_router.domain.generation import (
    GenerationEnd,
    GenerationEvent,
    GenerationRequest,
    RouteTaken,
    TextDelta,
)
from ai_router.domain.routing import RoutingDesk, ShedError
from ai_router.domain.ticket import Placement, Ticket
from ai_router.domain.tiers import Tier
from ai_router.ports import (
    AnswerEnd,
    FailureKind,
    FleetSource,
    ModelServerClient,
    ModelServerFailure,
)
from servicekit.clock import Clock

__all__ = ["Router", "RouterPolicy"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterPolicy:
    """Limits of one request's way.

    Attributes:
        attempts: servers tried before the first token, at most.
        first_token_timeout_seconds: a server that is silent for longer is given up, by its tier.
        queue_check_seconds: how often waiting requests are checked for deadlines.
    """

    attempts: int = 3
    first_token_timeout_seconds: Mapping[Tier, float] = field(
        default_factory=lambda: dict.fromkeys(Tier, 30.0)
    )
    queue_check_seconds: float = 0.1


class Router:
    """Serves requests by the desk's decisions. One event loop only."""

    def __init__(
        self,
        desk: RoutingDesk,
        cache: AnswerCache,
        client: ModelServerClient,
        clock: Clock,
        policy: RouterPolicy,
    ) -> None:
        self.desk = desk
        self.cache = cache
        self._client = client
        self._clock = clock
        self._policy = policy
        self._waiting: dict[Ticket, asyncio.Future[Placement]] = {}

    # Requests

    async def generate(
        self, request: GenerationRequest, call_seconds: float | None = None
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Yields the route, the text as it is generated, and the end.

        Nothing is yielded before the first token, so that until then another server can take over
        unseen. `call_seconds` is how long the caller's call lasts; None means no limit.

        Raises:
            Overloaded: servers and queue are full.
            DeadlineUnreachable: it cannot be served in time.
            NoCapacity: no server takes it.
            RejectedByModel: the model server finds the request wrong.
            UpstreamFailed: every server tried failed before its first token.
            UpstreamFailedMidstream: the server failed later; the text is incomplete.
        """
        now = self._clock.monotonic()
        deadline = None if call_seconds is None else now + call_seconds
        ticket = self.desk.draft(request, now, deadline)
        cacheable = request.use_cache and is_deterministic(request)
        if cacheable:
            answer = self._cached(ticket, request, now)
            if answer is not None:
                for event in self._replay(ticket, answer):
                    yield event
                return
        self.desk.admit(ticket)
        failures: list[FailureKind] = []
        while True:
            placement = await self._acquire(ticket)
            begun = False
            try:
                async with aclosing(
                    self._attempt(request, placement, failures, cacheable=cacheable)
                ) as events:
                    async for event in events:
                        begun = True
                        yield event
            except ModelServerFailure as failure:
                failures.append(failure.kind)
                self._after_failure(ticket, placement, failure, failures, begun=begun)
            else:
                return

    async def _attempt(
        self,
        request: GenerationRequest,
        placement: Placement,
        failures: list[FailureKind],
        *,
        cacheable: bool,
    ) -> AsyncGenerator[GenerationEvent, None]:
        ticket = placement.ticket
        first_token_at: float | None = None
        pieces: list[str] = []
        end: AnswerEnd | None = None
        settled = False
        try:
            answer = self._client.stream(
                placement.endpoint_url,
                placement.model,
                request,
                self._policy.first_token_timeout_seconds[placement.tier],
            )
            async with aclosing(answer) as stream:
                async for piece in stream:
                    if first_token_at is None:
                        first_token_at = self._clock.monotonic()
                        yield self._route(placement, failures)
                    if piece.text:
                        if cacheable:
                            pieces.append(piece.text)
                        yield TextDelta(piece.text)
                    end = piece.end
            now = self._clock.monotonic()
            end, first_token_at = _whole(end, first_token_at)
            settled = True
            self.desk.complete(
                placement,
                now,
                first_token_at=first_token_at,
                prompt_tokens=end.prompt_tokens,
                output_tokens=end.output_tokens,
            )
        except ModelServerFailure as failure:
            settled = True
            self._settle_failure(placement, failure)
            raise
        finally:
            if not settled:
                self.desk.abandon(placement)
            self.pump()
        if cacheable:
            self._remember(request, placement.model, "".join(pieces), end, now)
        yield GenerationEnd(
            finish_reason=end.finish_reason,
            prompt_tokens=end.prompt_tokens,
            output_tokens=end.output_tokens,
            first_token_seconds=first_token_at - ticket.arrived_at,
            total_seconds=now - ticket.arrived_at,
        )

    def explain(self, request: GenerationRequest) -> Explanation:
        """Returns where the request would go now, and why, without sending or counting it."""
        now = self._clock.monotonic()
        ticket = self.desk.draft(request, now)
        cached = False
        if request.use_cache and is_deterministic(request):
            models = self.desk.directory.models(ticket.wanted_tier)
            cached = any(self.cache.peek(answer_key(m, request), now) for m in models)
        return explain(self.desk, ticket, now, cached=cached)

    # Fleet

    async def follow(self, source: FleetSource) -> None:
        """Keeps the fleet as `source` shows it; ends only when cancelled."""
        async for view in source.views():
            now = self._clock.monotonic()
            if view is None:
                self.desk.directory.confirm(now)
            else:
                self.apply_fleet(view)

    def apply_fleet(self, view: FleetView) -> None:
        """Makes `view` the fleet and serves who waited for it."""
        self.desk.directory.apply(view, self._clock.monotonic())
        self.pump()

    def drain(self, server_id: str, lease_seconds: float) -> int:
        """Stops new requests to the server for the lease; returns how many still run there."""
        running = self.desk.directory.drain(server_id, lease_seconds, self._clock.monotonic())
        log.info("server_draining", server_id=server_id, running_requests=running)
        return running

    def resume(self, server_id: str) -> ServerState:
        """Ends a drain; returns the server's state after it."""
        state = self.desk.directory.resume(server_id, self._clock.monotonic())
        log.info("server_resumed", server_id=server_id, state=state.value)
        self.pump()
        return state

    # Waiting

    async def check_queues(self) -> None:
        """Lets time take effect on those who wait; ends only when cancelled."""
        while True:
            await self._clock.sleep(self._policy.queue_check_seconds)
            if self._waiting:
                self.pump()

    def pump(self) -> None:
        """Serves waiting requests as far as there is room, and turns away those out of time."""
        if not self._waiting:
            return
        for done in self.desk.dispatch(self._clock.monotonic()):
            self._resolve(done.ticket, done.placement, done.error)

    async def _acquire(self, ticket: Ticket) -> Placement:
        offer = self.desk.offer(ticket, self._clock.monotonic())
        if offer.pushed_out is not None:
            loser, error = offer.pushed_out
            self._resolve(loser, None, error)
        if offer.placement is not None:
            return offer.placement
        future: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                # The place came in the moment in which the caller went away.
                self.desk.abandon(future.result())
            else:
                self.desk.withdraw(ticket)
            raise
        finally:
            self._waiting.pop(ticket, None)

    def _resolve(
        self, ticket: Ticket, placement: Placement | None, error: ShedError | None
    ) -> None:
        future = self._waiting.pop(ticket, None)
        if future is None or future.done():
            if placement is not None:
                self.desk.abandon(placement)
        elif placement is not None:
            future.set_result(placement)
        elif error is not None:
            future.set_exception(error)

    # Failures

    def _settle_failure(self, placement: Placement, failure: ModelServerFailure) -> None:
        if failure.kind is FailureKind.REJECTED:
            self.desk.abandon(placement)
            return
        self.desk.fail(
            placement,
            self._clock.monotonic(),
            unreachable=failure.kind is FailureKind.UNREACHABLE,
            fault=failure.kind is not FailureKind.OVERLOADED,
        )

    def _after_failure(
        self,
        ticket: Ticket,
        placement: Placement,
        failure: ModelServerFailure,
        failures: list[FailureKind],
        *,
        begun: bool,
    ) -> None:
        """Returns when another attempt may be made, else raises what the caller is told."""
        log.warning(
            "model_server_failed",
            request_id=ticket.request_id,
            server_id=placement.server_id,
            tier=placement.tier.name,
            kind=failure.kind.value,
            detail=failure.detail,
            after_first_token=begun,
        )
        metadata = {"tier": placement.tier.name, "attempts": str(len(failures))}
        if failure.kind is FailureKind.REJECTED:
            raise RejectedByModel(
                "the model server refuses the request: check that the prompt and max_output_tokens "
                "fit the model's context, and the sampling parameters",
                metadata=metadata,
            ) from None
        if begun:
            self.desk.give_up(ticket)
            raise UpstreamFailedMidstream(
                "the model server failed while it generated; the text so far is incomplete",
                metadata=metadata,
            ) from None
        out_of_time = self._clock.monotonic() >= ticket.deadline
        another = len(failures) < self._policy.attempts and self.desk.can_be_served(ticket)
        if another and not out_of_time:
            return
        self.desk.give_up(ticket)
        if all(kind is FailureKind.OVERLOADED for kind in failures):
            raise Overloaded(
                "the model servers have too much to do; try again later", metadata=metadata
            ) from None
        raise UpstreamFailed(
            f"{len(failures)} model server(s) failed before the first token; nothing was "
            "generated, so the request can be repeated",
            metadata=metadata,
        ) from None

    # Answers

    def _route(self, placement: Placement, failures: list[FailureKind]) -> RouteTaken:
        ticket = placement.ticket
        return RouteTaken(
            request_id=ticket.request_id,
            tier=placement.tier,
            wanted_tier=ticket.wanted_tier,
            server_id=placement.server_id,
            model=placement.model,
            cached=False,
            queue_seconds=placement.placed_at - ticket.arrived_at,
            failed_attempts=len(failures),
            reason=placement.reason,
        )

    def _cached(
        self, ticket: Ticket, request: GenerationRequest, now: float
    ) -> CachedAnswer | None:
        for model in self.desk.directory.models(ticket.wanted_tier):
            answer = self.cache.get(answer_key(model, request), now)
            if answer is not None:
                self.cache.hits += 1
                return answer
        self.cache.misses += 1
        return None

    def _remember(
        self, request: GenerationRequest, model: str, text: str, end: AnswerEnd, now: float
    ) -> None:
        answer = CachedAnswer(
            text=text,
            model=model,
            finish_reason=end.finish_reason,
            prompt_tokens=end.prompt_tokens,
            output_tokens=end.output_tokens,
        )
        self.cache.put(answer_key(model, request), answer, now)

    def _replay(self, ticket: Ticket, answer: CachedAnswer) -> list[GenerationEvent]:
        seconds = self._clock.monotonic() - ticket.arrived_at
        events: list[GenerationEvent] = [
            RouteTaken(
                request_id=ticket.request_id,
                tier=ticket.wanted_tier,
                wanted_tier=ticket.wanted_tier,
                server_id="",
                model=answer.model,
                cached=True,
                queue_seconds=0.0,
                failed_attempts=0,
                reason=f"{ticket.tier_reason}; the same request was answered before",
            )
        ]
        if answer.text:
            events.append(TextDelta(answer.text))
        events.append(
            GenerationEnd(
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                output_tokens=answer.output_tokens,
                first_token_seconds=seconds,
                total_seconds=seconds,
            )
        )
        return events

    def fleet_age_seconds(self) -> float | None:
        """Returns the age of the fleet view in force; None when there was none yet."""
        return self.desk.directory.feed_age_seconds(self._clock.monotonic())


def _whole(end: AnswerEnd | None, first_token_at: float | None) -> tuple[AnswerEnd, float]:
    if end is None or first_token_at is None:
        raise ModelServerFailure(FailureKind.FAILED, "the answer had no end")
    return end, first_token_at
