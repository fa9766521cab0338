"""What the supervisor looks after: processes of ours, and the embedded database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from localsuite.postgres import EmbeddedPostgres, PostgresError
from localsuite.supervision.child import ChildProcess, ChildSpec, describe_exit, last_lines
from localsuite.supervision.probes import NotReadyError, Probe

__all__ = ["Component", "Ending", "PostgresComponent", "ProcessComponent", "StartFailedError"]

_POLL_SECONDS = 0.05
_PROBE_EVERY_SECONDS = 3.0
_FAILED_PROBES_BEFORE_KILL = 4


@dataclass(frozen=True, slots=True)
class Ending:
    """How a component ended, in words, with the end of its log."""

    how: str
    log_lines: tuple[str, ...] = ()


class StartFailedError(Exception):
    """A component did not become ready; holds its ending."""

    def __init__(self, name: str, ending: Ending) -> None:
        super().__init__(f"{name} {ending.how}")
        self.ending = ending


class Component(Protocol):
    """Something that is started, can end at any time, and can be started again."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def pid(self) -> int | None:
        """Its main process while it runs."""
        ...

    async def start(self) -> None:
        """Returns when it is ready for work.

        Raises StartFailedError when it ended, or was not ready in time; nothing of it is left then.
        """
        ...

    async def ended(self) -> Ending:
        """Returns how it ended, once it has ended by itself or hangs and was ended."""
        ...

    async def stop(self) -> None:
        """Ends it; nothing of it is left afterwards. No-op when it does not run."""
        ...


class ProcessComponent:
    """A process of ours that is ready when its probe says so, and hung when it stops saying so.

    `spec` is called at each start: settings may depend on what was started before.
    """

    def __init__(
        self,
        name: str,
        spec: Callable[[], ChildSpec],
        probe: Probe,
        *,
        ready_seconds: float = 30.0,
        grace_seconds: float = 6.0,
    ) -> None:
        self.name = name
        self._make_spec = spec
        self._probe = probe
        self._ready_seconds = ready_seconds
        self._grace_seconds = grace_seconds
        self._child: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """The process number while it runs."""
        return self._child.pid if self._child is not None and self._child.running else None

    async def start(self) -> None:
        """Starts the process and returns when its probe succeeds."""
        child = self._child = await ChildProcess.start(self._make_spec())
        try:
            await self._until_ready(child)
        except BaseException:
            await child.stop(grace_seconds=0.0)
            raise

    async def ended(self) -> Ending:
        """Waits for the process's end; a process that no longer answers its probe is killed."""
        child = self._running_child()
        waiter = asyncio.ensure_future(child.wait())
        failures = 0
        try:
            while True:
                done, _ = await asyncio.wait({waiter}, timeout=_PROBE_EVERY_SECONDS)
                if done:
                    child.kill_group()
                    return Ending(describe_exit(waiter.result()), self._log_lines())
                try:
                    await self._probe()
                    failures = 0
                except NotReadyError as error:
                    failures += 1
                    if failures >= _FAILED_PROBES_BEFORE_KILL:
                        await child.stop(grace_seconds=0.0)
                        return Ending(
                            f"hung ({error}, {failures} times) and was killed", self._log_lines()
                        )
        finally:
            waiter.cancel()

    async def stop(self) -> None:
        """Asks the process to end, and makes sure of it."""
        if self._child is not None:
            await self._child.stop(grace_seconds=self._grace_seconds)

    async def _until_ready(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + self._ready_seconds
        reason = "it did not answer"
        while child.running:
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {self._ready_seconds:.0f} s: {reason}")
            try:
                await self._probe()
            except NotReadyError as error:
                reason = str(error)
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return
        raise self._failure(f"{describe_exit(child.returncode or 0)} while starting")

    def _running_child(self) -> ChildProcess:
        if self._child is None:
            raise ValueError(f"{self.name} was not started")
        return self._child

    def _failure(self, how: str) -> StartFailedError:
        return StartFailedError(self.name, Ending(how, self._log_lines()))

    def _log_lines(self) -> tuple[str, ...]:
        return tuple(last_lines(self._child.spec.log_file)) if self._child is not None else ()


class PostgresComponent:
    """The embedded database, with the databases the services need."""

    name = "postgres"

    def __init__(self, server: EmbeddedPostgres, databases: tuple[str, ...]) -> None:
        self._server = server
        self._databases = databases

    @property
    def pid(self) -> int | None:
        """The postmaster's process number while it runs."""
        return self._server.pid if self._server.running else None

    async def start(self) -> None:
        """Starts the server on its data and makes the databases exist."""
        await asyncio.to_thread(self._start)

    async def ended(self) -> Ending:
        """Returns when the postmaster has ended."""
        while self._server.running:  # noqa: ASYNC110  # another process's end sets no event
            await asyncio.sleep(_POLL_SECONDS)
        return Ending("ended", tuple(last_lines(self._server.log_file)))

    async def stop(self) -> None:
        """Ends the server in order."""
        await asyncio.to_thread(self._server.stop)

    def _start(self) -> None:
        try:
            self._server.start()
            for database in self._databases:
                self._server.create_database(database)
        except PostgresError as error:
            self._server.stop()
            raise StartFailedError(self.name, Ending(f"could not start: {error}")) from error
