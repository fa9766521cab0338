"""A request on its way through the router, and where it was put."""

from __future__ import annotations

from dataclasses import dataclass, field

from ai_router.domain.tiers import Priority, Tier

__all__ = ["Placement", "Ticket"]


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """One request; identity counts, not value. All times are monotonic seconds.

    Attributes:
        request_id: names it in logs.
        wanted_tier: the tier it wants, and is counted for.
        tier_reason: why that tier.
        priority: how urgent it is.
        prompt_tokens: estimated tokens of the prompt.
        output_tokens: estimated tokens of the answer.
        prompt_scale: the scale that `prompt_tokens` was estimated with.
        arrived_at: when it arrived.
        deadline: when the caller stops waiting for the whole answer.
        affinity_key: requests with the same key prefer the same server; empty means none.
        forbid_fallback: only the wanted tier may serve it.
        failed_servers: servers that failed it; they are not tried again.
        sequence: order of arrival, given by the queue.
    """

    request_id: str
    wanted_tier: Tier
    tier_reason: str
    priority: Priority
    prompt_tokens: int
    output_tokens: int
    prompt_scale: float = 1.0
    arrived_at: float
    deadline: float
    affinity_key: str = ""
    forbid_fallback: bool = False
    failed_servers: set[str] = field(default_factory=set)
    sequence: int = 0

    @property
    def tokens(self) -> int:
        """Estimated tokens it holds on a server at its end."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The server that serves a ticket; `tokens` are counted on it until it is completed."""

    ticket: Ticket
    server_id: str
    tier: Tier
    endpoint_url: str
    model: str
    tokens: int
    load_ratio: float
    placed_at: float
    reason: str
