"""Starts a service the same way everywhere: settings, logs, event loop, signals, server, drain."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import uvloop

from servicekit.clock import Clock, SystemClock
from servicekit.settings import SettingsError, describe_settings, load_settings
from servicekit.telemetry import Telemetry, TelemetrySettings, configure_logging

if TYPE_CHECKING:
    from servicekit.server import ServerSettings, ServiceRegistration

__all__ = ["ServiceRuntime", "run_service"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

_LAST_SECONDS = 2.0
# Longer values, such as database addresses, push their own line's last columns to the right.
_WIDEST_CELL = 48

S = TypeVar("S")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ServiceRuntime:
    """What a service's composition root works with.

    Attributes:
        clock: the time.
        random: the randomness; seeded by GAMEKEEPER_SEED where a run must be repeatable.
        telemetry: instruments and traces.
        stopping: set at SIGTERM or SIGINT, and when memory ran out.
        out_of_memory: why it stops, if that is why.
    """

    clock: Clock
    random: random.Random
    telemetry: Telemetry
    log_all_calls: bool = False
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    out_of_memory: bool = False

    def run_out_of_memory(self) -> None:
        """Stops and fails, so that whoever watches over the process starts it again.

        In order if that can be done at once; without memory much cannot be done at all.
        """
        if not self.out_of_memory:
            self.out_of_memory = True
            self.stopping.set()
            asyncio.get_running_loop().call_later(_LAST_SECONDS, os._exit, EXIT_FAILED)

    async def serve(
        self,
        registrations: Sequence[ServiceRegistration],
        settings: ServerSettings,
        *tasks: Callable[[], Awaitable[None]],
    ) -> None:
        """Serves until a signal comes, beside `tasks`, which run as long as the server does.

        At a signal health turns to NOT_SERVING first, then streams end, calls finish and tasks are
        cancelled. A task that raises ends the service in the same order, the other tasks at work
        until the calls under way are done, and then with its error; one that returns is done.
        """
        # A process that serves nothing, such as an agent, saves the 12 MB that serving takes.
        from servicekit.server import RpcServer  # noqa: PLC0415  # see above

        server = RpcServer(
            registrations,
            settings,
            clock=self.clock,
            telemetry=self.telemetry,
            log_all_calls=self.log_all_calls,
            on_out_of_memory=self.run_out_of_memory,
        )
        await server.start()
        ending = asyncio.Event()
        failures: list[Exception] = []

        async def work(task: Callable[[], Awaitable[None]]) -> None:
            try:
                await task()
            except Exception as error:  # noqa: BLE001  # raised again once calls are finished
                log.warning("background_work_failed", error=type(error).__name__)
                failures.append(error)
                ending.set()

        async def await_signal() -> None:
            await self.stopping.wait()
            ending.set()

        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(work(task)) for task in tasks]
                running.append(group.create_task(await_signal()))
                await server.set_serving(True)
                await ending.wait()
                await server.stop()
                for each in running:
                    each.cancel()
        finally:
            await server.stop(0)
        if failures:
            raise ExceptionGroup("background work failed", failures)

    async def run(self, *tasks: Callable[[], Awaitable[None]]) -> None:
        """Runs `tasks` without a server until a signal comes or one of them raises."""
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(_run(task)) for task in tasks]
            await self.stopping.wait()
            for task in running:
                task.cancel()


def run_service(
    name: str,
    settings_type: type[S],
    main: Callable[[S, ServiceRuntime], Awaitable[None]],
    *,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Runs `main` with settings from the environment and returns the process's exit code.

    0 after a clean stop, 2 when settings are wrong (all of them are listed on stderr), 1 when the
    service failed (the traceback is in the log).
    """
    environ = os.environ if environ is None else environ
    # What imports made lives as long as the process: no collection need look at it again.
    gc.freeze()
    gc.enable()
    try:
        settings = load_settings(settings_type, environ)
        _refuse_bad_servers(settings)
    except SettingsError as error:
        _print_problems(name, error)
        return EXIT_USAGE
    telemetry_settings = _find(settings, TelemetrySettings)
    configure_logging(telemetry_settings, name)
    _show_settings(name, settings, environ, telemetry_settings)
    seed = environ.get("GAMEKEEPER_SEED")
    try:
        uvloop.run(_run_until_signal(name, settings, telemetry_settings, main, seed))
    except SettingsError as error:
        _print_problems(name, error)
        return EXIT_USAGE
    except BaseExceptionGroup as group:
        wrong, others = group.split(SettingsError)
        if wrong is not None and others is None:
            _print_problems(name, SettingsError([str(error) for error in _leaves(wrong)]))
            return EXIT_USAGE
        log.exception("service_failed")
        return EXIT_FAILED
    except Exception:  # the border of the process: say it in the log's format, then exit
        log.exception("service_failed")
        return EXIT_FAILED
    log.info("service_stopped")
    return EXIT_OK


async def _run_until_signal(
    name: str,
    settings: S,
    telemetry_settings: TelemetrySettings,
    main: Callable[[S, ServiceRuntime], Awaitable[None]],
    seed: str | None,
) -> None:
    telemetry = Telemetry(name, telemetry_settings)
    runtime = ServiceRuntime(
        clock=SystemClock(),
        random=random.Random(seed),  # noqa: S311  # jitter and sampling, no secrets
        telemetry=telemetry,
        log_all_calls=telemetry_settings.log_all_calls,
    )
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, runtime.stopping.set)
    try:
        await main(settings, runtime)
        if runtime.out_of_memory:
            raise MemoryError("a call found no memory")
    finally:
        await asyncio.to_thread(telemetry.close)


async def _run(task: Callable[[], Awaitable[None]]) -> None:
    await task()


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _find(settings: Any, wanted: type[TelemetrySettings]) -> TelemetrySettings:
    for name in getattr(settings, "__dataclass_fields__", {}):
        value = getattr(settings, name)
        if isinstance(value, wanted):
            return value
    return wanted()


def _refuse_bad_servers(settings: Any) -> None:
    serving = sys.modules.get("servicekit.server")
    if serving is None:
        # Nobody can have declared the settings of a server.
        return
    problems: list[str] = []
    for name in getattr(settings, "__dataclass_fields__", {}):
        value = getattr(settings, name)
        if isinstance(value, serving.ServerSettings):
            problems.extend(value.problems())
    if problems:
        raise SettingsError(problems)


def _print_problems(name: str, error: SettingsError) -> None:
    count = len(error.problems)
    print(f"{name} cannot start: {count} setting{'s' * (count != 1)} wrong", file=sys.stderr)
    for problem in error.problems:
        print(f"  {problem}", file=sys.stderr)


def _show_settings(
    name: str, settings: Any, environ: Mapping[str, str], telemetry_settings: TelemetrySettings
) -> None:
    rows = describe_settings(settings, environ)
    if telemetry_settings.log_format == "json":
        log.info("settings", **{row.variable: row.value for row in rows})
        return
    cells = [("variable", "value", "from", "meaning")]
    cells += [(row.variable, row.value, row.source, row.help) for row in rows]
    widths = [min(_WIDEST_CELL, max(len(each[column]) for each in cells)) for column in range(3)]
    lines = [f"{name} settings"]
    for *first, meaning in cells:
        padded = (cell.ljust(width) for cell, width in zip(first, widths, strict=True))
        lines.append("  ".join((*padded, meaning)))
    print("\n".join(lines), file=sys.stderr)
