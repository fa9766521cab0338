"""The settings of the autoscaler: environment variables, read once at start."""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.domain.journal_rules import JournalPolicy
from autoscaler.domain.policy import BudgetPolicy, LatencySignal, TierPolicy
from autoscaler.domain.prices import PriceTable
from autoscaler.domain.tiers import Tier
from autoscaler.tier_settings import (
    BronzeSettings,
    GoldSettings,
    SilverSettings,
    TierSettings,
)
from messaging.outbox_settings import StoreSettings
from messaging.settings import MessagingSettings
from servicekit.channels import ChannelSettings
from servicekit.server import ServerSettings
from servicekit.settings import SettingsError, setting
from servicekit.telemetry import TelemetrySettings

__all__ = ["AutoscalerSettings", "LeaseSettings", "PriceList", "parse_prices"]


@dataclass(frozen=True, slots=True)
class PriceList:
    """USD per hour by instance type."""

    prices: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return ",".join(f"{name}={price:g}" for name, price in self.prices)


# Linux On-Demand, us-east-1: the prices the product's cost promise is stated against.
REFERENCE_PRICES = PriceList(
    (("g5.xlarge", 1.006), ("g5.2xlarge", 1.212), ("g6.xlarge", 0.805), ("c5.4xlarge", 0.68))
)
# The middle of the $0.26-0.44 seen by region.
REFERENCE_SPOT_PRICES = PriceList((("g6.xlarge", 0.35),))


def parse_prices(text: str) -> PriceList:
    """Read `type=price` pairs, comma-separated, for example `g5.xlarge=1.006,g6.xlarge=0.805`."""
    prices: list[tuple[str, float]] = []
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, separator, price = pair.partition("=")
        try:
            value = float(price)
        except ValueError:
            value = -1.0
        if not separator or not name or not 0 <= value < 1_000:
            raise ValueError("write type=USD-per-hour pairs, for example g5.xlarge=1.006")
        prices.append((name.strip(), value))
    return PriceList(tuple(prices))


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceSettings:
    """How fast the control law goes. Those marked * are minutes in production."""

    tick_seconds: float = setting(
        "AUTOSCALER_TICK_SECONDS", default=5.0, minimum=0.05, help="pause between two decisions"
    )
    smoothing_seconds: float = setting(
        "AUTOSCALER_SMOOTHING_SECONDS",
        default=30.0,
        minimum=0.1,
        help="* time constant of smoothed demand",
    )
    fast_smoothing_seconds: float = setting(
        "AUTOSCALER_FAST_SMOOTHING_SECONDS",
        default=5.0,
        minimum=0.05,
        help="time constant of the arrival rate that panic mode looks at",
    )
    trend_seconds: float = setting(
        "AUTOSCALER_TREND_SECONDS",
        default=120.0,
        minimum=0.1,
        help="* time constant of the arrival trend",
    )
    learning_seconds: float = setting(
        "AUTOSCALER_LEARNING_SECONDS",
        default=300.0,
        minimum=0.1,
        help="* time constant of measured capacity and request size",
    )
    panic_window_seconds: float = setting(
        "AUTOSCALER_PANIC_WINDOW_SECONDS",
        default=60.0,
        minimum=0.1,
        help="* how long unsmoothed demand counts after demand exceeded full capacity",
    )
    stabilization_seconds: float = setting(
        "AUTOSCALER_STABILIZATION_SECONDS",
        default=300.0,
        minimum=0,
        help="* how long lower demand must last before servers go",
    )
    scale_in_interval_seconds: float = setting(
        "AUTOSCALER_SCALE_IN_INTERVAL_SECONDS",
        default=60.0,
        minimum=0,
        help="* pause between two steps down",
    )
    scale_in_step_ratio: float = setting(
        "AUTOSCALER_SCALE_IN_STEP_RATIO",
        default=0.3,
        minimum=0.01,
        maximum=1,
        help="share of a tier that may leave in one step, at least one server",
    )
    idle_to_zero_seconds: float = setting(
        "AUTOSCALER_IDLE_TO_ZERO_SECONDS",
        default=900.0,
        minimum=0,
        help="* how long nobody must have asked for a tier before its last server goes",
    )
    target_utilization: float = setting(
        "AUTOSCALER_TARGET_UTILIZATION",
        default=0.7,
        minimum=0.05,
        maximum=1,
        help="share of a server's capacity that demand may fill",
    )
    drain_deadline_seconds: float = setting(
        "AUTOSCALER_DRAIN_DEADLINE_SECONDS",
        default=120.0,
        minimum=0.1,
        help="* how long a server may take to finish its requests",
    )
    interruption_drain_lead_seconds: float = setting(
        "AUTOSCALER_INTERRUPTION_DRAIN_LEAD_SECONDS",
        default=45.0,
        minimum=0,
        help="* an interrupted server is drained at the latest this long before its end",
    )
    interruption_margin_seconds: float = setting(
        "AUTOSCALER_INTERRUPTION_MARGIN_SECONDS",
        default=10.0,
        minimum=0,
        help="* it is given back this long before its end",
    )
    unresponsive_grace_seconds: float = setting(
        "AUTOSCALER_UNRESPONSIVE_GRACE_SECONDS",
        default=60.0,
        minimum=0,
        help="* a server silent or unhealthy for longer is replaced",
    )
    overdue_factor: float = setting(
        "AUTOSCALER_OVERDUE_FACTOR",
        default=2.0,
        minimum=1,
        help="a server not ready after this many start times is replaced",
    )
    fleet_stale_seconds: float = setting(
        "AUTOSCALER_FLEET_STALE_SECONDS",
        default=15.0,
        minimum=0.1,
        help="an older fleet feed takes nothing away",
    )
    demand_stale_seconds: float = setting(
        "AUTOSCALER_DEMAND_STALE_SECONDS",
        default=15.0,
        minimum=0.1,
        help="an older demand stream takes nothing away",
    )
    players_stale_seconds: float = setting(
        "AUTOSCALER_PLAYERS_STALE_SECONDS",
        default=120.0,
        minimum=0.1,
        help="an older player count sets no budget",
    )
    demand_window_seconds: float = setting(
        "AUTOSCALER_DEMAND_WINDOW_SECONDS",
        default=10.0,
        minimum=0.5,
        help="arrival rates are counted over so long",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """Who decides, and how long after a silence somebody else does."""

    ttl_seconds: float = setting(
        "AUTOSCALER_LEASE_SECONDS",
        default=15.0,
        minimum=0.5,
        help="a leader silent for longer loses the lead",
    )
    renew_seconds: float = setting(
        "AUTOSCALER_LEASE_RENEW_SECONDS",
        default=4.0,
        minimum=0.1,
        help="pause between renewals; well below a third of the lease",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """What the journal keeps."""

    keep_alive_seconds: float = setting(
        "AUTOSCALER_JOURNAL_KEEP_ALIVE_SECONDS",
        default=60.0,
        minimum=1,
        help="decisions that change nothing are written this seldom",
    )
    rule_change_seconds: float = setting(
        "AUTOSCALER_JOURNAL_RULE_CHANGE_SECONDS",
        default=10.0,
        minimum=0,
        help="a new reason for the same size is written at most this often",
    )
    retention_days: float = setting(
        "AUTOSCALER_JOURNAL_RETENTION_DAYS",
        default=90.0,
        minimum=0.01,
        help="older entries are deleted",
    )
    buffer_entries: int = setting(
        "AUTOSCALER_JOURNAL_BUFFER_ENTRIES",
        default=10_000,
        minimum=100,
        help="entries kept in memory while the database is away",
    )
    poll_seconds: float = setting(
        "AUTOSCALER_JOURNAL_POLL_SECONDS",
        default=1.0,
        minimum=0.05,
        help="how often a replica looks for what another one decided",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSettings:
    """What instances cost, and what players pay for."""

    on_demand: PriceList = setting(
        "AUTOSCALER_PRICES",
        default=REFERENCE_PRICES,
        parse=parse_prices,
        help="USD per hour On-Demand, type=price pairs",
    )
    spot: PriceList = setting(
        "AUTOSCALER_SPOT_PRICES",
        default=REFERENCE_SPOT_PRICES,
        parse=parse_prices,
        help="USD per hour Spot, type=price pairs",
    )
    spot_ratio: float = setting(
        "AUTOSCALER_SPOT_PRICE_RATIO",
        default=0.43,
        minimum=0,
        maximum=1,
        help="Spot over On-Demand for types without a Spot price of their own",
    )
    budget_usd_per_player_month: float | None = setting(
        "AUTOSCALER_BUDGET_USD_PER_PLAYER_MONTH",
        default=8.0,
        minimum=0,
        help="what a player and month may cost; growth stops there",
    )
    budget_enforced: bool = setting(
        "AUTOSCALER_BUDGET_ENFORCED", default=True, help="false only shows the cost"
    )

    def table(self) -> PriceTable:
        """Return the price table; unknown types cost as much as the dearest known one."""
        return PriceTable(
            on_demand_usd_per_hour=dict(self.on_demand.prices),
            spot_usd_per_hour=dict(self.spot.prices),
            spot_price_ratio=self.spot_ratio,
            fallback_usd_per_hour=max((p for _, p in self.on_demand.prices), default=0.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """How the cloud is called."""

    endpoint_url: str | None = setting(
        "AWS_ENDPOINT_URL", default=None, help="another address than AWS's own"
    )
    region: str = setting("AWS_REGION", default="us-east-1", help="AWS region of the groups")
    timeout_seconds: float = setting(
        "AUTOSCALER_CLOUD_TIMEOUT_SECONDS",
        default=10.0,
        minimum=0.5,
        help="longest wait for an answer of the cloud, retries included",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerEventSettings:
    """Which events of the game's bus count players."""

    state_key: str = setting(
        "AUTOSCALER_PLAYERS_STATE_KEY",
        default="players_online",
        help="key of world_state.updated events that holds the players online",
    )
    sources: tuple[str, ...] = setting(
        "AUTOSCALER_PLAYERS_SOURCES",
        default=(),
        help="services whose counts are taken, comma-separated; empty: every service's",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerSettings:
    """Everything the autoscaler is told from outside."""

    server: ServerSettings
    telemetry: TelemetrySettings
    channel: ChannelSettings
    gold: GoldSettings
    silver: SilverSettings
    bronze: BronzeSettings
    pace: PaceSettings
    lease: LeaseSettings
    journal: JournalSettings
    prices: PriceSettings
    cloud: CloudSettings
    player_events: PlayerEventSettings
    messaging: MessagingSettings
    bus_store: StoreSettings
    database_url: str = setting(
        "AUTOSCALER_DATABASE_URL",
        help="postgresql://user:password@host:port/database",
        secret=True,
    )
    collectors: tuple[str, ...] = setting(
        "AUTOSCALER_COLLECTOR",
        default=("127.0.0.1:50061",),
        help="host:port of every gpu_metrics collector, comma-separated; one at a time is followed",
    )
    routers: tuple[str, ...] = setting(
        "AUTOSCALER_ROUTERS",
        default=("127.0.0.1:50063",),
        help="every router task, host:port, comma-separated",
    )
    replica_id: str = setting(
        "AUTOSCALER_REPLICA_ID",
        default="",
        help="name of this replica; empty makes one of host name and process id",
    )
    dry_run: bool = setting(
        "AUTOSCALER_DRY_RUN", default=False, help="decide and write down, but change nothing"
    )

    def tiers(self) -> dict[Tier, TierSettings]:
        """Return the settings of each tier."""
        return {Tier.GOLD: self.gold, Tier.SILVER: self.silver, Tier.BRONZE: self.bronze}

    def policies(self) -> dict[Tier, TierPolicy]:
        """Return the control law's policy for each tier.

        Raises SettingsError when settings of a tier contradict each other, naming all tiers.
        """
        signals = {Tier.GOLD: LatencySignal.INTER_TOKEN}
        policies: dict[Tier, TierPolicy] = {}
        problems: list[str] = []
        for tier, of in self.tiers().items():
            try:
                signal = signals.get(tier, LatencySignal.FIRST_TOKEN)
                policies[tier] = self._policy(tier, of, signal)
            except ValueError as error:
                problems.append(f"AUTOSCALER_{tier.name}_*: {error}")
        if problems:
            raise SettingsError(problems)
        return policies

    def budget(self) -> BudgetPolicy:
        """Return what the fleet may cost."""
        limit = self.prices.budget_usd_per_player_month if self.prices.budget_enforced else None
        return BudgetPolicy(
            usd_per_player_month=limit,
            floor_servers={tier: of.budget_floor for tier, of in self.tiers().items()},
        )

    def journal_policy(self) -> JournalPolicy:
        """Return how often decisions that change nothing are written."""
        return JournalPolicy(
            keep_alive_seconds=self.journal.keep_alive_seconds,
            rule_change_seconds=self.journal.rule_change_seconds,
        )

    def _policy(self, tier: Tier, of: TierSettings, signal: LatencySignal) -> TierPolicy:
        pace = self.pace
        return TierPolicy(
            tier=tier,
            minimum=of.minimum,
            maximum=of.maximum,
            default_capacity_tokens=of.capacity_tokens,
            default_tokens_per_request=of.tokens_per_request,
            default_residence_seconds=of.residence_seconds,
            latency_signal=signal,
            latency_target_seconds=of.latency_target_seconds,
            unloaded_latency_seconds=of.unloaded_latency_seconds,
            start_seconds=of.start_seconds,
            target_utilization=pace.target_utilization,
            smoothing_seconds=pace.smoothing_seconds,
            fast_smoothing_seconds=pace.fast_smoothing_seconds,
            trend_seconds=pace.trend_seconds,
            learning_seconds=pace.learning_seconds,
            panic_window_seconds=pace.panic_window_seconds,
            stabilization_seconds=pace.stabilization_seconds,
            scale_in_interval_seconds=pace.scale_in_interval_seconds,
            scale_in_step_ratio=pace.scale_in_step_ratio,
            idle_to_zero_seconds=pace.idle_to_zero_seconds,
            fleet_stale_seconds=pace.fleet_stale_seconds,
            demand_stale_seconds=pace.demand_stale_seconds,
            players_stale_seconds=pace.players_stale_seconds,
            overdue_factor=pace.overdue_factor,
            unresponsive_grace_seconds=pace.unresponsive_grace_seconds,
            drain_deadline_seconds=pace.drain_deadline_seconds,
            interruption_drain_lead_seconds=pace.interruption_drain_lead_seconds,
            interruption_margin_seconds=pace.interruption_margin_seconds,
        )
