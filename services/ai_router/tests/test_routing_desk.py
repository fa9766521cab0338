"""The routing policy as a whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_router.domain.errors import DeadlineUnreachable, NoCapacity, Overloaded
from ai_router.domain.explanation import Verdict, explain
from ai_router.domain.generation import GenerationRequest
from ai_router.domain.routing import RoutingDesk
from ai_router.domain.ticket import Placement, Ticket
from ai_router.domain.tiers import Priority, Tier
from ai_router.testing.builders import CAPACITY_TOKENS, desk, report, request, view


def submit(
    routing: RoutingDesk, wanted: GenerationRequest, now: float = 0.0
) -> tuple[Ticket, Placement | None]:
    ticket = routing.draft(wanted, now)
    routing.admit(ticket)
    return ticket, routing.offer(ticket, now).placement


def fill(routing: RoutingDesk, tier: Tier = Tier.GOLD, now: float = 0.0) -> list[Placement]:
    """Puts requests on the tier until the next would not fit, and returns their places."""
    places: list[Placement] = []
    while True:
        ticket = routing.draft(request(tier=tier, forbid_fallback=True), now)
        if routing.would_place(ticket) is None:
            return places
        placement = routing.offer(ticket, now).placement
        assert placement is not None
        places.append(placement)


def finish(routing: RoutingDesk, placement: Placement, now: float, tokens: int = 100) -> None:
    routing.complete(
        placement, now, first_token_at=now - 0.5, prompt_tokens=10, output_tokens=tokens
    )


def test_a_request_goes_to_the_least_loaded_server_of_its_tier() -> None:
    routing = desk(report("a"), report("b"), report("s", Tier.SILVER))
    servers = {submit(routing, request())[1].server_id for _ in range(2)}  # type: ignore[union-attr]  # placed
    assert servers == {"a", "b"}


def test_a_full_tier_lets_wait_and_serves_when_room_comes_free() -> None:
    routing = desk(report("a"))
    places = fill(routing)
    ticket, placement = submit(routing, request(forbid_fallback=True))
    assert placement is None
    assert routing.dispatch(0.1) == []
    finish(routing, places[0], 0.2)
    (served,) = routing.dispatch(0.2)
    assert served.ticket is ticket
    assert served.placement is not None


def test_a_small_request_never_overtakes_a_waiting_one_of_equal_rank() -> None:
    routing = desk(report("a"))
    fill(routing)
    _, large = submit(routing, request("x" * 1600, forbid_fallback=True))
    small_ticket, small = submit(
        routing, request("x", max_output_tokens=1, forbid_fallback=True), now=0.1
    )
    assert (large, small) == (None, None)
    assert routing.queued(Tier.GOLD).ahead(small_ticket)[0] == 1


def test_a_wait_beyond_patience_goes_to_the_tier_that_stands_in() -> None:
    routing = desk(
        report("g"), report("s", Tier.SILVER), fallback_patience_seconds=0.0, token_seconds=0.1
    )
    fill(routing)
    _, placement = submit(routing, request())
    assert placement is not None
    assert placement.tier is Tier.SILVER
    assert "stands in" in placement.reason


def test_guests_leave_room_for_the_tiers_own() -> None:
    routing = desk(report("s", Tier.SILVER), guest_load_limit=0.5)
    guests = []
    for _ in range(6):
        ticket = routing.draft(request(), 0.0)
        try:
            placement = routing.offer(ticket, 0.0).placement
        except NoCapacity:
            break
        guests.append(placement)
    placed = sum(p.tokens for p in guests if p is not None)
    assert 0 < placed <= CAPACITY_TOKENS // 2
    _, own = submit(routing, request(tier=Tier.SILVER))
    assert own is not None


def test_guests_wait_behind_the_tiers_own_queue() -> None:
    routing = desk(report("s", Tier.SILVER), guest_load_limit=1.0)
    fill(routing, Tier.SILVER)
    own, _ = submit(routing, request("x" * 1200, tier=Tier.SILVER, forbid_fallback=True))
    guest, placement = submit(routing, request("x", max_output_tokens=1))
    assert placement is None
    assert list(routing.queued(Tier.GOLD)) == [guest]
    assert routing.dispatch(0.1) == []
    assert routing.queued(Tier.SILVER).head is own


def test_who_may_not_leave_holds_up_nobody_who_may() -> None:
    routing = desk(report("s", Tier.SILVER), guest_load_limit=0.3)
    places = fill(routing, Tier.SILVER)
    submit(routing, request(forbid_fallback=True))
    free, placement = submit(routing, request())
    assert placement is None
    for place in places:
        finish(routing, place, 1.0)
    (served,) = routing.dispatch(1.0)
    assert served.ticket is free
    assert served.placement is not None
    assert served.placement.tier is Tier.SILVER


def test_a_tier_without_servers_waits_for_one_and_counts_as_demand() -> None:
    routing = desk()
    ticket, placement = submit(routing, request(tier=Tier.BRONZE))
    assert placement is None
    routing.directory.apply(view(report("b", Tier.BRONZE)), 1.0)
    (served,) = routing.dispatch(1.0)
    assert served.ticket is ticket
    bronze = routing.close_demand_interval()[2]
    assert (bronze.tier, bronze.arrived_requests, bronze.running_requests) == (Tier.BRONZE, 1, 1)
    assert bronze.arrived_tokens == ticket.tokens


def test_who_waited_in_vain_for_a_server_hears_that_there_is_none() -> None:
    routing = desk()
    submit(routing, request())
    assert routing.dispatch(5.0) == []
    (shed,) = routing.dispatch(9.9)
    assert isinstance(shed.error, NoCapacity)
    gold = routing.close_demand_interval()[0]
    assert (gold.shed_requests, gold.queued_requests) == (1, 0)


def test_who_waited_in_vain_for_room_hears_that_time_ran_out() -> None:
    routing = desk(report("a"))
    fill(routing)
    submit(routing, request(forbid_fallback=True))
    (shed,) = routing.dispatch(9.9)
    assert isinstance(shed.error, DeadlineUnreachable)
    assert shed.error.retry_after_seconds is not None


def test_a_request_that_cannot_be_in_time_is_turned_away_at_once() -> None:
    routing = desk(report("a"), token_seconds=0.1)
    fill(routing)
    with pytest.raises(DeadlineUnreachable) as caught:
        submit(routing, request(forbid_fallback=True, latency_budget_seconds=0.5))
    assert caught.value.retry_after_seconds is not None
    assert caught.value.retry_after_seconds > 0.25


def test_a_full_queue_turns_away_its_equals_and_makes_room_for_the_urgent() -> None:
    routing = desk(report("a"), queue_limit=2)
    fill(routing)
    low, _ = submit(routing, request(forbid_fallback=True, priority=Priority.LOW))
    submit(routing, request(forbid_fallback=True))
    with pytest.raises(Overloaded):
        submit(routing, request(forbid_fallback=True, priority=Priority.LOW))
    urgent = routing.draft(request(forbid_fallback=True, priority=Priority.HIGH), 0.0)
    offer = routing.offer(urgent, 0.0)
    assert offer.pushed_out is not None
    loser, error = offer.pushed_out
    assert loser is low
    assert isinstance(error, Overloaded)
    assert routing.queued(Tier.GOLD).head is urgent


def test_a_failed_server_is_not_given_the_same_request_again() -> None:
    routing = desk(report("a"), report("b"))
    ticket, placement = submit(routing, request(forbid_fallback=True))
    assert placement is not None
    routing.fail(placement, 0.1, unreachable=False, fault=True)
    again = routing.offer(ticket, 0.1).placement
    assert again is not None
    assert {placement.server_id, again.server_id} == {"a", "b"}
    routing.fail(again, 0.2, unreachable=False, fault=True)
    assert not routing.can_be_served(ticket)


def test_fallback_is_counted_for_the_wanted_tier() -> None:
    routing = desk(report("s", Tier.SILVER))
    _, placement = submit(routing, request())
    assert placement is not None
    finish(routing, placement, 1.0)
    gold, silver, _ = routing.close_demand_interval()
    assert (gold.arrived_requests, gold.completed_requests, gold.fallback_requests) == (1, 1, 1)
    assert (silver.arrived_requests, silver.completed_requests) == (0, 0)


def test_an_explanation_changes_nothing_and_agrees_with_what_happens() -> None:
    routing = desk(report("a"), report("b"), report("s", Tier.SILVER))
    routing.directory.drain("a", 60.0, 0.0)
    ticket = routing.draft(request(), 0.0)
    explained = explain(routing, ticket, 0.0, cached=False)
    assert explained.verdict is Verdict.SEND
    assert explained.candidates[0].server_id == explained.server_id == "b"
    reasons = {c.server_id: (c.eligible, c.reason) for c in explained.candidates}
    assert reasons["a"] == (False, "a drain was asked for")
    assert reasons["s"][0]
    _, placement = submit(routing, request())
    assert placement is not None
    assert placement.server_id == "b"
    assert explain(routing, ticket, 0.0, cached=True).verdict is Verdict.CACHE


def test_an_explanation_tells_queue_from_refusal() -> None:
    routing = desk(report("a"), token_seconds=0.1)
    fill(routing)
    waits = routing.draft(request(forbid_fallback=True, latency_budget_seconds=60.0), 0.0)
    assert explain(routing, waits, 0.0, cached=False).verdict is Verdict.QUEUE
    late = routing.draft(request(forbid_fallback=True, latency_budget_seconds=0.5), 0.0)
    explained = explain(routing, late, 0.0, cached=False)
    assert explained.verdict is Verdict.REFUSE
    assert explained.serving_tier is None
    assert "8 requests it may have" in explained.candidates[0].reason


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "finish", "fail", "leave", "withdraw"]),
        st.sampled_from(list(Tier)),
        st.sampled_from(list(Priority)),
        st.integers(1, 4000),
        st.floats(0.0, 3.0),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(STEPS)
def test_no_request_is_ever_lost_or_counted_twice(  # noqa: C901, PLR0912, PLR0915  # one model run
    steps: list[tuple[str, Tier, Priority, int, float]],
) -> None:
    routing = desk(
        report("g1"), report("g2"), report("s1", Tier.SILVER), queue_limit=4, request_limit=3
    )
    now = 0.0
    running: list[Placement] = []
    waiting: set[Ticket] = set()
    admitted = ended = 0
    for action, tier, priority, size, passed in steps:
        now += passed
        if action == "ask":
            ticket = routing.draft(request("x" * size, tier=tier, priority=priority), now)
            routing.admit(ticket)
            admitted += 1
            try:
                offer = routing.offer(ticket, now)
            except (Overloaded, DeadlineUnreachable, NoCapacity):
                ended += 1
            else:
                if offer.placement is not None:
                    running.append(offer.placement)
                else:
                    waiting.add(ticket)
                if offer.pushed_out is not None:
                    waiting.remove(offer.pushed_out[0])
                    ended += 1
        elif action == "withdraw" and waiting:
            ticket = min(waiting, key=lambda t: t.sequence)
            routing.withdraw(ticket)
            waiting.remove(ticket)
            ended += 1
        elif running and action in ("finish", "fail", "leave"):
            placement = running.pop(size % len(running))
            ended += 1
            if action == "finish":
                finish(routing, placement, now)
            elif action == "fail":
                routing.fail(placement, now, unreachable=False, fault=True)
            else:
                routing.abandon(placement)
        for done in routing.dispatch(now):
            waiting.remove(done.ticket)
            assert (done.placement is None) != (done.error is None)
            if done.placement is not None:
                running.append(done.placement)
            else:
                ended += 1
        assert admitted == ended + len(running) + len(waiting)
        assert sum(len(routing.queued(t)) for t in Tier) == len(waiting)
        on_servers = sum(
            status.running_requests for t in Tier for status in routing.directory.statuses(t, now)
        )
        assert on_servers == len(running)
    demand = routing.close_demand_interval()
    assert sum(d.arrived_requests for d in demand) == admitted
    assert sum(d.running_requests for d in demand) == len(running)
    assert sum(d.running_tokens for d in demand) == sum(p.tokens for p in running)
    assert sum(d.queued_requests for d in demand) == len(waiting)
