"""What the autoscaler takes from the game's event bus, and what it tells it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.adapters.bus_events import capacity_message, player_share
from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import DecisionRecord, Outcome
from autoscaler.domain.observation import Players
from autoscaler.domain.player_counts import PlayerShare, players_in_force
from autoscaler.testing.builders import START, build_policy, build_tier_snapshot
from gaming.common.v1 import tier_pb2
from gaming.events import events_pb2 as pb
from messaging.codec import new_event
from messaging.errors import PoisonEvent

STALE_SECONDS = 120.0


def share(online: int, age_seconds: float, source: str = "a", world_id: str = "") -> PlayerShare:
    return PlayerShare(
        source=source, world_id=world_id, online=online, count_time=START - age_seconds
    )


def in_force(reported: Players | None, *shares: PlayerShare) -> Players | None:
    return players_in_force(reported, shares, now=START, stale_seconds=STALE_SECONDS)


def test_shares_of_several_services_and_worlds_add_up_and_are_as_old_as_the_oldest() -> None:
    assert in_force(
        None, share(100, 5, "a", "w1"), share(30, 20, "a", "w2"), share(7, 0, "b")
    ) == Players(online=137, count_time=START - 20)


def test_a_silent_services_share_is_left_out_once_it_is_stale() -> None:
    assert in_force(None, share(100, 5), share(900, STALE_SECONDS, "gone")) == Players(
        online=100, count_time=START - 5
    )


def test_with_only_stale_shares_the_count_is_stale_too() -> None:
    found = in_force(None, share(100, 300, "a"), share(50, 400, "b"))
    assert found == Players(online=150, count_time=START - 400)


def test_the_newer_of_report_and_shares_counts() -> None:
    reported = Players(online=500, count_time=START - 10)
    assert in_force(reported, share(100, 20)) == reported
    assert in_force(reported, share(100, 2), share(5, 50, "b")) == Players(
        online=105, count_time=START - 50
    )
    assert in_force(reported) == reported
    assert in_force(None) is None


def counted(
    value: str | None, *, source: str = "game-state", timestamp: int = 0, world_id: str = ""
) -> pb.GameEvent:
    state = {"season": "autumn"} if value is None else {"players_online": value}
    return new_event(
        pb.WORLD_STATE_UPDATED,
        pb.StateUpdate(state=state, update_type="delta"),
        source=source,
        event_id="e1",
        timestamp_milliseconds=timestamp or round((START - 3) * 1000),
        metadata={"world_id": world_id} if world_id else {},
    )


def read(event: pb.GameEvent, *sources: str) -> PlayerShare | None:
    return player_share(event, state_key="players_online", sources=sources, now=START)


def test_an_event_with_the_key_counts_players() -> None:
    found = read(counted(" 812 ", world_id="w1"))
    assert found == share(812, 3, "game-state", "w1")


def test_events_without_the_key_of_other_types_or_of_others_count_none() -> None:
    weather = counted("812")
    weather.event_type = pb.WEATHER_CHANGED
    assert read(counted(None)) is None
    assert read(weather) is None
    assert read(counted("812"), "somebody-else") is None
    assert read(counted("812"), "game-state", "somebody-else") is not None


@pytest.mark.parametrize(
    "value", ["", "-1", "+5", "1_000", "12.5", "٣", "many", "10000001", "9" * 5000]
)
def test_a_count_that_is_no_number_of_players_is_poison(value: str) -> None:
    with pytest.raises(PoisonEvent):
        read(counted(value))


def test_a_count_of_a_later_moment_is_poison_because_it_would_keep_out_all_that_follow() -> None:
    assert read(counted("5", timestamp=round((START + 59) * 1000))) is not None
    with pytest.raises(PoisonEvent):
        read(counted("5", timestamp=round((START + 61) * 1000)))


def test_a_payload_of_another_message_is_poison() -> None:
    event = counted("5")
    event.payload = b"\x0a\xff"
    with pytest.raises(PoisonEvent):
        read(event)


@given(value=st.text(max_size=30), source=st.text(max_size=30), timestamp=st.integers(0, 2**62))
def test_whatever_an_event_counts_is_kept_or_poison(
    value: str, source: str, timestamp: int
) -> None:
    event = counted(value, source=source)
    event.timestamp = timestamp
    try:
        found = read(event)
    except PoisonEvent:
        return
    assert found is not None
    assert 0 <= found.online <= 10_000_000
    assert found.count_time <= START + 60
    assert "\0" not in found.source


def record(outcome: Outcome | None = Outcome.APPLIED, tokens: int = 90_000) -> DecisionRecord:
    decision, _ = decide(build_tier_snapshot(2, tokens), ControlState(), build_policy(), START)
    return DecisionRecord(
        decision_id="019a5f21-7c3a-7a10-8b52-60d1f0c4e7aa",
        decide_time=START,
        decision=decision,
        counterfactuals=(),
        decided_by="a",
        lease_epoch=1,
        outcome=outcome,
    )


def test_a_change_of_capacity_is_told_with_its_reason() -> None:
    known = record()
    message = capacity_message(known)
    assert message is not None
    assert (message.event_id, message.event_type) == (known.decision_id, pb.CAPACITY_CHANGED)
    assert message.timestamp == round(START * 1000)
    event = pb.CapacityChangedEvent.FromString(message.payload)
    assert event.decision_id == known.decision_id
    assert event.tier == tier_pb2.TIER_GOLD
    assert (event.previous_desired, event.desired) == (2, known.decision.desired)
    assert event.desired > 2
    assert event.ready_servers == 2
    assert (event.rule, event.reason) == (known.decision.rule.value, known.decision.summary)


@pytest.mark.parametrize("outcome", [None, Outcome.DRY_RUN, Outcome.FAILED, Outcome.NO_CHANGE])
def test_what_changed_no_capacity_is_not_told(outcome: Outcome | None) -> None:
    assert capacity_message(record(outcome)) is None
    steady = record(tokens=9_000)
    decision = replace(steady.decision, desired=steady.decision.previous_desired)
    assert capacity_message(replace(steady, decision=decision)) is None
