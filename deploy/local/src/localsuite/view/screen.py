"""The live screen, drawn from the picture. Fits 80 columns and up, 24 lines and up."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gaming.autoscaler.v1 import autoscaler_pb2
from localsuite.game.feed import TierSample
from localsuite.observe.fleet import TIERS, tier_name
from localsuite.observe.picture import SuitePicture
from localsuite.observe.recording import Recording
from localsuite.supervision.supervisor import ComponentState, Supervised
from localsuite.targets import TARGETS
from localsuite.timing import Evening
from localsuite.view.wording import clock, decision_reason, duration, money, spark

__all__ = ["draw"]

_TIER_STYLES = {"gold": "yellow", "silver": "bright_white", "bronze": "dark_orange3"}
_STATE_STYLES = {
    ComponentState.HEALTHY: "green",
    ComponentState.DOWN: "bold red",
    ComponentState.GIVEN_UP: "bold red",
}
_REMARK_STYLES = {"incident": "bold magenta", "service": "red", "fleet": "cyan", "game": "dim"}
_STALE_AFTER_SECONDS = 3.0
_WIDTH_WITH_TARGETS = 96
_WIDTH_WITH_STRIP = 116


def draw(
    picture: SuitePicture,
    recording: Recording,
    evening: Evening,
    components: Mapping[str, Supervised],
    *,
    width: int,
    height: int,
) -> RenderableType:
    """Returns the whole screen for a terminal of `width` by `height`."""
    layout = Layout()
    story_lines = 5 if height >= 30 else 3
    layout.split_column(
        Layout(_headline(picture, recording, evening, width), size=4),
        Layout(_tiers(picture, width), size=7),
        Layout(_figures(picture, width), size=2),
        Layout(name="news", minimum_size=6),
        Layout(_storyteller(picture, story_lines), size=story_lines + 2),
        Layout(_services(picture, components), size=1),
    )
    news_lines = max(2, height - 4 - 7 - 2 - story_lines - 2 - 1 - 2)
    layout["news"].split_row(
        Layout(_decisions(picture, news_lines), ratio=3),
        Layout(_remarks(picture, news_lines), ratio=2),
    )
    return layout


def _headline(
    picture: SuitePicture, recording: Recording, evening: Evening, width: int
) -> RenderableType:
    players = picture.game.players_online if picture.game is not None else 0
    at = min(picture.evening_seconds, evening.duration_seconds)
    first = Text.assemble(
        ("GAMEKEEPER ", "bold green"),
        ("an hour's evening, production minutes divided by ", "dim"),
        (f"{evening.time_factor:.3g}", "bold"),
        ("; GPUs and cloud simulated", "dim") if width >= _WIDTH_WITH_STRIP else "",
        no_wrap=True,
    )
    second = Table.grid(expand=True, padding=(0, 1))
    second.add_column(no_wrap=True)
    second.add_column(ratio=1)
    second.add_column(no_wrap=True)
    second.add_row(
        Text(f"{clock(at)} / {clock(evening.duration_seconds)}", style="bold"),
        ProgressBar(total=evening.duration_seconds, completed=at),
        Text(picture.phase, style="bold cyan"),
    )
    history = [float(moment.players_online) for moment in recording.moments]
    third = Text.assemble(
        ("players ", "dim"),
        (f"{players:>6,} ", "bold"),
        (spark(history, width=max(10, width - 20)), "green"),
    )
    return Group(first, second, third)


def _tiers(picture: SuitePicture, width: int) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), header_style="dim")
    table.add_column("tier", min_width=6)
    for heading in ("wanted", "ready", "coming", "going", "queue", "runs"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    short = width < _WIDTH_WITH_TARGETS
    table.add_column(
        "P95, target" if short else "P95, as players feel it",
        no_wrap=True,
        min_width=18 if short else 32,
    )
    if width >= _WIDTH_WITH_STRIP:
        table.add_column("servers (░ starting, ▒ silent)", no_wrap=True, ratio=1)
    for name in TIERS:
        tier = picture.autoscaler_tiers.get(name)
        router = picture.router_tiers.get(name)
        inputs = tier.inputs if tier is not None else autoscaler_pb2.DecisionInputs()
        game = picture.game.tiers.get(name, TierSample()) if picture.game else TierSample()
        row: list[RenderableType] = [
            Text(name, style=f"bold {_TIER_STYLES[name]}"),
            str(tier.desired) if tier is not None else "-",
            str(inputs.ready_servers),
            str(inputs.pending_servers),
            str(inputs.draining_servers),
            str(router.queued_requests) if router is not None else "-",
            str(sum(server.running_requests for server in router.servers)) if router else "-",
            _latency(name, game, short=short),
        ]
        if width >= _WIDTH_WITH_STRIP:
            row.append(_strip(picture, name))
        table.add_row(*row)
    return table


def _latency(tier: str, game: TierSample, *, short: bool) -> Text:
    target = TARGETS[tier]
    words = duration(target.limit_seconds) if short else target.words
    measured = target.measured(
        first_token_seconds=game.first_token_p95_seconds,
        per_token_seconds=game.seconds_per_token_p95,
    )
    if measured is None:
        return Text(f"      -   {words}", style="dim")
    held = measured <= target.limit_seconds
    return Text.assemble(
        (f"{duration(measured):>7} ", "green" if held else "bold red"),
        ("✔ " if held else "✘ ", "green" if held else "bold red"),
        (words, "dim"),
    )


def _strip(picture: SuitePicture, tier: str) -> Text:
    servers = picture.fleet.servers(tier)
    return Text.assemble(
        ("█" * servers.ready, _TIER_STYLES[tier]),
        ("░" * servers.starting, _TIER_STYLES[tier]),
        ("▒" * (servers.unhealthy + servers.stale), "red"),
        (f" {servers.interrupted} to be taken back" if servers.interrupted else "", "magenta"),
    )


def _figures(picture: SuitePicture, width: int) -> RenderableType:
    status = picture.status
    tiers = picture.game.tiers.values() if picture.game is not None else ()
    sent = sum(tier.sent for tier in tiers)
    completed = sum(tier.completed for tier in tiers)
    shed = sum(tier.shed_total for tier in tiers)
    failed = sum(tier.failed_total for tier in tiers)
    cached = sum(tier.cached for tier in tiers)
    per_month = None
    budget = 8.0
    if status is not None:
        budget = status.budget_usd_per_player_month
        if status.HasField("cost_usd_per_player_month"):
            per_month = status.cost_usd_per_player_month
    dear = per_month is not None and per_month > budget
    return Group(
        Text.assemble(
            ("requests ", "dim"),
            f"{sent:,} sent  {completed:,} answered",
            (f" ({cached:,} from the cache)", "dim"),
            "  ",
            (f"{shed:,} turned away", "yellow" if shed else "dim"),
            "  ",
            (f"{failed:,} failed", "red" if failed else "dim"),
        ),
        Text.assemble(
            ("GPUs ", "dim"),
            f"{picture.fleet.gpus}",
            ("   cost ", "dim"),
            f"{money(status.cost_usd_per_hour if status else None)} per hour",
            ("   per player and month ", "dim"),
            (money(per_month), "yellow" if dear else "green"),
            (f" (budget {money(budget)})", "dim"),
            ("   events ", "dim") if width >= _WIDTH_WITH_TARGETS else "",
            (picture.bus.short, "red" if picture.bus.dead_letters else "")
            if width >= _WIDTH_WITH_TARGETS or picture.bus.dead_letters
            else "",
        ),
    )


def _decisions(picture: SuitePicture, lines: int) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, style="dim", width=4)
    table.add_column(no_wrap=True, width=6)
    table.add_column(no_wrap=True, width=5)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    for at, decision in list(picture.decisions)[-lines:]:
        name = tier_name(decision.tier)
        grows = decision.desired > decision.previous_desired
        shrinks = decision.desired < decision.previous_desired
        table.add_row(
            clock(at),
            Text(name, style=_TIER_STYLES.get(name, "")),
            Text(
                f"{decision.previous_desired}→{decision.desired}",
                style="green" if grows else "blue" if shrinks else "dim",
            ),
            Text(decision_reason(decision)),
        )
    return Panel(table, title="decisions, and why", title_align="left", border_style="dim")


def _remarks(picture: SuitePicture, lines: int) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, style="dim", width=4)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    for remark in list(picture.remarks)[-lines:]:
        table.add_row(
            clock(remark.at_seconds), Text(remark.text, style=_REMARK_STYLES.get(remark.kind, ""))
        )
    return Panel(table, title="events", title_align="left", border_style="dim")


def _storyteller(picture: SuitePicture, lines: int) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, style="dim", min_width=11)
    table.add_column(overflow="ellipsis", no_wrap=lines < 5, ratio=1)
    if picture.story:
        turn = picture.story[-1]
        table.add_row("player", Text(turn.player, style="italic"))
        remembered = next((each for each in turn.recalled if each != turn.player), "nothing yet")
        table.add_row("remembers", Text(remembered, style="cyan"))
        if turn.citations and lines >= 5:
            table.add_row("lore", Text(turn.citations[0], style="dim"))
        table.add_row("storyteller", Text(turn.error or turn.told))
    else:
        table.add_row("", Text("the storyteller waits for players", style="dim"))
    return Panel(table, title="the storyteller remembers", title_align="left", border_style="dim")


def _services(picture: SuitePicture, components: Mapping[str, Supervised]) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, supervised in components.items():
        silent = picture.silent_seconds(name)
        stale = silent is not None and silent > _STALE_AFTER_SECONDS
        style = "yellow" if stale else _STATE_STYLES.get(supervised.state, "dim")
        line.append("● ", style=style)
        line.append(name, style="dim")
        if stale:
            line.append(f" silent {silent:.0f} s", style="yellow")
        if supervised.restarts:
            line.append(f" ↻{supervised.restarts}", style="yellow")
        line.append("  ")
    line.append("Ctrl-C stops everything", style="dim")
    return line
