"""Which tier a request wants."""

from __future__ import annotations

import pytest

from ai_router.domain.tiers import FALLBACK_TIERS, Priority, Tier, choose_tier

ANSWER_SECONDS = {Tier.GOLD: 1.0, Tier.SILVER: 3.0, Tier.BRONZE: 20.0}


def test_the_callers_choice_wins() -> None:
    choice = choose_tier(Tier.BRONZE, 0.1, Priority.HIGH, ANSWER_SECONDS)
    assert choice.tier is Tier.BRONZE


@pytest.mark.parametrize(
    ("priority", "tier"),
    [
        (Priority.HIGH, Tier.GOLD),
        (Priority.NORMAL, Tier.SILVER),
        (Priority.LOW, Tier.BRONZE),
    ],
)
def test_without_a_budget_the_priority_decides(priority: Priority, tier: Tier) -> None:
    assert choose_tier(None, None, priority, ANSWER_SECONDS).tier is tier


@pytest.mark.parametrize(
    ("budget", "priority", "tier"),
    [
        (30.0, Priority.NORMAL, Tier.BRONZE),
        (30.0, Priority.HIGH, Tier.SILVER),
        (5.0, Priority.LOW, Tier.SILVER),
        (1.5, Priority.NORMAL, Tier.GOLD),
        (0.2, Priority.NORMAL, Tier.GOLD),
    ],
)
def test_a_budget_buys_the_most_capable_tier_in_time(
    budget: float, priority: Priority, tier: Tier
) -> None:
    choice = choose_tier(None, budget, priority, ANSWER_SECONDS)
    assert choice.tier is tier
    assert f"{budget:.2f} s" in choice.reason


def test_background_work_never_borrows_from_combat() -> None:
    assert Tier.GOLD not in FALLBACK_TIERS[Tier.BRONZE]
    for tier, stand_ins in FALLBACK_TIERS.items():
        assert tier not in stand_ins
        assert len(set(stand_ins)) == len(stand_ins)
