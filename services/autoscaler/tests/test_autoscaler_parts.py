"""Smaller parts: drains, victims, journal, holds, ids, settings, errors."""

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.adapters.decision_json import record_from_json, record_to_json
from autoscaler.buffered_journal import BufferedJournal, EndDrain, SaveDecision, SaveDrain
from autoscaler.config import AutoscalerSettings, parse_prices
from autoscaler.decision_feed import DecisionFeed
from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import Counterfactual, DecisionRecord, DecisionRule, Outcome
from autoscaler.domain.drains import Drain, DrainVerdict, judge_drain
from autoscaler.domain.journal_rules import JournalPolicy, LastEntry, decision_id, is_worth_writing
from autoscaler.domain.override_rules import InvalidOverride, check_override
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.snapshot import InstancePhase
from autoscaler.domain.tiers import Tier
from autoscaler.domain.victims import choose_victims
from autoscaler.proto_codec import (
    decision_to_wire,
    explanation_to_wire,
    filter_from_wire,
    override_to_wire,
    page_token,
)
from autoscaler.testing.builders import START, build_instance, build_policy, build_tier_snapshot
from autoscaler.testing.memory_stores import MemoryDatabase
from gaming.autoscaler.v1 import autoscaler_pb2 as pb
from gaming.common.v1 import tier_pb2
from servicekit.paging import InvalidPageToken
from servicekit.settings import SettingsError, load_settings
from servicekit.testing import FakeClock

DRAIN = Drain(
    instance_id="i-1",
    tier=Tier.GOLD,
    server_ids=("gold-1",),
    start_time=START,
    deadline=START + 60,
    decision_id="d",
)


def record(number: int = 0, tokens: int = 40_000, **changes: Any) -> DecisionRecord:
    decision, _ = decide(build_tier_snapshot(2, tokens), ControlState(), build_policy(), START)
    values: dict[str, Any] = {
        "decision_id": decision_id(int(START * 1000) + number, 0, number),
        "decide_time": START + number,
        "decision": decision,
        "counterfactuals": (Counterfactual("with 50% of the demand", 3),),
        "decided_by": "a",
        "lease_epoch": 1,
        "outcome": Outcome.APPLIED,
    }
    return DecisionRecord(**(values | changes))


@pytest.mark.parametrize(
    ("running", "fleet", "may", "after", "verdict"),
    [
        ({"a": 0, "b": 0}, 0, True, 5, DrainVerdict.TERMINATE),
        ({"a": 0, "b": 0}, None, True, 5, DrainVerdict.TERMINATE),
        ({"a": 0, "b": 1}, 0, True, 5, DrainVerdict.WAIT),
        ({"a": 0, "b": None}, 0, True, 5, DrainVerdict.WAIT),
        ({"a": 0, "b": 0}, 2, True, 5, DrainVerdict.WAIT),
        ({"a": 3, "b": None}, 2, True, 60, DrainVerdict.TERMINATE),
        ({"a": 0, "b": 0}, 0, False, 5, DrainVerdict.WAIT),
        ({"a": 0, "b": 0}, 0, False, 600, DrainVerdict.WAIT),
    ],
    ids=[
        "drained",
        "drained, feed stale",
        "one router busy",
        "one router silent",
        "others busy",
        "deadline",
        "database away",
        "database away after the deadline",
    ],
)
def test_an_instance_goes_when_nothing_runs_or_time_is_up(
    running: Any, fleet: Any, may: Any, after: Any, verdict: Any
) -> None:
    answer, why = judge_drain(
        DRAIN,
        running_by_router=running,
        fleet_requests=fleet,
        fleet_is_fresh=fleet is not None,
        settle_seconds=15.0,
        may_take_away=may,
        now=START + after,
    )
    assert answer is verdict
    assert why


def test_victims_are_those_that_are_missed_least() -> None:
    servers = (
        build_instance(1, load_requests=9),
        build_instance(2, load_requests=1),
        build_instance(3, load_requests=1, usd_per_hour=2.0),
        build_instance(4, load_requests=1, usd_per_hour=2.0, launch_time=START - 9_000),
        build_instance(5, load_requests=9, interruption_time=START + 60),
        build_instance(6, phase=InstancePhase.PENDING),
        build_instance(7, phase=InstancePhase.UNRESPONSIVE, load_requests=50),
    )
    order = [i.instance_id for i in choose_victims(servers, 7)]
    assert order == ["i-0007", "i-0006", "i-0005", "i-0004", "i-0003", "i-0002", "i-0001"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**47), st.integers(0, 4095)), min_size=2))
def test_decision_ids_ascend_in_time_and_counter(moments: Any) -> None:
    ids = [decision_id(at, counter, 12345) for at, counter in sorted(moments)]
    assert ids == sorted(ids)
    assert all(uuid.UUID(i).version == 7 for i in ids)


def last(**changes: Any) -> LastEntry:
    values: dict[str, Any] = {
        "time": START,
        "rule": DecisionRule.STEADY,
        "outcome": Outcome.NO_CHANGE,
        "desired": 2,
    }
    return LastEntry(**(values | changes))


def test_changes_are_always_written_and_steadiness_once_a_minute() -> None:
    policy = JournalPolicy()
    change, steady = record().decision, record(tokens=12_000).decision
    assert is_worth_writing(change, last(), policy, START + 1)
    assert is_worth_writing(steady, None, policy, START)
    assert not is_worth_writing(steady, last(), policy, START + 59)
    assert is_worth_writing(steady, last(), policy, START + 60)


def test_a_flapping_rule_is_written_at_a_bounded_pace() -> None:
    policy = JournalPolicy()
    steady = record(tokens=12_000).decision
    held = last(rule=DecisionRule.HOLD_STABILISATION)
    assert not is_worth_writing(steady, held, policy, START + 9)
    assert is_worth_writing(steady, held, policy, START + 10)


def test_the_same_failure_is_written_once_a_minute() -> None:
    policy = JournalPolicy()
    failed = last(outcome=Outcome.FAILED, desired=6, rule=DecisionRule.SCALE_OUT_DEMAND)
    assert not is_worth_writing(record().decision, failed, policy, START + 30)
    assert is_worth_writing(record().decision, failed, policy, START + 60)


EPOCH = 3


def led_database() -> MemoryDatabase:
    return MemoryDatabase(now=lambda: START, lease=("a", EPOCH, START + 60))


def journal(database: MemoryDatabase, limit: int = 5) -> BufferedJournal:
    stores = database.stores()
    return BufferedJournal(stores.journal, stores.drains, limit=limit, epoch=lambda: EPOCH)


async def test_a_database_known_to_be_away_is_not_even_tried() -> None:
    """One that is frozen would keep every round of the control loop waiting for its timeouts."""
    database = MemoryDatabase(now=lambda: START)
    stores = database.stores()
    reachable = False
    buffered = BufferedJournal(
        stores.journal, stores.drains, limit=5, epoch=lambda: EPOCH, reachable=lambda: reachable
    )
    assert not await buffered.write(SaveDecision(record(1)))
    assert database.decisions == {}
    reachable = True
    assert await buffered.flush()
    assert len(database.decisions) == 1


async def test_what_the_database_cannot_take_is_written_in_order_later() -> None:
    database = led_database()
    buffered = journal(database, limit=50)
    database.is_reachable = False
    assert not await buffered.write(SaveDecision(record(1, outcome=None)))
    assert not await buffered.write(SaveDrain(DRAIN))
    assert not await buffered.write(SaveDecision(record(1)))
    assert not await buffered.write(SaveDecision(record(2)))
    assert not await buffered.write(EndDrain("i-1"))
    assert buffered.waiting_decisions == 2
    database.is_reachable = True
    assert await buffered.flush()
    assert database.publications == [record(1).decision_id, record(2).decision_id]
    assert database.drains == {}
    assert buffered.waiting_decisions == 0


async def test_a_full_buffer_drops_what_changed_nothing_first_and_never_drains() -> None:
    database = led_database()
    database.is_reachable = False
    buffered = journal(database)
    await buffered.write(SaveDrain(DRAIN))
    await buffered.write(SaveDecision(record(1)))
    for number in range(2, 6):
        await buffered.write(SaveDecision(record(number, tokens=12_000, outcome=Outcome.NO_CHANGE)))
    await buffered.write(SaveDecision(record(6)))
    assert buffered.dropped == 2
    database.is_reachable = True
    await buffered.flush()
    assert "i-1" in database.drains
    assert record(1).decision_id in database.decisions
    assert record(6).decision_id in database.decisions
    assert record(2).decision_id not in database.decisions


async def test_what_another_leader_is_to_write_is_given_up_and_the_rest_is_written() -> None:
    database = led_database()
    buffered = journal(database)
    assert await buffered.write(SaveDrain(DRAIN))
    database.lease = ("b", EPOCH + 1, START + 60)
    assert not await buffered.write(EndDrain("i-1"))
    assert not await buffered.write(SaveDrain(replace(DRAIN, instance_id="i-2")))
    assert await buffered.write(SaveDecision(record(1)))
    assert list(database.drains) == ["i-1"]
    assert list(database.decisions) == [record(1).decision_id]


def hold(kind: OverrideKind, **changes: Any) -> Override:
    values: dict[str, Any] = {"expire_time": START + 60, "reason": "x", "set_by": "ops"}
    return Override(kind=kind, **(values | changes))


@pytest.mark.parametrize(
    "override",
    [
        hold(OverrideKind.PIN, desired=0),
        hold(OverrideKind.FREEZE),
        hold(OverrideKind.BOUNDS, minimum=2),
        hold(OverrideKind.BOUNDS, minimum=2, maximum=2),
        hold(OverrideKind.PIN, desired=4, expire_time=START + 30 * 86_400),
    ],
)
def test_holds_that_make_sense_are_taken(override: Override) -> None:
    check_override(override, START)


@pytest.mark.parametrize(
    ("override", "fields"),
    [
        (hold(OverrideKind.PIN), ["override.desired"]),
        (hold(OverrideKind.PIN, desired=1, minimum=1), ["override.desired"]),
        (hold(OverrideKind.FREEZE, maximum=1), ["override.kind"]),
        (hold(OverrideKind.BOUNDS), ["override.minimum"]),
        (hold(OverrideKind.BOUNDS, minimum=3, maximum=2), ["override.minimum"]),
        (hold(OverrideKind.FREEZE, expire_time=START), ["override.expire_time"]),
        (
            hold(OverrideKind.PIN, expire_time=START + 31 * 86_400),
            ["override.desired", "override.expire_time"],
        ),
    ],
)
def test_holds_that_do_not_are_refused_field_by_field(override: Override, fields: Any) -> None:
    with pytest.raises(InvalidOverride) as caught:
        check_override(override, START)
    assert [v.field for v in caught.value.field_violations] == fields


def test_a_record_survives_its_json() -> None:
    for tokens in (0, 12_000, 40_000):
        assert record_from_json(record_to_json(record(tokens=tokens))) == record(tokens=tokens)


def test_every_rule_and_outcome_has_its_number_on_the_wire() -> None:
    for rule in DecisionRule:
        decision = replace(record().decision, rule=rule)
        wire = decision_to_wire(record(decision=decision))
        assert pb.DecisionRule.Name(wire.rule) == f"DECISION_RULE_{rule.value}"
    for outcome in Outcome:
        wire = decision_to_wire(record(outcome=outcome))
        assert pb.DecisionOutcome.Name(wire.outcome) == f"DECISION_OUTCOME_{outcome.value}"


def test_what_is_not_known_is_unset_on_the_wire() -> None:
    snapshot = build_tier_snapshot(2, demand=None, demand_age_seconds=None)
    decision, _ = decide(snapshot, ControlState(), build_policy(), START)
    inputs = explanation_to_wire(record(decision=decision)).decision.inputs
    assert not inputs.HasField("running_requests")
    assert not inputs.HasField("arrivals_per_second")
    assert not inputs.HasField("demand_age")
    assert inputs.HasField("fleet_age")


def test_a_page_token_belongs_to_its_list() -> None:
    request = pb.ListDecisionsRequest(tier=tier_pb2.TIER_GOLD)
    request.page_token = page_token(request, record().decision_id)
    assert filter_from_wire(request).before_id == record().decision_id
    request.changes_only = True
    with pytest.raises(InvalidPageToken):
        filter_from_wire(request)
    with pytest.raises(InvalidPageToken):
        filter_from_wire(pb.ListDecisionsRequest(page_token="bm9uc2Vuc2U="))


ENVIRON = {"AUTOSCALER_DATABASE_URL": "postgresql://localhost/x"}


def test_defaults_are_complete_and_consistent() -> None:
    settings = load_settings(AutoscalerSettings, ENVIRON)
    policies = settings.policies()
    assert set(policies) == set(Tier)
    assert policies[Tier.GOLD].latency_target_seconds == 0.016
    assert settings.lease.renew_seconds < settings.lease.ttl_seconds / 3
    assert settings.prices.table().usd_per_hour("g6.xlarge", is_spot=True) == 0.35
    floors = settings.budget().floor_servers
    price = {"gold": 1.006, "silver": 1.212, "bronze": 0.68}
    floor = sum(price[t.value] * n for t, n in floors.items())
    assert floor == pytest.approx(6.122)


def test_contradicting_settings_are_reported_together() -> None:
    wrong = ENVIRON | {
        "AUTOSCALER_GOLD_MINIMUM": "60",
        "AUTOSCALER_SILVER_LATENCY_TARGET_SECONDS": "0.05",
    }
    settings = load_settings(AutoscalerSettings, wrong)
    with pytest.raises(SettingsError) as caught:
        settings.policies()
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["g5.xlarge", "g5.xlarge=", "=1", "g5.xlarge=-1", "a=1,b=x"])
def test_prices_that_cannot_be_read_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="type=USD-per-hour"):
        parse_prices(text)


async def test_subscribers_get_each_decision_once_whoever_published_it_first() -> None:
    database = MemoryDatabase(now=lambda: START)
    stores = database.stores()
    clock = FakeClock()
    feed = DecisionFeed(stores.journal, clock=clock, epoch="e", poll_seconds=1.0)
    await feed.poll()
    subscription = feed.subscribe("", Tier.GOLD, changes_only=True)
    first = asyncio.ensure_future(anext(subscription))
    await clock.settle()
    await stores.journal.save(record(1))
    feed.publish(record(1))
    await stores.journal.save(record(2, tokens=12_000, outcome=Outcome.NO_CHANGE))
    await stores.journal.save(record(3))
    await feed.poll()
    assert (await first).item == record(1)
    assert (await anext(subscription)).item == record(3)
    assert feed.latest_change(Tier.GOLD) == record(3)
    await subscription.aclose()


async def test_what_was_decided_before_a_replica_started_is_no_news_and_can_be_explained() -> None:
    database = MemoryDatabase(now=lambda: START)
    stores = database.stores()
    clock = FakeClock()
    await stores.journal.save(record(1))
    feed = DecisionFeed(stores.journal, clock=clock, epoch="e", poll_seconds=1.0)
    subscription = feed.subscribe("", None, changes_only=False)
    first = asyncio.ensure_future(anext(subscription))
    await clock.settle()
    await feed.poll()
    await stores.journal.save(record(2))
    await feed.poll()
    assert (await first).item == record(2)
    assert feed.recent(record(1).decision_id) == record(1)
    await subscription.aclose()


def test_a_moment_reads_the_same_from_memory_and_from_the_database() -> None:
    # 0.824579840 s is what a float makes of it; PostgreSQL keeps 0.824580 s.
    moments = (1795362474.82457984, 1795362474.82458)
    from_memory, from_database = (
        override_to_wire(
            Override(
                kind=OverrideKind.FREEZE, expire_time=moment, reason="boss fight", set_by="ada"
            )
        )
        for moment in moments
    )
    assert from_memory == from_database
