"""Keeps the components up: starts them in order, restarts what ends, gives up what keeps ending."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from localsuite.supervision.backoff import RestartHistory, RestartPolicy
from localsuite.supervision.components import Component, Ending, StartFailedError

__all__ = [
    "ComponentLostError",
    "ComponentState",
    "Supervised",
    "SupervisionEvent",
    "Supervisor",
]


class ComponentState(Enum):
    """What a component is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    HEALTHY = "healthy"
    DOWN = "down"
    GIVEN_UP = "given up"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SupervisionEvent:
    """A component changed; `message` is for people, `log_lines` the end of its log if it ended."""

    component: str
    state: ComponentState
    message: str
    log_lines: tuple[str, ...] = ()


class ComponentLostError(Exception):
    """A component did not start, or kept ending; the text says what and how."""

    def __init__(self, component: str, message: str, ending: Ending) -> None:
        super().__init__(message)
        self.component = component
        self.ending = ending


class Supervised:
    """One component under supervision, and what became of it so far."""

    def __init__(self, component: Component, after: tuple[str, ...]) -> None:
        self.component = component
        self.after = after
        self.state = ComponentState.WAITING
        self.start_seconds: float | None = None
        self.restarts = 0
        self.ready = asyncio.Event()


class Supervisor:
    """Looks after components that name what must be ready before them.

    `report` is told every change and must not block.
    """

    def __init__(
        self,
        report: Callable[[SupervisionEvent], None],
        *,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._report = report
        self._policy = policy or RestartPolicy()
        self._supervised: dict[str, Supervised] = {}

    @property
    def components(self) -> Mapping[str, Supervised]:
        """The components by name, in the order they were added."""
        return self._supervised

    def add(self, component: Component, *, after: Iterable[str] = ()) -> None:
        """Adds a component that starts once those named in `after` are ready."""
        names = tuple(after)
        unknown = [name for name in names if name not in self._supervised]
        if unknown:
            raise ValueError(f"{component.name} waits for unknown {', '.join(unknown)}")
        self._supervised[component.name] = Supervised(component, names)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts everything, runs the body, stops everything in reverse order.

        The body is cancelled when a component is lost for good.

        Raises:
            ComponentLostError: a component did not start at first, or kept ending.
        """
        try:
            async with asyncio.TaskGroup() as starts:
                for supervised in self._supervised.values():
                    starts.create_task(self._first_start(supervised))
            body_error: Exception | None = None
            async with asyncio.TaskGroup() as watches:
                tasks = [
                    watches.create_task(self._keep_up(supervised))
                    for supervised in self._supervised.values()
                ]
                try:
                    yield
                except Exception as error:  # noqa: BLE001  # raised again below, outside the group
                    body_error = error
                finally:
                    for task in tasks:
                        task.cancel()
            if body_error is not None:
                raise body_error
        except BaseExceptionGroup as group:
            lost = _first_lost(group)
            if lost is not None:
                raise lost from group
            raise
        finally:
            await asyncio.shield(self._stop_all())

    async def _first_start(self, supervised: Supervised) -> None:
        for name in supervised.after:
            await self._supervised[name].ready.wait()
        component = supervised.component
        self._change(supervised, ComponentState.STARTING, "starts")
        started = time.monotonic()
        try:
            await component.start()
        except StartFailedError as error:
            self._change(
                supervised, ComponentState.GIVEN_UP, error.ending.how, error.ending.log_lines
            )
            raise ComponentLostError(component.name, str(error), error.ending) from error
        supervised.start_seconds = time.monotonic() - started
        self._change(
            supervised, ComponentState.HEALTHY, f"ready after {supervised.start_seconds:.1f} s"
        )
        supervised.ready.set()

    async def _keep_up(self, supervised: Supervised) -> None:
        history = RestartHistory(self._policy)
        component = supervised.component
        while True:
            ending = await component.ended()
            while True:
                history = history.ended(time.monotonic())
                if history.hopeless:
                    message = (
                        f"ended {len(history.ends)} times within "
                        f"{self._policy.window_seconds:.0f} s, last it {ending.how}"
                    )
                    self._change(supervised, ComponentState.GIVEN_UP, message, ending.log_lines)
                    raise ComponentLostError(component.name, f"{component.name} {message}", ending)
                delay = history.delay_seconds
                when = f"in {delay:g} s" if delay else "at once"
                message = f"{ending.how}; restart {when}"
                self._change(supervised, ComponentState.DOWN, message, ending.log_lines)
                await asyncio.sleep(delay)
                supervised.restarts += 1
                try:
                    await component.start()
                except StartFailedError as error:
                    ending = error.ending
                    continue
                message = f"is up again (restart {supervised.restarts})"
                self._change(supervised, ComponentState.HEALTHY, message)
                break

    async def _stop_all(self) -> None:
        """Stops in waves: users before what they use."""
        remaining = dict(self._supervised)
        while remaining:
            needed = {name for supervised in remaining.values() for name in supervised.after}
            wave = [name for name in remaining if name not in needed]
            await asyncio.gather(*(self._stop(remaining.pop(name)) for name in wave))

    async def _stop(self, supervised: Supervised) -> None:
        try:
            await supervised.component.stop()
        finally:
            if supervised.state is not ComponentState.GIVEN_UP:
                supervised.state = ComponentState.STOPPED

    def _change(
        self,
        supervised: Supervised,
        state: ComponentState,
        message: str,
        log_lines: tuple[str, ...] = (),
    ) -> None:
        supervised.state = state
        self._report(SupervisionEvent(supervised.component.name, state, message, log_lines))


def _first_lost(group: BaseExceptionGroup[BaseException]) -> ComponentLostError | None:
    for error in group.exceptions:
        if isinstance(error, ComponentLostError):
            return error
        if isinstance(error, BaseExceptionGroup):
            nested = _first_lost(error)
            if nested is not None:
                return nested
    return None
