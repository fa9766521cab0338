"""Who waits, and who goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_router.domain.ticket import Ticket
from ai_router.domain.tiers import Priority, Tier
from ai_router.domain.waiting_queue import WaitingQueue


def ticket(
    priority: Priority = Priority.NORMAL, deadline: float = 10.0, tokens: int = 10
) -> Ticket:
    return Ticket(
        request_id="r",
        wanted_tier=Tier.GOLD,
        tier_reason="",
        priority=priority,
        prompt_tokens=tokens,
        output_tokens=0,
        arrived_at=0.0,
        deadline=deadline,
    )


def test_the_most_urgent_goes_first_then_the_earliest_deadline_then_the_first_come() -> None:
    queue = WaitingQueue(10)
    low = ticket(Priority.LOW, 1.0)
    late, first, second = ticket(deadline=9.0), ticket(deadline=5.0), ticket(deadline=5.0)
    high = ticket(Priority.HIGH, 99.0)
    for entry in (low, late, first, second, high):
        assert queue.add(entry) is None
    assert list(queue) == [high, first, second, late, low]
    assert queue.head is high
    assert queue.tokens == 50
    assert queue.ahead(late) == (3, 30)
    assert queue.ahead(ticket(Priority.NORMAL, 7.0)) == (3, 30)


def test_a_full_queue_pushes_out_only_for_a_higher_priority() -> None:
    queue = WaitingQueue(2)
    low, normal = ticket(Priority.LOW), ticket()
    queue.add(low)
    queue.add(normal)
    assert not queue.has_room(ticket(Priority.LOW, 0.1))
    newcomer = ticket(deadline=99.0)
    assert queue.add(newcomer) is low
    assert not queue.has_room(ticket(deadline=0.1))
    with pytest.raises(ValueError, match="full"):
        queue.add(ticket())
    assert list(queue) == [normal, newcomer]


def test_a_queue_without_room_takes_nobody() -> None:
    assert not WaitingQueue(0).has_room(ticket(Priority.HIGH))


def test_nobody_overtakes_the_head_unless_more_urgent() -> None:
    queue = WaitingQueue(5)
    head = ticket(deadline=5.0)
    queue.add(head)
    assert queue.is_first(head)
    assert not queue.is_first(ticket(deadline=5.0))
    assert queue.is_first(ticket(deadline=4.0))
    assert queue.is_first(ticket(Priority.HIGH, 99.0))


def test_removing_is_idempotent() -> None:
    queue = WaitingQueue(5)
    entry = ticket()
    queue.add(entry)
    assert queue.remove(entry)
    assert not queue.remove(entry)
    assert (len(queue), queue.tokens) == (0, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Priority)), st.floats(0, 50), st.booleans()), max_size=60
    ),
    st.integers(1, 8),
)
def test_it_is_always_ordered_bounded_and_counted(
    steps: list[tuple[Priority, float, bool]], limit: int
) -> None:
    queue = WaitingQueue(limit)
    for priority, deadline, leave in steps:
        entry = ticket(priority, deadline)
        if queue.has_room(entry):
            pushed = queue.add(entry)
            assert pushed is None or pushed.priority < priority
        if leave and queue.head is not None:
            assert queue.remove(queue.head)
        waiting = list(queue)
        assert len(waiting) <= limit
        ranks = [(-t.priority, t.deadline, t.sequence) for t in waiting]
        assert ranks == sorted(ranks)
        assert queue.tokens == sum(t.tokens for t in waiting)
