import asyncio

import pytest

from localsuite.supervision.backoff import RestartPolicy
from localsuite.supervision.components import Ending, StartFailedError
from localsuite.supervision.supervisor import (
    ComponentLostError,
    ComponentState,
    SupervisionEvent,
    Supervisor,
)

FAST = RestartPolicy(first_seconds=0.0, longest_seconds=0.0, give_up_after=3)


class FakeComponent:
    """A component whose ends and failures a test decides."""

    def __init__(self, name: str, diary: list[str], *, failing_starts: set[int] | None = None):
        self.name = name
        self.diary = diary
        self.failing_starts = failing_starts or set()
        self.starts = 0
        self.end = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return 1

    async def start(self) -> None:
        self.starts += 1
        self.diary.append(f"start {self.name}")
        await asyncio.sleep(0)
        if self.starts in self.failing_starts:
            raise StartFailedError(self.name, Ending("would not start", ("a last line",)))
        self.end.clear()
        self.diary.append(f"ready {self.name}")

    async def ended(self) -> Ending:
        await self.end.wait()
        return Ending("was killed by SIGKILL", ("its last line",))

    async def stop(self) -> None:
        self.diary.append(f"stop {self.name}")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def supervisor_with(
    *components: tuple[FakeComponent, tuple[str, ...]],
) -> tuple[Supervisor, list[SupervisionEvent]]:
    events: list[SupervisionEvent] = []
    supervisor = Supervisor(events.append, policy=FAST)
    for component, after in components:
        supervisor.add(component, after=after)
    return supervisor, events


async def test_components_start_after_what_they_need_and_stop_before_it() -> None:
    diary: list[str] = []
    database, service = FakeComponent("database", diary), FakeComponent("service", diary)
    supervisor, _ = supervisor_with((database, ()), (service, ("database",)))
    async with supervisor.running():
        assert diary == ["start database", "ready database", "start service", "ready service"]
    assert diary[-2:] == ["stop service", "stop database"]


def test_waiting_for_an_unknown_component_is_refused() -> None:
    supervisor = Supervisor(lambda _: None)
    with pytest.raises(ValueError, match="nobody"):
        supervisor.add(FakeComponent("service", []), after=("nobody",))


async def test_a_component_that_ends_is_told_and_started_again() -> None:
    component = FakeComponent("service", [])
    supervisor, events = supervisor_with((component, ()))
    async with supervisor.running():
        component.end.set()
        await settle()
        assert component.starts == 2
        assert supervisor.components["service"].restarts == 1
        assert supervisor.components["service"].state is ComponentState.HEALTHY
    down = next(event for event in events if event.state is ComponentState.DOWN)
    assert "SIGKILL" in down.message
    assert down.log_lines == ("its last line",)


async def test_a_component_that_keeps_ending_ends_the_run() -> None:
    component = FakeComponent("service", [], failing_starts={2, 3, 4, 5})
    supervisor, events = supervisor_with((component, ()))

    async def run() -> None:
        async with supervisor.running():
            component.end.set()
            await asyncio.Event().wait()

    with pytest.raises(ComponentLostError, match="ended 3 times"):
        await run()
    assert events[-1].state is ComponentState.GIVEN_UP
    assert component.diary[-1] == "stop service"


async def test_a_component_that_does_not_start_ends_the_run_and_the_others() -> None:
    diary: list[str] = []
    good, bad = FakeComponent("good", diary), FakeComponent("bad", diary, failing_starts={1})
    supervisor, _ = supervisor_with((good, ()), (bad, ()))
    with pytest.raises(ComponentLostError, match="bad would not start") as lost:
        async with supervisor.running():
            pytest.fail("the body must not run")
    assert lost.value.ending.log_lines == ("a last line",)
    assert "stop good" in diary


async def test_an_error_in_the_body_comes_out_as_it_is_and_stops_everything() -> None:
    diary: list[str] = []
    supervisor, _ = supervisor_with((FakeComponent("service", diary), ()))
    with pytest.raises(RuntimeError, match="of the body"):
        async with supervisor.running():
            raise RuntimeError("of the body")
    assert diary[-1] == "stop service"


async def test_cancelling_the_run_stops_everything() -> None:
    diary: list[str] = []
    supervisor, _ = supervisor_with((FakeComponent("service", diary), ()))
    up = asyncio.Event()

    async def run() -> None:
        async with supervisor.running():
            up.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary[-1] == "stop service"
