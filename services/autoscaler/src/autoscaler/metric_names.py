"""Every metric of the autoscaler, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autoscaler.buffered_journal import BufferedJournal
from autoscaler.domain.decision import DecisionInputs, DecisionRecord
from autoscaler.leadership import Leadership, Role
from autoscaler.picture import Picture
from servicekit.telemetry import Telemetry

__all__ = [
    "BUFFERED_DECISIONS",
    "COST",
    "DECISIONS",
    "DESIRED_SERVERS",
    "IS_LEADER",
    "PENDING_SERVERS",
    "PLAYERS_ONLINE",
    "READY_SERVERS",
    "REQUESTS_PER_PLAYER",
    "ROUND_DURATION",
    "SERVER_CAPACITY",
    "LoopInstruments",
    "register_metrics",
]

DESIRED_SERVERS = "gamekeeper.autoscaler.desired_servers"
READY_SERVERS = "gamekeeper.autoscaler.ready_servers"
PENDING_SERVERS = "gamekeeper.autoscaler.pending_servers"
SERVER_CAPACITY = "gamekeeper.autoscaler.server_capacity"
COST = "gamekeeper.autoscaler.cost"
REQUESTS_PER_PLAYER = "gamekeeper.autoscaler.requests_per_player"
PLAYERS_ONLINE = "gamekeeper.autoscaler.players_online"
BUFFERED_DECISIONS = "gamekeeper.autoscaler.buffered_decisions"
IS_LEADER = "gamekeeper.autoscaler.is_leader"

DECISIONS = "gamekeeper.autoscaler.decisions"
ROUND_DURATION = "gamekeeper.autoscaler.round.duration"

Values = Iterable[tuple[float, dict[str, str]]]


class LoopInstruments:
    """What the control loop counts."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._decisions = telemetry.counter(
            DECISIONS, unit="{decision}", description="Decisions by tier, rule and outcome"
        )
        self._round = telemetry.histogram(
            ROUND_DURATION, unit="s", description="How long a round of decisions took"
        )

    def decided(self, record: DecisionRecord) -> None:
        """Count a decision."""
        self._decisions.add(
            1,
            {
                "tier": record.decision.tier.value,
                "rule": record.decision.rule.value,
                "outcome": record.outcome.value if record.outcome else "",
            },
        )

    def round_took(self, seconds: float) -> None:
        """Record a round."""
        self._round.record(seconds)


def register_metrics(
    telemetry: Telemetry, picture: Picture, leadership: Leadership, journal: BufferedJournal
) -> None:
    """Register the gauges; they read the last known state at every export."""

    def by_input(value: Callable[[DecisionInputs], float]) -> Callable[[], Values]:
        return lambda: [
            (value(report.record.decision.inputs), {"tier": tier.value})
            for tier, report in picture.reports.items()
        ]

    telemetry.gauge(
        DESIRED_SERVERS,
        lambda: [
            (report.record.decision.desired, {"tier": tier.value})
            for tier, report in picture.reports.items()
        ],
        unit="{server}",
        description="Servers asked for",
    )
    telemetry.gauge(
        READY_SERVERS,
        by_input(lambda inputs: inputs.ready_servers),
        unit="{server}",
        description="Servers that take requests",
    )
    telemetry.gauge(
        PENDING_SERVERS,
        by_input(lambda inputs: inputs.pending_servers),
        unit="{server}",
        description="Servers asked for that do not take requests yet",
    )
    telemetry.gauge(
        SERVER_CAPACITY,
        by_input(lambda inputs: inputs.capacity_tokens_per_server),
        unit="{token}",
        description="Tokens in flight one server carries within its target",
    )
    telemetry.gauge(
        COST,
        lambda: [(r.usd_per_hour, {"tier": t.value}) for t, r in picture.reports.items()],
        unit="USD/h",
        description="What a tier's instances cost",
    )
    telemetry.gauge(
        REQUESTS_PER_PLAYER,
        lambda: [(v, {"tier": t.value}) for t, v in picture.requests_per_player_second.items()],
        unit="{request}/s",
        description="Requests per player online and second: the figure that decides the bill",
    )
    telemetry.gauge(
        PLAYERS_ONLINE,
        lambda: [] if picture.players is None else [(picture.players.online, {})],
        unit="{player}",
        description="Players online as last reported",
    )
    telemetry.gauge(
        BUFFERED_DECISIONS,
        lambda: [(journal.waiting_decisions, {})],
        unit="{decision}",
        description="Decisions that wait for the database",
    )
    telemetry.gauge(
        IS_LEADER,
        lambda: [(float(leadership.role is not Role.FOLLOWER), {})],
        unit="1",
        description="1 on the replica that decides",
    )
