"""Events of journals are held once, in order, within bounds, and gaps are never hidden."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.event_journals import EventBounds, EventJournals
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def events(first: int, last: int) -> tuple[GpuEvent, ...]:
    return tuple(
        GpuEvent(sequence=number, kind=GpuEventKind.XID, time=NOON, xid=79)
        for number in range(first, last + 1)
    )


def take(
    store: EventJournals,
    first: int,
    last: int,
    *,
    host: str = "i-1",
    journal: str = "j",
    oldest: int = 1,
) -> list[int]:
    new = store.take(host, journal, events(first, last), oldest_sequence=oldest, receive_time=NOON)
    return [event.sequence for event in new]


def held(store: EventJournals, position: int = 0, host: str = "i-1") -> list[int]:
    return [
        each.event.sequence
        for host_id, journal in store.changed_since(0)
        if host_id == host
        for each in journal.after(position, 1_000_000)
    ]


def test_an_event_that_comes_again_is_known() -> None:
    store = EventJournals()
    assert take(store, 1, 3) == [1, 2, 3]
    assert take(store, 2, 5) == [4, 5]
    assert take(store, 1, 5) == []
    assert (held(store), store.newest("i-1", "j"), store.count) == ([1, 2, 3, 4, 5], 5, 5)


def test_what_leaves_a_gap_is_not_taken_so_that_the_sender_starts_where_all_were_held() -> None:
    store = EventJournals()
    assert take(store, 4, 6) == []
    assert store.newest("i-1", "j") == 0
    take(store, 1, 2)
    assert take(store, 4, 6) == []
    assert store.newest("i-1", "j") == 2
    assert take(store, 1, 6) == [3, 4, 5, 6]


def test_what_the_journal_gave_up_is_passed_over_and_what_was_held_before_stays() -> None:
    store = EventJournals()
    take(store, 1, 2)
    assert take(store, 5, 6, oldest=5) == [5, 6]
    assert held(store) == [1, 2, 5, 6]
    assert take(store, 8, 9, oldest=5) == []


def test_a_journal_that_was_lost_is_followed_by_another_and_both_are_held() -> None:
    store = EventJournals()
    take(store, 1, 2)
    assert take(store, 1, 1, journal="k") == [1]
    assert {journal.journal_id: journal.newest for _, journal in store.changed_since(0)} == {
        "j": 2,
        "k": 1,
    }


def test_a_host_beyond_its_bound_gives_up_its_oldest_events() -> None:
    store = EventJournals(EventBounds(per_host=3, in_all=100))
    take(store, 1, 5)
    assert (held(store), store.newest("i-1", "j"), store.given_up) == ([3, 4, 5], 5, 2)
    assert held(store, position=4) == [5]


def test_a_host_that_reports_without_end_costs_no_other_host_its_events() -> None:
    store = EventJournals(EventBounds(per_host=100, in_all=20))
    take(store, 1, 2, host="quiet")
    for number in range(1, 80):
        take(store, number, number, host="noisy")
    assert held(store, host="quiet") == [1, 2]
    assert store.count <= 20


def test_of_too_many_hosts_the_longest_quiet_is_forgotten() -> None:
    store = EventJournals(EventBounds(hosts=2))
    for number, host in enumerate(("a", "b", "a", "c")):
        take(store, 1 if number < 2 else number, number, host=host)
        take(store, 1, 1, host=host)
    assert sorted({host for host, _ in store.changed_since(0)}) == ["a", "c"]
    assert store.count == len(held(store, host="a")) + len(held(store, host="c"))


def test_only_what_changed_is_looked_at_earliest_change_first() -> None:
    store = EventJournals()
    for host in ("a", "b", "c"):
        take(store, 1, 1, host=host)
    revision = store.revision
    take(store, 2, 2, host="c")
    take(store, 2, 2, host="a")
    assert [host for host, _ in store.changed_since(revision)] == ["c", "a"]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8), st.integers(1, 20)), max_size=60))
def test_however_messages_come_a_reader_gets_each_event_once_and_every_gap_is_one(
    messages: list[tuple[int, int, int]],
) -> None:
    store = EventJournals(EventBounds(per_host=7, in_all=7))
    oldest, position, lost, seen = 1, 0, 0, []
    for first, length, journal_oldest in messages:
        oldest = max(oldest, journal_oldest)
        take(store, max(first, oldest), max(first, oldest) + length, oldest=oldest)
        for _, journal in store.changed_since(0):
            for each in journal.after(position, 3):
                lost += each.event.sequence - position - 1
                position = each.event.sequence
                seen.append(position)
    assert seen == sorted(set(seen))
    assert len(seen) + lost == position
    assert store.count <= 7
