"""One request from its arrival to its end, on a clock that stands still."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from ai_router.domain.answer_cache import AnswerCache
from ai_router.domain.errors import (
    NoCapacity,
    Overloaded,
    RejectedByModel,
    UpstreamFailed,
    UpstreamFailedMidstream,
)
from ai_router.domain.fleet_directory import ServerState
from ai_router.domain.generation import (
    GenerationEnd,
    GenerationEvent,
    GenerationRequest,
    RouteTaken,
    TextDelta,
)
from ai_router.domain.tiers import Priority, Tier
from ai_router.ports import FailureKind
from ai_router.router import Router, RouterPolicy
from ai_router.testing.builders import desk, report, request, view
from ai_router.testing.fake_model_servers import FakeModelServers, FakeServer
from servicekit.testing import FakeClock


class Setup:
    """A router before fake servers, all Gold unless their name begins with s (Silver)."""

    def __init__(self, *, attempts: int = 3, request_limit: int = 8, **servers: FakeServer) -> None:
        self.clock = FakeClock()
        self.servers = FakeModelServers(**servers)
        tiers = {name: Tier.SILVER if name.startswith("s") else Tier.GOLD for name in servers}
        self.desk = desk(
            *(report(name, tier) for name, tier in tiers.items()), request_limit=request_limit
        )
        self.router = Router(
            self.desk,
            AnswerCache(100_000, 60.0),
            self.servers,
            self.clock,
            RouterPolicy(attempts=attempts),
        )

    async def ask(
        self,
        wanted: GenerationRequest | None = None,
        *,
        into: list[GenerationEvent] | None = None,
    ) -> list[GenerationEvent]:
        heard = [] if into is None else into
        async with aclosing(self.router.generate(wanted or request())) as events:
            async for event in events:
                heard.append(event)
        return heard

    def running(self) -> int:
        return sum(
            status.running_requests
            for tier in Tier
            for status in self.desk.directory.statuses(tier, self.clock.monotonic())
        )


def route_of(events: list[GenerationEvent]) -> RouteTaken:
    assert isinstance(events[0], RouteTaken)
    return events[0]


def text_of(events: list[GenerationEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_an_answer_is_route_text_and_end() -> None:
    setup = Setup(a=FakeServer())
    events = await setup.ask()
    assert [type(event) for event in events] == [RouteTaken, TextDelta, TextDelta, GenerationEnd]
    assert text_of(events) == "The lamp burns."
    assert route_of(events).server_id == "a"
    assert setup.running() == 0


@pytest.mark.parametrize("kind", [FailureKind.UNREACHABLE, FailureKind.FAILED])
async def test_the_next_server_takes_over_and_the_caller_sees_only_a_count(
    kind: FailureKind,
) -> None:
    setup = Setup(a=FakeServer(failure=kind), b=FakeServer())
    routes = [route_of(await setup.ask()) for _ in range(6)]
    assert {route.server_id for route in routes} == {"b"}
    assert sum(route.failed_attempts for route in routes) >= 1
    assert setup.running() == 0


async def test_no_more_servers_are_tried_than_allowed() -> None:
    servers = {f"g{n}": FakeServer(failure=FailureKind.FAILED) for n in range(5)}
    setup = Setup(attempts=2, **servers)  # type: ignore[arg-type]  # all are servers
    with pytest.raises(UpstreamFailed) as caught:
        await setup.ask()
    assert caught.value.metadata["attempts"] == "2"
    assert sum(len(server.requests) for server in setup.servers.servers.values()) == 2
    assert setup.desk.close_demand_interval()[0].failed_requests == 1


async def test_a_broken_tier_is_left_for_the_one_that_stands_in() -> None:
    setup = Setup(a=FakeServer(failure=FailureKind.FAILED), s=FakeServer())
    assert route_of(await setup.ask()).tier is Tier.SILVER
    with pytest.raises(UpstreamFailed):
        await setup.ask(request(forbid_fallback=True))


async def test_a_failure_after_text_is_raised_with_the_text_before_it() -> None:
    setup = Setup(a=FakeServer(failure=FailureKind.FAILED, fail_after=1), b=FakeServer(texts=()))
    setup.desk.directory.drain("b", 60.0, 0.0)
    heard: list[GenerationEvent] = []
    with pytest.raises(UpstreamFailedMidstream):
        await setup.ask(request(temperature=0.0), into=heard)
    assert text_of(heard) == "The lamp "
    assert setup.running() == 0
    assert len(setup.router.cache) == 0


async def test_a_wrong_request_says_nothing_against_its_server() -> None:
    setup = Setup(a=FakeServer(failure=FailureKind.REJECTED))
    for _ in range(5):
        with pytest.raises(RejectedByModel):
            await setup.ask()
    (status,) = setup.desk.directory.statuses(Tier.GOLD, 0.0)
    assert status.state is ServerState.READY
    assert setup.running() == 0


async def test_a_busy_server_is_not_broken_and_the_caller_hears_of_overload() -> None:
    setup = Setup(a=FakeServer(failure=FailureKind.OVERLOADED))
    for _ in range(5):
        with pytest.raises(Overloaded):
            await setup.ask(request(forbid_fallback=True))
    (status,) = setup.desk.directory.statuses(Tier.GOLD, 0.0)
    assert status.state is ServerState.READY


async def test_an_answer_without_an_end_is_a_failure() -> None:
    setup = Setup(a=FakeServer(texts=()))
    with pytest.raises(UpstreamFailed):
        await setup.ask(request(forbid_fallback=True))


async def test_who_waits_is_served_when_a_place_comes_free() -> None:
    setup = Setup(request_limit=1, a=FakeServer())
    setup.servers["a"].gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(setup.ask(request(forbid_fallback=True))) for _ in range(3)]
        await setup.clock.settle()
        assert (setup.running(), len(setup.desk.queued(Tier.GOLD))) == (1, 2)
        setup.servers["a"].gate.set()
    assert {text_of(task.result()) for task in tasks} == {"The lamp burns."}


async def test_who_waits_for_a_server_gets_the_first_that_comes() -> None:
    setup = Setup()
    setup.servers.servers["http://late"] = FakeServer()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(setup.ask())
        await setup.clock.advance(3.0)
        setup.router.apply_fleet(view(report("late")))
    assert route_of(task.result()).queue_seconds == 3.0


async def test_who_waits_too_long_is_turned_away_by_the_clock() -> None:
    setup = Setup()
    checker = asyncio.create_task(setup.router.check_queues())
    waiting = asyncio.create_task(setup.ask())
    await setup.clock.settle()
    await setup.clock.advance(8.0)
    assert not waiting.done()
    await setup.clock.advance(2.0)
    with pytest.raises(NoCapacity):
        await waiting
    checker.cancel()


async def test_a_more_urgent_request_takes_the_last_place_in_the_queue() -> None:
    setup = Setup(request_limit=1, a=FakeServer())
    setup.servers["a"].gate.clear()
    tasks = []
    for priority in (Priority.NORMAL, Priority.LOW, Priority.NORMAL, Priority.NORMAL):
        wanted = request(forbid_fallback=True, priority=priority)
        tasks.append(asyncio.create_task(setup.ask(wanted)))
        await setup.clock.settle()
    urgent = asyncio.create_task(setup.ask(request(forbid_fallback=True, priority=Priority.HIGH)))
    await setup.clock.settle()
    with pytest.raises(Overloaded):
        await tasks[1]
    setup.servers["a"].gate.set()
    assert text_of(await urgent) == "The lamp burns."
    await asyncio.gather(tasks[0], *tasks[2:])


@pytest.mark.parametrize("moment", ["waiting", "generating"])
async def test_who_goes_away_leaves_no_trace(moment: str) -> None:
    setup = Setup(request_limit=1, a=FakeServer())
    setup.servers["a"].gate.clear()
    first = asyncio.create_task(setup.ask(request(forbid_fallback=True)))
    await setup.clock.settle()
    second = asyncio.create_task(setup.ask(request(forbid_fallback=True)))
    await setup.clock.settle()
    leaver, stayer = (first, second) if moment == "generating" else (second, first)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    setup.servers["a"].gate.set()
    assert text_of(await stayer) == "The lamp burns."
    assert (setup.running(), len(setup.desk.queued(Tier.GOLD))) == (0, 0)
    assert setup.servers["a"].running == 0
    gold = setup.desk.close_demand_interval()[0]
    assert (gold.arrived_requests, gold.completed_requests, gold.running_requests) == (2, 1, 0)


async def test_who_goes_away_in_the_moment_of_being_served_frees_the_place() -> None:
    setup = Setup(request_limit=1, a=FakeServer())
    setup.servers["a"].gate.clear()
    first = asyncio.create_task(setup.ask(request(forbid_fallback=True)))
    await setup.clock.settle()
    second = asyncio.create_task(setup.ask(request(forbid_fallback=True)))
    await setup.clock.settle()
    (status,) = setup.desk.directory.statuses(Tier.GOLD, 0.0)
    assert status.running_requests == 1
    # The place is given to the second and, before it can run, the second goes away.
    first.cancel()
    await asyncio.sleep(0)
    second.cancel()
    await setup.clock.settle()
    assert (setup.running(), len(setup.desk.queued(Tier.GOLD))) == (0, 0)


async def test_a_listener_that_leaves_ends_the_work_on_the_server() -> None:
    setup = Setup(a=FakeServer())
    async with aclosing(setup.router.generate(request())) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    assert setup.servers["a"].running == 0
    assert setup.running() == 0


async def test_a_deterministic_answer_is_given_again_without_a_server() -> None:
    setup = Setup(a=FakeServer())
    first = await setup.ask(request(temperature=0.0))
    setup.router.apply_fleet(view())
    again = await setup.ask(request(temperature=0.0))
    assert text_of(again) == text_of(first)
    assert route_of(again).cached
    gold = setup.desk.close_demand_interval()[0]
    assert gold.arrived_requests == 1, "answers from the cache need no capacity"


async def test_another_tiers_answer_is_not_taken_for_the_wanted_tiers() -> None:
    setup = Setup(s=FakeServer())
    await setup.ask(request(temperature=0.0))
    setup.router.apply_fleet(view(report("s", Tier.SILVER), report("a")))
    setup.servers.servers["http://a"] = FakeServer()
    assert not route_of(await setup.ask(request(temperature=0.0))).cached
    assert route_of(await setup.ask(request(temperature=0.0))).cached
