"""Where a request would go now, and why, without sending it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ai_router.domain.fleet_directory import ServerState
from ai_router.domain.routing import RoutingDesk
from ai_router.domain.ticket import Ticket
from ai_router.domain.tiers import Tier

__all__ = ["ConsideredServer", "Explanation", "Verdict", "explain"]


class Verdict(Enum):
    """What would happen to the request."""

    SEND = "send"
    QUEUE = "queue"
    REFUSE = "refuse"
    CACHE = "cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsideredServer:
    """A server and whether it could take the request, with the reason."""

    server_id: str
    tier: Tier
    load_ratio: float
    eligible: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The route a request would take; `serving_tier` None: no server would take it now."""

    wanted_tier: Tier
    tier_reason: str
    verdict: Verdict
    serving_tier: Tier | None
    server_id: str
    candidates: tuple[ConsideredServer, ...]
    estimated_tokens: int


def explain(desk: RoutingDesk, ticket: Ticket, now: float, *, cached: bool) -> Explanation:
    """Returns what would happen to `ticket` at `now`; nothing is counted or placed.

    The chosen server comes first among the candidates, then the wanted tier's, then those of the
    tiers that may stand in, each tier's least loaded first.
    """
    desk.directory.refresh(now)
    chosen = None if cached else desk.would_place(ticket)
    if cached:
        verdict = Verdict.CACHE
    elif chosen is not None:
        verdict = Verdict.SEND
    else:
        verdict = Verdict.QUEUE if desk.would_wait(ticket, now) else Verdict.REFUSE
    candidates = [
        server
        for tier, _, load_limit in desk.tiers_for(ticket)
        for server in _considered(desk, ticket, tier, load_limit, now)
    ]
    chosen_id = chosen[1] if chosen is not None else ""
    candidates.sort(key=lambda server: server.server_id != chosen_id)
    return Explanation(
        wanted_tier=ticket.wanted_tier,
        tier_reason=ticket.tier_reason,
        verdict=verdict,
        serving_tier=chosen[0] if chosen is not None else None,
        server_id=chosen_id,
        candidates=tuple(candidates),
        estimated_tokens=ticket.tokens,
    )


def _considered(
    desk: RoutingDesk, ticket: Ticket, tier: Tier, load_limit: float, now: float
) -> list[ConsideredServer]:
    statuses = {status.report.server_id: status for status in desk.directory.statuses(tier, now)}
    guest = tier is not ticket.wanted_tier
    considered = []
    for candidate in desk.directory.pool(tier).candidates(ticket.tokens, load_limit):
        status = statuses[candidate.server_id]
        if status.state is not ServerState.READY:
            reason = status.reason
        elif candidate.eligible:
            reason = "it has room"
            if guest:
                reason = f"it has room for guests, up to {load_limit:.0%} of its capacity"
        elif candidate.load_ratio > load_limit:
            reason = f"its load would be {candidate.load_ratio:.0%}, the limit is {load_limit:.0%}"
        else:
            reason = f"it has the {status.running_requests} requests it may have"
        considered.append(
            ConsideredServer(
                server_id=candidate.server_id,
                tier=tier,
                load_ratio=candidate.load_ratio,
                eligible=candidate.eligible,
                reason=reason,
            )
        )
    return considered
