"""Shows the evening: as a live screen on a terminal, as lines everywhere else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape

from gaming.autoscaler.v1 import autoscaler_pb2
from localsuite.game.feed import StoryTurn
from localsuite.observe.picture import Remark, SuitePicture
from localsuite.observe.recording import Recording
from localsuite.supervision.supervisor import Supervised
from localsuite.timing import Evening
from localsuite.view.screen import draw
from localsuite.view.wording import clock, decision_sentence, money

__all__ = ["LiveView", "PlainView", "View"]

_REDRAW_SECONDS = 0.4
_LINE_SECONDS = 5.0


class View:
    """What both views share: the console, and lines about news."""

    def __init__(
        self,
        console: Console,
        picture: SuitePicture,
        recording: Recording,
        evening: Evening,
        components: Mapping[str, Supervised],
    ) -> None:
        self.console = console
        self.picture = picture
        self.recording = recording
        self.evening = evening
        self.components = components

    @contextlib.asynccontextmanager
    async def showing(self) -> AsyncIterator[None]:
        """Shows the picture while the body runs."""
        task = asyncio.create_task(self._keep_showing())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def remark(self, remark: Remark) -> None:
        """Hears a line for people."""

    def decision(self, decision: autoscaler_pb2.Decision) -> None:
        """Hears a decision."""

    def story(self, turn: StoryTurn) -> None:
        """Hears a storyteller's turn."""

    async def _keep_showing(self) -> None:
        raise NotImplementedError


class LiveView(View):
    """The screen; news appear in it."""

    async def _keep_showing(self) -> None:
        with Live(
            self._draw(), console=self.console, screen=True, auto_refresh=False, transient=True
        ) as live:
            while True:
                await asyncio.sleep(_REDRAW_SECONDS)
                live.update(self._draw(), refresh=True)

    def _draw(self) -> RenderableType:
        width, height = self.console.size
        return draw(
            self.picture,
            self.recording,
            self.evening,
            self.components,
            width=width,
            height=height,
        )


class PlainView(View):
    """Lines: news as they come, and every few seconds where things stand."""

    def remark(self, remark: Remark) -> None:
        """Prints the line."""
        self._line(f"{remark.kind}: {remark.text}")

    def decision(self, decision: autoscaler_pb2.Decision) -> None:
        """Prints the decision with its reason."""
        self._line(f"decision: {decision_sentence(decision)}")

    def story(self, turn: StoryTurn) -> None:
        """Prints who did what, and what was remembered of it."""
        memory = next((each for each in turn.recalled if each != turn.player), "")
        remembered = f"; remembers: {memory}" if memory else ""
        self._line(
            f"storyteller: {turn.player}{remembered}" + (f" [{turn.error}]" * bool(turn.error))
        )

    async def _keep_showing(self) -> None:
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            self._line(self._summary())

    def _line(self, text: str) -> None:
        self.console.print(
            f"[dim]{clock(self.picture.evening_seconds)}[/dim] {escape(text)}",
            highlight=False,
            soft_wrap=True,
        )

    def _summary(self) -> str:
        picture = self.picture
        players = picture.game.players_online if picture.game is not None else 0
        sizes = ", ".join(
            f"{name} {tier.inputs.ready_servers}/{tier.desired}"
            for name, tier in picture.autoscaler_tiers.items()
        )
        tiers = picture.game.tiers.values() if picture.game is not None else ()
        cost = picture.status.cost_usd_per_hour if picture.status is not None else None
        return (
            f"{picture.phase}: {players:,} players; {picture.fleet.gpus} GPUs; "
            f"ready/wanted {sizes or '-'}; "
            f"{sum(tier.completed for tier in tiers):,} answered, "
            f"{sum(tier.in_flight for tier in tiers):,} in flight, "
            f"{sum(tier.shed_total for tier in tiers):,} turned away, "
            f"{sum(tier.failed_total for tier in tiers):,} failed; {money(cost)} per hour; "
            f"bus {picture.bus.short}"
        )
