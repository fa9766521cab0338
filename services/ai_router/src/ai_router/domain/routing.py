"""The routing policy as a whole: where a request goes, when it waits, when it is turned away.

A request goes to the least loaded server of its tier. When none has room, it waits in its tier's
queue if it is predicted to be served in time; when the predicted wait is beyond the tier's
patience, or the tier has no server at all, it goes to the tier that stands in (unless the caller
forbids that), whose servers take guests only up to a part of their capacity, so guests never push
out the tier's own requests. What cannot be served in time is turned away at once. Queues are served
in order: a small request never overtakes a large one of equal rank, or large ones would wait for
ever.

State is explicit and time an argument: the same calls give the same decisions, in virtual time too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from ai_router.domain.demand import DemandLedger, TierDemand
from ai_router.domain.errors import DeadlineUnreachable, NoCapacity, Overloaded
from ai_router.domain.fleet_directory import FleetDirectory
from ai_router.domain.generation import GenerationRequest
from ai_router.domain.server_selection import ServerPool
from ai_router.domain.service_time import ServiceTimeModel, predict_wait_seconds
from ai_router.domain.ticket import Placement, Ticket
from ai_router.domain.tier_activity import TierActivity
from ai_router.domain.tiers import FALLBACK_TIERS, Tier, TierChoice, TierProfile, choose_tier
from ai_router.domain.token_estimate import TokenEstimator
from ai_router.domain.waiting_queue import WaitingQueue

__all__ = ["Dispatch", "Offer", "RoutingDesk", "RoutingPolicy", "ShedError"]

ShedError = Overloaded | DeadlineUnreachable | NoCapacity

# How long the predictions may be taken as they are when waiting tickets are looked through.
_EXPIRY_GRAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """The limits of routing.

    Attributes:
        queue_limit: most requests that wait per tier.
        guest_load_limit: servers take requests of other tiers up to this share of their capacity.
    """

    queue_limit: int = 100
    guest_load_limit: float = 0.7


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of an offered ticket: placed, or waiting when `placement` is None.

    `pushed_out` is a ticket that lost its place in the queue to it, with the error for its caller.
    """

    placement: Placement | None
    pushed_out: tuple[Ticket, ShedError] | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What became of a waiting ticket: exactly one of `placement` and `error` is set."""

    ticket: Ticket
    placement: Placement | None = None
    error: ShedError | None = None


class _Fit(Enum):
    """Whether a waiting line is worth joining."""

    WAIT = "wait"
    LATE = "late"
    FULL = "full"


class RoutingDesk:
    """Places tickets on servers, keeps queues, counts demand.

    Every ticket that was placed must be given back with `complete`, `fail` or `abandon`; every
    ticket that waits leaves by `dispatch` or `withdraw`. All times are monotonic seconds.
    """

    def __init__(
        self,
        directory: FleetDirectory,
        profiles: Mapping[Tier, TierProfile],
        policy: RoutingPolicy,
    ) -> None:
        self.directory = directory
        self.demand = DemandLedger()
        self.activity = {tier: TierActivity() for tier in Tier}
        self._profiles = profiles
        self._policy = policy
        self._queues = {tier: WaitingQueue(policy.queue_limit) for tier in Tier}
        # Before then no ticket of the tier's queue can have waited too long.
        self._expiry_due = dict.fromkeys(Tier, float("-inf"))
        self._service = {tier: ServiceTimeModel(profiles[tier]) for tier in Tier}
        self._estimators = {tier: TokenEstimator() for tier in Tier}
        # Requests and tokens running per serving tier, guests included: what comes free in time.
        self._running = dict.fromkeys(Tier, (0, 0))

    # Tickets

    def draft(
        self, request: GenerationRequest, now: float, deadline: float | None = None
    ) -> Ticket:
        """Returns a ticket for the request, counting nothing.

        `deadline` is when the caller's call ends; with the latency budget the earlier one counts.
        """
        choice = self._choose_tier(request)
        tier = choice.tier
        budget = request.latency_budget_seconds
        if budget is None:
            budget = self._profiles[tier].usual_budget_seconds
        estimator = self._estimators[tier]
        return Ticket(
            request_id=request.request_id,
            wanted_tier=tier,
            tier_reason=choice.reason,
            priority=request.priority,
            prompt_tokens=estimator.prompt_tokens(m.content for m in request.messages),
            output_tokens=estimator.output_tokens(request.max_output_tokens),
            prompt_scale=estimator.prompt_scale,
            arrived_at=now,
            deadline=min(now + budget, deadline) if deadline is not None else now + budget,
            affinity_key=request.affinity_key,
            forbid_fallback=request.forbid_fallback,
        )

    def admit(self, ticket: Ticket) -> None:
        """Counts the ticket as demand of the tier it wants, once; `offer` it then."""
        self.demand.arrived(ticket.wanted_tier, ticket.tokens)

    def offer(self, ticket: Ticket, now: float) -> Offer:
        """Places the ticket or lets it wait; a ticket that a server failed is offered again.

        Raises:
            Overloaded: no room on a server nor in the queue.
            DeadlineUnreachable: it would have to wait longer than its caller does.
            NoCapacity: there is no server for it, and no time to wait for one.
        """
        self.directory.refresh(now)
        placement = self._place(ticket, now)
        if placement is not None:
            return Offer(placement)
        fit, wait = self._judge_waiting(ticket, now)
        if fit is not _Fit.WAIT:
            raise self._shed(ticket, now, self._refusal(ticket, fit, wait))
        queue = self._queues[ticket.wanted_tier]
        pushed = queue.add(ticket)
        due = self._expiry_due[ticket.wanted_tier]
        self._expiry_due[ticket.wanted_tier] = min(due, self._latest_start(ticket))
        if pushed is None:
            return Offer(None)
        error = self._shed(
            pushed,
            now,
            Overloaded(
                "the queue is full and a more urgent request took this one's place; try later",
                metadata={"tier": pushed.wanted_tier.name},
                retry_after_seconds=max(1.0, wait or 0.0),
            ),
        )
        return Offer(None, (pushed, error))

    def can_be_served(self, ticket: Ticket) -> bool:
        """Returns whether a server that has not failed the ticket takes requests at all."""
        tiers = (ticket.wanted_tier, *self._stand_ins(ticket))
        return any(self.directory.pool(t).has_usable(ticket.failed_servers) for t in tiers)

    def dispatch(self, now: float) -> list[Dispatch]:
        """Returns the waiting tickets whose wait is over, in the order they are served.

        Call it whenever something came free or time passed.
        """
        self.directory.refresh(now)
        done: list[Dispatch] = []
        for tier, queue in self._queues.items():
            if not queue:
                continue
            self._serve_in_order(queue, now, done)
            self._serve_elsewhere(queue, now, done)
            self._end_waits(tier, queue, now, done)
        return done

    def withdraw(self, ticket: Ticket) -> None:
        """Takes out a waiting ticket whose caller went away."""
        self._queues[ticket.wanted_tier].remove(ticket)

    def complete(
        self,
        placement: Placement,
        now: float,
        *,
        first_token_at: float,
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        """Takes in a whole answer: its server is free again and the predictions learn from it.

        `prompt_tokens` and `output_tokens` are as the server counted them; 0 means it did not tell.
        """
        self._release(placement)
        ticket, tier = placement.ticket, placement.tier
        self.directory.record_success(placement.server_id, placement.placed_at, now)
        self.demand.completed(ticket.wanted_tier, tier)
        self._estimators[tier].learn(
            ticket.prompt_tokens, ticket.prompt_scale, prompt_tokens, output_tokens
        )
        first_token_seconds = max(0.0, first_token_at - placement.placed_at)
        generation_seconds = max(0.0, now - first_token_at)
        self._service[tier].learn(first_token_seconds, generation_seconds, output_tokens)
        self.activity[tier].completed(
            now,
            first_token_seconds=first_token_at - ticket.arrived_at,
            generation_seconds=generation_seconds,
            output_tokens=output_tokens,
        )

    def fail(self, placement: Placement, now: float, *, unreachable: bool, fault: bool) -> None:
        """Takes in that the server did not answer; the ticket will not be given to it again.

        `fault` says that the server is to blame, rather than only full.
        """
        self._release(placement)
        placement.ticket.failed_servers.add(placement.server_id)
        if fault:
            self.directory.record_failure(placement.server_id, now, unreachable=unreachable)
            self.activity[placement.tier].failed(now)

    def abandon(self, placement: Placement) -> None:
        """Takes in that the caller went away or the request was wrong: nobody's fault."""
        self._release(placement)

    def give_up(self, ticket: Ticket) -> None:
        """Counts that the ticket's caller got an error because its servers failed."""
        self.demand.failed(ticket.wanted_tier)

    # What it looks like

    def queued(self, tier: Tier) -> WaitingQueue:
        """Returns the queue of the tier; look, do not touch."""
        return self._queues[tier]

    def close_demand_interval(self) -> tuple[TierDemand, ...]:
        """Returns the demand since the last call, all tiers."""
        return self.demand.close_interval(
            {tier: len(queue) for tier, queue in self._queues.items()},
            {tier: queue.tokens for tier, queue in self._queues.items()},
        )

    def predicted_wait_seconds(
        self, ticket: Ticket, ahead: tuple[int, int] | None = None
    ) -> float | None:
        """Returns how long the ticket would wait for its tier; None when the tier has no server.

        `ahead` is how many requests and tokens come before it, for a caller that knows already.
        """
        tier = ticket.wanted_tier
        pool = self.directory.pool(tier)
        if not pool.has_usable(ticket.failed_servers):
            return None
        requests_ahead, tokens_ahead = ahead or self._queues[tier].ahead(ticket)
        excluded = ticket.failed_servers
        if not requests_ahead and pool.choose(ticket.tokens, excluded=excluded) is not None:
            return 0.0
        seconds = self._service[tier].predict(ticket.output_tokens)
        requests, tokens = self._running[tier]
        free_tokens = max(0, pool.eligible_capacity_tokens - pool.eligible_load_tokens)
        return max(
            predict_wait_seconds(tokens_ahead + ticket.tokens, free_tokens, tokens, seconds),
            predict_wait_seconds(requests_ahead + 1, pool.free_places, requests, seconds),
            # What is free in pieces too small for it does not help: somebody has to end first.
            predict_wait_seconds(1, 0, requests, seconds),
        )

    def would_place(self, ticket: Ticket) -> tuple[Tier, str] | None:
        """Returns tier and server that would serve the ticket at once, changing nothing."""
        found = self._find(ticket)
        return None if found is None else (found[0], found[1])

    def would_wait(self, ticket: Ticket, now: float) -> bool:
        """Returns whether the ticket, finding no server, would be let wait."""
        return self._judge_waiting(ticket, now)[0] is _Fit.WAIT

    def tiers_for(self, ticket: Ticket) -> Iterator[tuple[Tier, ServerPool, float]]:
        """Yields the tiers that may serve the ticket, with pool and load limit, preferred first."""
        yield ticket.wanted_tier, self.directory.pool(ticket.wanted_tier), 1.0
        for tier in self._stand_ins(ticket):
            yield tier, self.directory.pool(tier), self._policy.guest_load_limit

    # Inside

    def _choose_tier(self, request: GenerationRequest) -> TierChoice:
        predicted: dict[Tier, float] = {}
        if request.tier is None and request.latency_budget_seconds is not None:
            for tier, service in self._service.items():
                tokens = self._estimators[tier].output_tokens(request.max_output_tokens)
                predicted[tier] = service.predict(tokens)
        return choose_tier(
            request.tier, request.latency_budget_seconds, request.priority, predicted
        )

    def _stand_ins(self, ticket: Ticket) -> tuple[Tier, ...]:
        return () if ticket.forbid_fallback else FALLBACK_TIERS[ticket.wanted_tier]

    def _latest_start(self, ticket: Ticket) -> float:
        service = self._service[ticket.wanted_tier].predict(ticket.output_tokens)
        # A budget shorter than the answer itself still buys half of it in waiting.
        return ticket.deadline - min(service, (ticket.deadline - ticket.arrived_at) / 2)

    def _find(
        self,
        ticket: Ticket,
        *,
        fallback: bool | None = None,
        ahead: tuple[int, int] | None = None,
    ) -> tuple[Tier, str, float, str] | None:
        """Returns tier, server, load and reason; `fallback` None lets the predicted wait decide."""
        wanted = ticket.wanted_tier
        if self._queues[wanted].is_first(ticket):
            pool = self.directory.pool(wanted)
            chosen = pool.choose(ticket.tokens, ticket.affinity_key, excluded=ticket.failed_servers)
            if chosen is not None:
                why = "its affinity key's server" if chosen.by_affinity else "least loaded server"
                return wanted, chosen.server_id, chosen.load_ratio, f"{ticket.tier_reason}; {why}"
        if fallback is None:
            wait = self.predicted_wait_seconds(ticket, ahead)
            patience = self._profiles[wanted].fallback_patience_seconds
            fallback = wait is None or wait > patience
        if not fallback:
            return None
        for tier in self._stand_ins(ticket):
            if self._queues[tier]:
                continue  # its own requests wait already
            chosen = self.directory.pool(tier).choose(
                ticket.tokens,
                ticket.affinity_key,
                load_limit=self._policy.guest_load_limit,
                excluded=ticket.failed_servers,
            )
            if chosen is not None:
                why = f"{wanted.name} has no room in time, {tier.name} stands in"
                return tier, chosen.server_id, chosen.load_ratio, f"{ticket.tier_reason}; {why}"
        return None

    def _place(
        self,
        ticket: Ticket,
        now: float,
        *,
        fallback: bool | None = None,
        ahead: tuple[int, int] | None = None,
    ) -> Placement | None:
        found = self._find(ticket, fallback=fallback, ahead=ahead)
        if found is None:
            return None
        tier, server_id, load_ratio, reason = found
        report = self.directory.report(server_id)
        placement = Placement(
            ticket=ticket,
            server_id=server_id,
            tier=tier,
            endpoint_url=report.endpoint_url,
            model=report.model,
            tokens=ticket.tokens,
            load_ratio=load_ratio,
            placed_at=now,
            reason=reason,
        )
        self.directory.assign(server_id, tier, placement.tokens)
        self.demand.placed(ticket.wanted_tier, placement.tokens)
        requests, tokens = self._running[tier]
        self._running[tier] = (requests + 1, tokens + placement.tokens)
        return placement

    def _release(self, placement: Placement) -> None:
        self.directory.release(placement.server_id, placement.tier, placement.tokens)
        self.demand.ended(placement.ticket.wanted_tier, placement.tokens)
        requests, tokens = self._running[placement.tier]
        self._running[placement.tier] = (requests - 1, tokens - placement.tokens)

    def _judge_waiting(self, ticket: Ticket, now: float) -> tuple[_Fit, float | None]:
        wait = self.predicted_wait_seconds(ticket)
        if now + (wait or 0.0) > self._latest_start(ticket):
            return _Fit.LATE, wait
        if not self._queues[ticket.wanted_tier].has_room(ticket):
            return _Fit.FULL, wait
        return _Fit.WAIT, wait

    def _refusal(self, ticket: Ticket, fit: _Fit, wait: float | None) -> ShedError:
        tier = ticket.wanted_tier
        if wait is None and fit is _Fit.LATE:
            return NoCapacity(
                f"no {tier.name} server takes requests now, and none stands in for it; "
                "the demand was reported, try again later",
                metadata={"tier": tier.name},
            )
        metadata = {"tier": tier.name}
        if wait is not None:
            metadata["predicted_wait_seconds"] = f"{wait:.3f}"
        if fit is _Fit.LATE:
            return DeadlineUnreachable(
                f"the {tier.name} tier is predicted to be free in {wait:.2f} s, too late for this "
                "request; try again later or allow more time",
                metadata=metadata,
                retry_after_seconds=wait,
            )
        return Overloaded(
            f"the {tier.name} tier and its queue are full; try again later",
            metadata=metadata,
            retry_after_seconds=max(1.0, wait or 0.0),
        )

    def _shed(self, ticket: Ticket, now: float, error: ShedError) -> ShedError:
        self.demand.shed(ticket.wanted_tier)
        self.activity[ticket.wanted_tier].shed(now)
        return error

    def _serve_in_order(self, queue: WaitingQueue, now: float, done: list[Dispatch]) -> None:
        while (ticket := queue.head) is not None:
            placement = self._place(ticket, now)
            if placement is None:
                return
            queue.remove(ticket)
            done.append(Dispatch(ticket, placement=placement))

    def _serve_elsewhere(self, queue: WaitingQueue, now: float, done: list[Dispatch]) -> None:
        """Gives stand-ins what they have room for: who may not leave holds up nobody who may."""
        # Counted along the way: asking the queue for each ticket would make the pass quadratic.
        requests_ahead = tokens_ahead = 0
        for ticket in queue:
            placement: Placement | None = None
            if not ticket.forbid_fallback:
                if not any(self._takes_guests(tier) for tier in self._stand_ins(ticket)):
                    return
                placement = self._place(ticket, now, ahead=(requests_ahead, tokens_ahead))
            if placement is None:
                requests_ahead += 1
                tokens_ahead += ticket.tokens
            else:
                queue.remove(ticket)
                done.append(Dispatch(ticket, placement=placement))

    def _end_waits(self, tier: Tier, queue: WaitingQueue, now: float, done: list[Dispatch]) -> None:
        """Decides about those who cannot wait longer.

        Looking at everybody whenever something comes free would make overload the dearest time;
        so it is done when somebody's time is over, and to follow the predictions now and then.
        """
        if now <= self._expiry_due[tier]:
            return
        due = now + _EXPIRY_GRAIN_SECONDS
        for ticket in queue:
            latest = self._latest_start(ticket)
            if now > latest:
                queue.remove(ticket)
                done.append(self._last_resort(ticket, tier, now))
            else:
                due = min(due, latest)
        self._expiry_due[tier] = due

    def _takes_guests(self, tier: Tier) -> bool:
        """Returns whether the tier has room for guests: its own who wait come first."""
        if self._queues[tier]:
            return False
        limit = self._policy.guest_load_limit
        return self.directory.pool(tier).choose(1, load_limit=limit) is not None

    def _last_resort(self, ticket: Ticket, tier: Tier, now: float) -> Dispatch:
        placement = self._place(ticket, now, fallback=True)
        if placement is not None:
            return Dispatch(ticket, placement=placement)
        wait = self.predicted_wait_seconds(ticket)
        error: ShedError
        if wait is None:
            error = self._refusal(ticket, _Fit.LATE, None)
        else:
            error = DeadlineUnreachable(
                f"no {tier.name} server came free in time; try again later or allow more time",
                metadata={"tier": tier.name, "predicted_wait_seconds": f"{wait:.3f}"},
                retry_after_seconds=max(0.1, wait),
            )
        return Dispatch(ticket, error=self._shed(ticket, now, error))
