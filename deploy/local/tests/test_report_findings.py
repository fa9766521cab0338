from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gaming.autoscaler.v1 import autoscaler_pb2
from gaming.common.v1 import tier_pb2
from localsuite.game.feed import GameSample, StoryTurn, TierSample
from localsuite.observe.bus import BusPicture
from localsuite.observe.picture import Remark
from localsuite.observe.recording import Moment, Recording, TierMoment
from localsuite.report.findings import Findings, find
from localsuite.view.wording import decision_reason, decision_sentence, duration, spark

QUIET = TierMoment(1, 1, 0, 0, 0, None, None)


def a_moment(at: float, *, players: int, gold_ms: float | None = None, gold: int = 1) -> Moment:
    measured = None if gold_ms is None else gold_ms / 1000
    return Moment(
        at_seconds=at,
        players_online=players,
        gpus=gold + 1,
        cost_usd_per_hour=2.0 * gold,
        tiers={
            "gold": TierMoment(gold, gold, 0, 0, 0, 0.1, measured),
            "silver": QUIET,
            "bronze": QUIET,
        },
    )


def a_decision(previous: int, desired: int, summary: str = "because") -> autoscaler_pb2.Decision:
    return autoscaler_pb2.Decision(
        tier=tier_pb2.TIER_GOLD,
        previous_desired=previous,
        desired=desired,
        rule=autoscaler_pb2.DECISION_RULE_SCALE_OUT_DEMAND,
        summary=summary,
    )


TURN = StoryTurn(2, "asks", ("a thimble",), 1, 0, ("lore.md",), "Told.", 0.5)
GOOD_EVENING: dict[str, Any] = {
    "bus": BusPicture(Counter({"weather.changed": 6}), Counter({"capacity.changed": 4})),
    "recording": Recording(
        [
            a_moment(0, players=0),
            a_moment(1, players=100, gold_ms=10),
            a_moment(2, players=200, gold_ms=20, gold=2),
            a_moment(3, players=100, gold_ms=12),
        ]
    ),
    "game": GameSample(
        3.0,
        0,
        {
            "gold": TierSample(sent=100, completed=97, shed={"QUEUE_FULL": 2}, failed={"X": 1}),
            "silver": TierSample(),
            "bronze": TierSample(),
        },
    ),
    "decisions": [a_decision(1, 2), a_decision(2, 1)],
    "story": [TURN],
    "remarks": [Remark(1.0, "incident", "gold host killed"), Remark(2.0, "fleet", "silent")],
    "restarts": {"autoscaler": 0},
    "budget_usd_per_player_month": 8.0,
    "game_ended_well": True,
}


def broken(findings: Findings) -> set[str]:
    return {check.name for check in findings.checks if not check.held}


def test_a_good_evening_holds_and_adds_up() -> None:
    findings = find(**GOOD_EVENING)
    assert findings.held, broken(findings)
    assert (findings.sent, findings.completed, findings.shed, findings.failed) == (100, 97, 2, 1)
    assert findings.unaccounted == 0
    assert findings.peak_players == 200
    assert findings.incidents == ["gold host killed"]
    gold = findings.tiers["gold"]
    assert (gold.scaled_out, gold.scaled_in, gold.most_ready) == (1, 1, 2)
    assert gold.share_within_target == pytest.approx(2 / 3)
    assert findings.tiers["silver"].share_within_target is None


def test_cost_is_over_players_and_a_month_of_730_hours() -> None:
    findings = find(**GOOD_EVENING)
    assert findings.peak_cost_usd_per_player_month == pytest.approx(4.0 / 200 * 730)
    cost, players = 2 + 2 + 4 + 2, 0 + 100 + 200 + 100
    assert findings.average_cost_usd_per_player_month == pytest.approx(cost / players * 730)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"game_ended_well": False}, "every request has an outcome"),
        ({"decisions": []}, "decided, and said why"),
        ({"decisions": [a_decision(1, 2, summary="")]}, "decided, and said why"),
        ({"decisions": [a_decision(1, 2)]}, "grew and shrank"),
        ({"story": []}, "storyteller remembered"),
        ({"bus": BusPicture(Counter({"weather.changed": 6}))}, "heard each other"),
        (
            {"bus": BusPicture(Counter({"x": 6}), Counter({"y": 4}), dead_letters=1)},
            "heard each other",
        ),
        ({"story": [replace(TURN, recalled=())]}, "storyteller remembered"),
        ({"story": [TURN, replace(TURN, error="away")]}, "storyteller remembered"),
        ({"restarts": {"autoscaler": 1}}, "no process died"),
        ({"game": None}, "players got answers"),
    ],
)
def test_what_does_not_hold_is_named(change: dict[str, Any], expected: str) -> None:
    findings = find(**{**GOOD_EVENING, **change})
    assert not findings.held
    assert any(expected in name for name in broken(findings))


@pytest.mark.parametrize(
    "gold",
    [
        TierSample(sent=100, completed=99),
        TierSample(sent=100, completed=90, shed={"QUEUE_FULL": 10}),
        TierSample(sent=100, completed=90, failed={"UNAVAILABLE": 10}),
    ],
    ids=["one lost", "too many turned away", "too many failed"],
)
def test_requests_that_were_lost_or_not_answered_do_not_hold(gold: TierSample) -> None:
    tiers = {"gold": gold, "silver": TierSample(), "bronze": TierSample()}
    assert not find(**{**GOOD_EVENING, "game": GameSample(3.0, 0, tiers)}).held


def test_an_evening_without_a_moment_is_reported_all_the_same() -> None:
    findings = find(**{**GOOD_EVENING, "recording": Recording()})
    assert findings.average_cost_usd_per_player_month is None
    assert findings.peak_players == 0


def test_a_reason_does_not_repeat_tier_and_sizes() -> None:
    decision = a_decision(2, 5, "Gold 2 → 5: demand needs 5")
    assert decision_reason(decision) == "demand needs 5"
    assert decision_sentence(decision) == "gold 2 → 5: demand needs 5"
    assert decision_reason(a_decision(2, 5, "")) == "scale out demand"


def test_readings_are_worded_with_their_units() -> None:
    assert [duration(each) for each in (None, 0.0091, 0.213, 2.44)] == [
        "-",
        "9.1 ms",
        "213 ms",
        "2.4 s",
    ]
    assert spark([0, 1, 2, 4], width=10) == "▁▂▄█"
    assert len(spark([float(each) for each in range(500)], width=40)) == 40
    assert spark([], width=10) == ""
