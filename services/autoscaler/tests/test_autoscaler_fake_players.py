"""Players who do not exist: what a game service that lies about its players can make us buy."""

from typing import Any

from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import Decision
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.policy import TierPolicy
from autoscaler.testing.builders import START, build_demand, build_policy, build_tier_snapshot

FAKE_PLAYERS = 10_000_000
"""The most that ReportPlayers takes."""


def an_honest_hour(policy: TierPolicy) -> tuple[ControlState, float]:
    """The loop has learned what a player asks for: 100 of them keep two servers busy."""
    state, now = ControlState(), START
    snapshot = build_tier_snapshot(2, 12_000, players_online=100, players_age_seconds=1.0)
    for _ in range(720):
        _, state = decide(snapshot, state, policy, now)
        now += 5
    return state, now


def after_the_lie(policy: TierPolicy, **changes: Any) -> Decision:
    state, now = an_honest_hour(policy)
    lie: dict[str, Any] = {
        "players_online": FAKE_PLAYERS,
        "players_age_seconds": 1.0,
        # So many players would pay for anything: the budget is no help against this lie.
        "affordable_servers": FAKE_PLAYERS,
        "group_maximum": FAKE_PLAYERS,
    }
    decision, _ = decide(build_tier_snapshot(2, 12_000, **(lie | changes)), state, policy, now)
    return decision


def test_fake_players_alone_buy_at_most_twice_what_really_arrives() -> None:
    assert after_the_lie(build_policy(maximum=50)).desired == 4


def test_without_that_limit_they_would_buy_a_fortune() -> None:
    policy = build_policy(maximum=FAKE_PLAYERS, maximum_forecast_growth=float(FAKE_PLAYERS))
    assert after_the_lie(policy).desired > 10_000


def test_a_lie_that_lasts_buys_no_more_than_one_that_was_just_told() -> None:
    policy = build_policy(maximum=50)
    state, now = an_honest_hour(policy)
    desired = 2
    for _ in range(720):
        snapshot = build_tier_snapshot(
            desired,
            12_000,
            players_online=FAKE_PLAYERS,
            players_age_seconds=1.0,
            affordable_servers=FAKE_PLAYERS,
        )
        decision, state = decide(snapshot, state, policy, now)
        desired = max(desired, decision.desired)
        now += 5
    assert desired == 4


def test_fake_players_who_also_ask_buy_no_more_than_the_tiers_maximum() -> None:
    demand = build_demand(10_000_000)
    assert after_the_lie(build_policy(maximum=8), demand=demand).desired == 8
    decision = after_the_lie(build_policy(), demand=demand, group_maximum=5)
    assert decision.plan.group_desired == 5


def test_a_count_that_is_not_repeated_stops_counting() -> None:
    policy = build_policy(maximum=50)
    stale = policy.players_stale_seconds + 1
    assert after_the_lie(policy, players_age_seconds=stale).desired == 2


def test_an_operator_stops_it_at_once() -> None:
    freeze = Override(
        kind=OverrideKind.FREEZE, reason="fake players", set_by="me", expire_time=START + 86_400
    )
    assert after_the_lie(build_policy(maximum=50), override=freeze).desired == 2
