"""What becomes of outbox rows after the topic has answered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.errors import BusRefused, BusUnavailable, EventTooLarge
from messaging.outbox_rules import Deferred, Parked, RetryPolicy, judge
from servicekit.errors import DeadlineExceeded, Internal, ServiceError

POLICY = RetryPolicy(attempts=3, first_delay_seconds=1.0, maximum_delay_seconds=60.0)
AWAY = BusUnavailable("not now")
TOO_LARGE = EventTooLarge("300 KB")
FAULT = Internal("a fault of ours")

ERRORS = st.sampled_from(
    [AWAY, TOO_LARGE, FAULT, BusRefused("no such topic"), DeadlineExceeded("late")]
)


def test_what_the_topic_has_is_deleted() -> None:
    verdict = judge([(1, 0), (2, 0)], {}, POLICY)
    assert verdict.accepted == (1, 2)
    assert not verdict.topic_away


def test_an_event_that_can_never_be_published_is_parked_at_once_with_its_reason() -> None:
    verdict = judge([(1, 0), (2, 0)], {1: TOO_LARGE}, POLICY)
    assert verdict.parked == (Parked(1, "EVENT_TOO_LARGE: 300 KB"),)
    assert verdict.accepted == (2,)


def test_it_is_parked_even_alone() -> None:
    verdict = judge([(1, 0)], {1: TOO_LARGE}, POLICY)
    assert [parked.position for parked in verdict.parked] == [1]
    assert not verdict.topic_away


def test_an_outage_counts_against_no_event() -> None:
    rows = [(1, 2), (2, 0)]
    verdict = judge(rows, dict.fromkeys([1, 2], AWAY), POLICY)
    assert (verdict.accepted, verdict.parked, verdict.deferred) == ((), (), ())
    assert verdict.topic_away


def test_a_topic_that_refuses_everything_parks_nothing() -> None:
    verdict = judge([(1, 0), (2, 0)], dict.fromkeys([1, 2], BusRefused("no such topic")), POLICY)
    assert not verdict.parked
    assert verdict.topic_away


@pytest.mark.parametrize(("attempts", "delay_seconds"), [(0, 1.0), (1, 2.0)])
@pytest.mark.parametrize("error", [AWAY, BusRefused("no permission")])
def test_an_event_left_behind_waits_longer_each_time(
    attempts: int, delay_seconds: float, error: ServiceError
) -> None:
    verdict = judge([(1, attempts), (2, 0)], {1: error}, POLICY)
    assert verdict.deferred == (Deferred(1, delay_seconds),)
    assert not verdict.topic_away


def test_it_is_parked_in_the_end() -> None:
    verdict = judge([(1, 2), (2, 0)], {1: FAULT}, POLICY)
    assert [parked.position for parked in verdict.parked] == [1]


def test_pauses_are_bounded() -> None:
    assert POLICY.delay_seconds(10_000) == 60.0


@given(
    attempts=st.lists(st.integers(0, 5), max_size=12),
    failures=st.dictionaries(st.integers(0, 11), ERRORS),
)
def test_every_row_has_one_fate_and_none_is_lost(
    attempts: list[int], failures: dict[int, ServiceError]
) -> None:
    rows = list(enumerate(attempts))
    verdict = judge(rows, failures, POLICY)
    fates = [
        *verdict.accepted,
        *(parked.position for parked in verdict.parked),
        *(deferred.position for deferred in verdict.deferred),
    ]
    assert len(fates) == len(set(fates))
    waiting = {position for position, _ in rows} - set(fates)
    assert waiting <= set(failures)
    assert verdict.topic_away is bool(waiting)
    # Rows only wait in line while nothing at all passes, so they hold nobody up.
    assert not (waiting and verdict.accepted)
