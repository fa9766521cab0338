"""One run of the suite: everything started, the lore ingested, an evening played and reported."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog
from rich.console import Console
from rich.markup import escape

from gamekeeper.lore import DocumentTooLargeError, ingest_directory
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc
from localsuite.data_directory import DataDirectory
from localsuite.evening import play_evening
from localsuite.observe.bus import watch_bus
from localsuite.observe.picture import SuitePicture
from localsuite.observe.recording import Recording
from localsuite.observe.watchers import keep_current
from localsuite.options import RunOptions
from localsuite.plan import SERVICES, SuitePlan
from localsuite.ports import Ports
from localsuite.report.commands import paste_commands
from localsuite.report.document import SIMULATED, write_report
from localsuite.report.findings import Findings, find
from localsuite.supervision.supervisor import (
    ComponentLostError,
    ComponentState,
    SupervisionEvent,
    Supervisor,
)
from localsuite.timing import Evening
from localsuite.view.live import LiveView, PlainView, View
from localsuite.view.wording import money
from servicekit.channels import open_channel

__all__ = ["EXIT_INTERRUPTED", "EXIT_NOT_HELD", "EXIT_OK", "Suite"]

EXIT_OK = 0
EXIT_NOT_HELD = 1
EXIT_INTERRUPTED = 130

_STATE_MARKS = {
    ComponentState.HEALTHY: "[green]✔[/green]",
    ComponentState.DOWN: "[bold red]✘[/bold red]",
    ComponentState.GIVEN_UP: "[bold red]✘[/bold red]",
}


class Suite:
    """One run; `run` returns the process's exit code."""

    def __init__(
        self, options: RunOptions, data: DataDirectory, ports: Ports, console: Console
    ) -> None:
        self._options = options
        self._data = data
        self._ports = ports
        self._console = console
        self._evening = Evening(
            peak_players=options.players,
            duration_seconds=options.duration_seconds,
            seed=options.seed,
        )
        self._plan = SuitePlan(options, self._evening, data, ports)
        self._picture = SuitePicture()
        self._recording = Recording()
        self._supervisor = Supervisor(self._hear_supervisor)
        live = console.is_terminal and not options.plain
        self._view: View = (LiveView if live else PlainView)(
            console, self._picture, self._recording, self._evening, self._supervisor.components
        )
        self._live = live
        self._screen_is_up = False
        self._is_up = False
        self._start_seconds = 0.0

    async def run(self) -> int:
        """Runs until told to stop, or until the report with `--once`; returns the exit code."""
        main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        told_to_stop = 0

        def stop() -> None:
            nonlocal told_to_stop
            told_to_stop += 1
            if told_to_stop == 1 and main is not None:
                main.cancel()
            elif told_to_stop > 2:
                # Asked three times: the kernel ends the children together with this process.
                os._exit(EXIT_INTERRUPTED)

        self._send_own_log_to_file()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        reported: int | None = None
        try:
            async with self._everything_up():
                reported = await self._evening_and_after()
        except asyncio.CancelledError:
            if not told_to_stop:
                raise
            self._console.print("\nStopped. The data stays in", str(self._data.path))
            return EXIT_INTERRUPTED if reported is None and self._options.once else EXIT_OK
        except ComponentLostError as error:
            self._say_lost(error)
            return EXIT_NOT_HELD
        return reported

    @contextlib.asynccontextmanager
    async def _everything_up(self) -> AsyncIterator[None]:
        self._console.print(
            f"[bold]Gamekeeper[/bold] on this machine: plaintext on loopback, data in "
            f"{self._data.path}"
        )
        self._plan.add_components(self._supervisor)
        started = time.monotonic()
        try:
            async with self._supervisor.running():
                self._start_seconds = time.monotonic() - started
                self._console.print(f"[green]all healthy after {self._start_seconds:.1f} s[/green]")
                self._is_up = True
                if self._plan.database_directory != self._data.postgres:
                    # As root another account runs it, which cannot enter every directory.
                    self._console.print(f"the database lies in {self._plan.database_directory}")
                self._data.publish_addresses(self._addresses())
                yield
        finally:
            self._console.print("[dim]everything is stopped[/dim]")

    async def _evening_and_after(self) -> int:
        await self._ingest_lore()
        exit_code = EXIT_OK
        # The AWS SDK takes its credentials from here; this process speaks to the local AWS alone.
        os.environ.update(self._plan.bus_of_command_line())
        async with (
            watch_bus(self._picture.bus, self._plan.observer(), self._plan.dead_letter_queues()),
            keep_current(
                self._picture,
                self._ports,
                on_remark=self._view.remark,
                on_decision=self._view.decision,
            ),
        ):
            if self._options.traffic:
                exit_code = await self._play_and_report()
            if self._options.once:
                return exit_code
        self._say_what_to_try()
        await asyncio.Event().wait()
        return exit_code

    async def _ingest_lore(self) -> None:
        directory = self._options.lore_directory
        started = time.monotonic()
        async with open_channel(self._ports.address("knowledge_base")) as channel:
            knowledge_base = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
            with self._console.status(f"reads the lore in {directory}") as status:
                done = 0
                try:
                    async for update in ingest_directory(knowledge_base, directory):
                        if update.HasField("document"):
                            done += 1
                            status.update(f"reads the lore: {done} {update.document.path}")
                        else:
                            summary = update.summary
                except (grpc.aio.AioRpcError, DocumentTooLargeError, OSError) as error:
                    details = (
                        error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                    )
                    self._console.print(f"[red]the lore was not ingested: {details}[/red]")
                    return
        self._console.print(
            f"lore: {summary.stored_documents} documents read, {summary.unchanged_documents} "
            f"unchanged, {summary.removed_documents} gone; {summary.chunks} passages, "
            f"{summary.embedded_chunks} embedded now ({time.monotonic() - started:.1f} s)"
        )

    async def _play_and_report(self) -> int:
        began = datetime.now(UTC)
        spec = self._plan.game()
        self._screen_is_up = self._live
        try:
            async with self._view.showing():
                ended_well = await play_evening(
                    self._evening,
                    spec,
                    ports=self._ports,
                    picture=self._picture,
                    recording=self._recording,
                    view=self._view,
                )
        finally:
            self._screen_is_up = False
        status = self._picture.status
        findings = find(
            recording=self._recording,
            game=self._picture.game,
            decisions=[decision for _, decision in self._picture.decisions],
            story=self._picture.story,
            remarks=list(self._picture.remarks),
            restarts={
                name: supervised.restarts
                for name, supervised in self._supervisor.components.items()
            },
            budget_usd_per_player_month=status.budget_usd_per_player_month if status else 0.0,
            game_ended_well=ended_well,
            bus=self._picture.bus,
        )
        document = await asyncio.to_thread(
            write_report,
            self._data.reports / f"{began:%Y%m%d-%H%M%S}",
            began=began,
            evening=self._evening,
            findings=findings,
            recording=self._recording,
            decisions=list(self._picture.decisions),
            story=list(self._picture.story),
            remarks=list(self._picture.remarks),
            start_seconds=self._start_seconds,
        )
        self._say_report(findings, document)
        return EXIT_OK if findings.held else EXIT_NOT_HELD

    def _send_own_log_to_file(self) -> None:
        log_file = self._data.fresh_log("suite").open("w")
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.dev.ConsoleRenderer(colors=False),
            ],
            logger_factory=structlog.PrintLoggerFactory(log_file),
        )

    def _say_report(self, findings: Findings, document: Path) -> None:
        print_ = self._console.print
        print_("\n[bold]The evening[/bold]")
        print_(
            f"{findings.peak_players:,} players at the peak · {findings.sent:,} requests: "
            f"{findings.completed:,} answered, {findings.shed:,} turned away, "
            f"{findings.failed:,} failed · at most {findings.most_gpus} GPUs · "
            f"{money(findings.peak_cost_usd_per_player_month)} per player and month at the peak, "
            f"{money(findings.average_cost_usd_per_player_month)} over the evening "
            f"(budget {money(findings.budget_usd_per_player_month)})",
            highlight=False,
        )
        for check in findings.checks:
            mark = "[green]✔[/green]" if check.held else "[bold red]✘[/bold red]"
            print_(
                f"{mark} {escape(check.name)} [dim]{escape(check.detail)}[/dim]", highlight=False
            )
        print_(f"event bus: {findings.bus}", highlight=False)
        print_(f"[dim]{SIMULATED}[/dim]")
        print_(f"report with plots: {document}", highlight=False, soft_wrap=True)

    def _say_what_to_try(self) -> None:
        self._console.print("\n[bold]The suite is up.[/bold] Try, in another terminal:")
        for remark, command in paste_commands(self._ports, self._data.path):
            self._console.print(f"[dim]# {remark}[/dim]", highlight=False)
            self._console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        self._console.print("Ctrl-C stops everything; the data stays.")

    def _say_lost(self, error: ComponentLostError) -> None:
        self._console.print(f"\n[bold red]{escape(str(error))}[/bold red]")
        self._say_log(error.ending.log_lines)
        log = self._data.logs / f"{error.component}.log"
        if log.exists():
            self._console.print(f"more in {log}", soft_wrap=True)

    def _hear_supervisor(self, event: SupervisionEvent) -> None:
        if event.state in {ComponentState.STARTING, ComponentState.GIVEN_UP}:
            # A component that is given up ends the run, and the end tells of it.
            return
        if self._is_up and event.state is ComponentState.HEALTHY:
            self._data.publish_addresses(self._addresses())
        if event.state is not ComponentState.HEALTHY or self._is_up:
            self._picture.remark("service", f"{event.component} {event.message}")
        if self._screen_is_up:
            # The screen shows remarks; the log has the rest.
            return
        mark = _STATE_MARKS.get(event.state, " ")
        self._console.print(
            f"{mark} {event.component:<15} {escape(event.message)}",
            highlight=False,
            soft_wrap=True,
        )
        self._say_log(event.log_lines)

    def _say_log(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            self._console.print(f"    [dim]{escape(line)}[/dim]", highlight=False, soft_wrap=True)

    def _addresses(self) -> dict[str, object]:
        addresses: dict[str, object] = {name: self._ports.address(name) for name in SERVICES}
        addresses["aws"] = f"http://{self._ports.address('aws')}"
        addresses["event_bus"] = self._plan.bus_of_command_line()
        addresses["pid"] = os.getpid()
        addresses["processes"] = {
            name: supervised.component.pid
            for name, supervised in self._supervisor.components.items()
        }
        return addresses
