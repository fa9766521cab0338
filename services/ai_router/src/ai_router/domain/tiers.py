"""The three tiers: what each is for, which one a request wants, and who stands in for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

__all__ = [
    "FALLBACK_TIERS",
    "Priority",
    "Tier",
    "TierChoice",
    "TierProfile",
    "choose_tier",
]


class Tier(IntEnum):
    """A class of model servers; the numbers are those of `gaming.common.v1.Tier`."""

    GOLD = 1
    SILVER = 2
    BRONZE = 3


class Priority(IntEnum):
    """How urgent a request is; the numbers are those of `gaming.ai_router.v1.Priority`."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


FALLBACK_TIERS: Mapping[Tier, tuple[Tier, ...]] = MappingProxyType(
    {
        # A player in combat needs an answer now; Silver's is slower but better, Bronze's is late.
        Tier.GOLD: (Tier.SILVER, Tier.BRONZE),
        # In dialogue a prompt answer of a smaller model keeps the scene alive; a late one breaks
        # it.
        Tier.SILVER: (Tier.GOLD, Tier.BRONZE),
        # Background work may borrow from dialogue, never from combat.
        Tier.BRONZE: (Tier.SILVER,),
    }
)

# Most capable model first.
_CAPABLE_TIERS = (Tier.BRONZE, Tier.SILVER, Tier.GOLD)
_URGENT_TIERS = (Tier.SILVER, Tier.GOLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierProfile:
    """What is assumed of a tier until it was measured, and how long its callers are patient.

    Attributes:
        capacity_tokens: tokens one server carries within the tier's latency target.
        request_limit: most requests this router puts on one server at a time.
        first_token_seconds: time to first token on a server with room.
        token_seconds: time per generated token on a server with room.
        usual_budget_seconds: how long a caller waits for the whole answer when it does not say.
        fallback_patience_seconds: a longer predicted wait sends a request to the fallback tier.
    """

    capacity_tokens: int
    request_limit: int
    first_token_seconds: float
    token_seconds: float
    usual_budget_seconds: float
    fallback_patience_seconds: float


@dataclass(frozen=True, slots=True)
class TierChoice:
    """The tier a request wants, and why in one sentence."""

    tier: Tier
    reason: str


def choose_tier(
    explicit: Tier | None,
    latency_budget_seconds: float | None,
    priority: Priority,
    predicted_answer_seconds: Mapping[Tier, float],
) -> TierChoice:
    """Returns the tier a request wants; the same arguments always give the same tier.

    The caller's choice wins. Without a budget the priority decides: a player in combat gets Gold, a
    player in dialogue Silver, background work Bronze. With a budget it is the most capable tier
    whose predicted answer arrives in time, which also keeps the fast tiers for those in a hurry;
    urgent requests skip Bronze, which may have to be started first. If no tier is predicted to be
    in time, Gold comes nearest.
    """
    if explicit is not None:
        return TierChoice(explicit, "the caller chose it")
    if latency_budget_seconds is None:
        if priority is Priority.HIGH:
            return TierChoice(Tier.GOLD, "high priority without a latency budget wants real time")
        if priority is Priority.LOW:
            return TierChoice(Tier.BRONZE, "low priority without a latency budget can wait")
        return TierChoice(Tier.SILVER, "normal priority without a latency budget is dialogue")
    urgent = priority is Priority.HIGH
    for tier in _URGENT_TIERS if urgent else _CAPABLE_TIERS:
        predicted = predicted_answer_seconds[tier]
        if predicted <= latency_budget_seconds:
            return TierChoice(
                tier,
                f"the most capable tier in time: {predicted:.2f} s predicted, "
                f"{latency_budget_seconds:.2f} s allowed",
            )
    return TierChoice(Tier.GOLD, f"no tier answers within {latency_budget_seconds:.2f} s; fastest")
