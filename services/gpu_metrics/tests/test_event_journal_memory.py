"""The journal without a disk, and with one that fails."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.event_window import EventWindow
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, ObservedEvent
from gpu_metrics.domain.xid_counts import XidCounts
from gpu_metrics.journal import EventJournal

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def xid(code: int = 31, gpu: str = "GPU-a") -> ObservedEvent:
    return ObservedEvent(kind=GpuEventKind.XID, time=NOON, gpu_uuid=gpu, xid=code)


def numbered(first: int, last: int) -> list[GpuEvent]:
    return [
        GpuEvent(sequence=number, kind=GpuEventKind.GPU_LOST, time=NOON)
        for number in range(first, last + 1)
    ]


class BrokenDisk:
    """A store that takes `good` appends and then none."""

    def __init__(self, good: int) -> None:
        self._good = good

    async def append(self, events: Sequence[GpuEvent], acknowledged: int) -> None:
        if self._good == 0:
            raise OSError(28, "No space left on device")
        self._good -= 1

    async def compact(
        self, events: Sequence[GpuEvent], counts: XidCounts, acknowledged: int
    ) -> None:
        raise OSError(28, "No space left on device")


@given(
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 40)), max_size=30),
    bound=st.integers(1, 12),
)
def test_what_a_window_holds_lost_or_gave_up_heard_is_everything_there_ever_was(
    steps: list[tuple[int, int]], bound: int
) -> None:
    window = EventWindow("j", bound=bound)
    unheard_given_up = 0
    for added, acknowledged in steps:
        for event in numbered(window.last_sequence + 1, window.last_sequence + added):
            oldest = window.oldest_sequence
            full = len(window.events) == bound
            unheard_given_up += full and oldest > window.acknowledged
            window.append([event])
        window.acknowledge(acknowledged)
    assert window.lost == unheard_given_up
    assert len(window.events) == min(bound, window.last_sequence)
    assert [event.sequence for event in window.events] == list(
        range(window.oldest_sequence, window.last_sequence + 1)
    )


@given(held=st.integers(0, 9), given_up=st.integers(0, 5), position=st.integers(0, 20))
def test_a_collector_is_given_what_follows_its_position(
    held: int, given_up: int, position: int
) -> None:
    window = EventWindow("j", bound=20, events=numbered(given_up + 1, given_up + held))
    got = [event.sequence for event in window.after(position, 3)]
    wanted = [number for number in range(given_up + 1, given_up + held + 1) if number > position]
    assert got == wanted[:3]


def test_a_window_refuses_a_gap() -> None:
    window = EventWindow("j", bound=5)
    with pytest.raises(ValueError, match="does not follow"):
        window.append(numbered(2, 2))


async def test_events_are_numbered_without_gaps_and_xids_counted_by_gpu_and_code() -> None:
    journal = EventJournal()
    first = await journal.append([xid(31), xid(31, "GPU-b"), xid(79)])
    second = await journal.append([xid(31)])
    assert [event.sequence for event in (*first, *second)] == [1, 2, 3, 4]
    assert [event.xid_count for event in (*first, *second)] == [1, 1, 1, 2]


async def test_xids_are_counted_anew_when_the_driver_was_loaded_anew() -> None:
    journal = EventJournal()
    await journal.append([xid(31), xid(31), xid(31, "GPU-b")])
    one = ObservedEvent(kind=GpuEventKind.DRIVER_RELOADED, time=NOON, gpu_uuid="GPU-a")
    _, reloaded, other = await journal.append([one, xid(31), xid(31, "GPU-b")])
    assert (reloaded.xid_count, other.xid_count) == (1, 2)
    _, after = await journal.append([replace(one, gpu_uuid=""), xid(31, "GPU-b")])
    assert after.xid_count == 1


async def test_an_event_is_made_such_that_every_collector_can_take_it() -> None:
    strange = replace(
        xid(2**32 + 31), description="a\0b" + "x" * 400, recommended_action="\u202e" + "y" * 400
    )
    (event,) = await EventJournal().append([strange])
    assert (event.xid, event.description[:3], len(event.description)) == (31, "abx", 256)
    assert event.recommended_action == "y" * 128


async def test_a_disk_that_fails_costs_no_event_and_no_number_is_given_twice() -> None:
    journal = EventJournal(store=BrokenDisk(good=1))
    on_disk = journal.journal_id
    await journal.append([xid()])
    (event,) = await journal.append([xid()])
    assert journal.journal_id != on_disk
    assert (event.sequence, event.xid_count) == (1, 2)
    # A collector gets the rest of the one, then the other.
    first = journal.next_batch({}, 10)
    assert first is not None
    assert (first.journal_id, len(first.events)) == (on_disk, 1)
    second = journal.next_batch({on_disk: 1}, 10)
    assert second is not None
    assert (second.journal_id, second.events) == (journal.journal_id, (event,))
    assert journal.next_batch({on_disk: 1, journal.journal_id: 1}, 10) is None


async def test_a_journal_that_cannot_be_compacted_goes_on() -> None:
    journal = EventJournal(bound=2, store=BrokenDisk(good=100))
    for _ in range(20):
        await journal.append([xid()])
    batch = journal.next_batch({}, 10)
    assert batch is not None
    assert [event.sequence for event in batch.events] == [19, 20]
    assert batch.oldest_sequence == 19
    assert journal.lost_events == 18


async def test_what_one_collector_holds_is_not_lost_when_it_is_given_up() -> None:
    journal = EventJournal(bound=2)
    await journal.append([xid(), xid()])
    journal.acknowledge(journal.journal_id, 1)
    await journal.append([xid(), xid()])
    assert journal.lost_events == 1
