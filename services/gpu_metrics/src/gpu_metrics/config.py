"""The settings of the agent and of the collector."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from gpu_metrics.domain.event_journals import EventBounds
from gpu_metrics.domain.fleet import FleetPolicy
from gpu_metrics.domain.readings import PurchaseOption, Tier
from messaging.settings import MessagingSettings
from servicekit.channels import ChannelSettings
from servicekit.server import ServerSettings
from servicekit.settings import SettingsError, setting
from servicekit.telemetry import TelemetrySettings

__all__ = [
    "COLLECTOR_DEFAULT_ADDRESS",
    "AgentSettings",
    "CollectorSettings",
    "ModelServerAddress",
    "parse_model_servers",
]

COLLECTOR_DEFAULT_ADDRESS = "127.0.0.1:50061"

_PURCHASE_OPTIONS = {
    "": PurchaseOption.UNKNOWN,
    "on-demand": PurchaseOption.ON_DEMAND,
    "spot": PurchaseOption.SPOT,
}


@dataclass(frozen=True, slots=True)
class ModelServerAddress:
    """A model server of this host: its tier and where the agent reaches it."""

    tier: Tier
    url: str

    def __str__(self) -> str:
        return f"{self.tier.name.lower()}={self.url}"


def parse_model_servers(text: str) -> tuple[ModelServerAddress, ...]:
    """Return the servers of a list like `gold=http://127.0.0.1:8000,silver=http://…`.

    Raises ValueError saying what is allowed.
    """
    servers = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        tier_name, _, url = entry.partition("=")
        parts = urlsplit(url)
        if tier_name.upper() not in Tier.__members__ or parts.scheme not in ("http", "https"):
            raise ValueError(
                "must be tier=url entries separated by commas, tier being gold, silver or bronze, "
                "for example gold=http://127.0.0.1:8000"
            )
        if not parts.hostname or parts.path.rstrip("/"):
            raise ValueError("a url needs a host and no path, for example http://127.0.0.1:8000")
        servers.append(ModelServerAddress(Tier[tier_name.upper()], url.rstrip("/")))
    return tuple(servers)


def _parse_purchase_option(text: str) -> PurchaseOption:
    try:
        return _PURCHASE_OPTIONS[text.lower()]
    except KeyError:
        raise ValueError("allowed are on-demand, spot") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What one host's agent reads, and whom it tells."""

    telemetry: TelemetrySettings
    channel: ChannelSettings
    collectors: tuple[str, ...] = setting(
        "GPU_METRICS_COLLECTORS",
        default=(COLLECTOR_DEFAULT_ADDRESS,),
        help="host:port of every collector, separated by commas; each gets every report",
    )
    report_interval_seconds: float = setting(
        "GPU_METRICS_REPORT_INTERVAL_SECONDS",
        default=1.0,
        minimum=0.1,
        maximum=60,
        help="seconds between two reports",
    )
    host_id: str = setting(
        "GPU_METRICS_HOST_ID",
        default="",
        help="EC2 instance id, or another name unique in the fleet; empty takes the host name",
    )
    instance_type: str = setting(
        "GPU_METRICS_INSTANCE_TYPE", default="", help="EC2 instance type; empty when unknown"
    )
    availability_zone: str = setting(
        "GPU_METRICS_AVAILABILITY_ZONE", default="", help="availability zone; empty when unknown"
    )
    purchase_option: PurchaseOption = setting(
        "GPU_METRICS_PURCHASE_OPTION",
        default=PurchaseOption.UNKNOWN,
        parse=_parse_purchase_option,
        help="how the host is paid for: on-demand or spot; empty when unknown",
    )
    model_servers: tuple[ModelServerAddress, ...] = setting(
        "GPU_METRICS_MODEL_SERVERS",
        default=(),
        parse=parse_model_servers,
        help="vLLM servers of this host: tier=url, separated by commas",
    )
    advertised_host: str = setting(
        "GPU_METRICS_ADVERTISED_HOST",
        default="",
        help="host name or address under which others reach the servers; empty: as in their url",
    )
    scrape_timeout_seconds: float = setting(
        "GPU_METRICS_SCRAPE_TIMEOUT_SECONDS",
        default=0.4,
        minimum=0.01,
        maximum=30,
        help="how long a page of a model server may take",
    )
    nvml_enabled: bool = setting(
        "GPU_METRICS_NVML_ENABLED", default=True, help="read NVIDIA GPUs through the driver"
    )
    nvml_timeout_seconds: float = setting(
        "GPU_METRICS_NVML_TIMEOUT_SECONDS",
        default=0.4,
        minimum=0.01,
        maximum=30,
        help="how long the driver may take for one GPU",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSettings:
    """How the collector judges silence, how far it looks back, and where it publishes."""

    server: ServerSettings
    telemetry: TelemetrySettings
    messaging: MessagingSettings
    alert_confirm_seconds: float = setting(
        "GPU_METRICS_ALERT_CONFIRM_SECONDS",
        default=3.0,
        minimum=0.0,
        maximum=3600,
        help="how long a GPU or model server must have failed before the event bus is told",
    )
    alert_buffer: int = setting(
        "GPU_METRICS_ALERT_BUFFER",
        default=256,
        minimum=1,
        maximum=100_000,
        help="alerts that wait while the event bus is away; further ones are dropped",
    )
    events_per_host: int = setting(
        "GPU_METRICS_EVENTS_PER_HOST",
        default=16_384,
        minimum=1,
        maximum=1_000_000,
        help="GPU events held of one host; the oldest are given up beyond it",
    )
    events_in_all: int = setting(
        "GPU_METRICS_EVENTS_IN_ALL",
        default=131_072,
        minimum=1,
        maximum=10_000_000,
        help="GPU events held of all hosts, about 0.8 kB of memory each",
    )
    stale_after_seconds: float = setting(
        "GPU_METRICS_STALE_AFTER_SECONDS",
        default=5.0,
        minimum=0.1,
        maximum=3600,
        help="silence after which a host counts as stale",
    )
    expire_after_seconds: float = setting(
        "GPU_METRICS_EXPIRE_AFTER_SECONDS",
        default=60.0,
        minimum=0.2,
        maximum=86400,
        help="silence after which a host leaves the view; more than the stale setting",
    )
    latency_window_seconds: float = setting(
        "GPU_METRICS_LATENCY_WINDOW_SECONDS",
        default=60.0,
        minimum=1,
        maximum=3600,
        help="how far the tiers' latency histograms look back",
    )
    heartbeat_seconds: float = setting(
        "GPU_METRICS_HEARTBEAT_SECONDS",
        default=5.0,
        minimum=0.1,
        maximum=10,
        help="longest silence of a WatchFleet stream",
    )
    maximum_hosts: int = setting(
        "GPU_METRICS_MAX_HOSTS",
        default=1000,
        minimum=1,
        maximum=100_000,
        help="hosts held at once; further ones are refused",
    )
    cloudwatch_enabled: bool = setting(
        "GPU_METRICS_CLOUDWATCH_ENABLED",
        default=True,
        help="publish tier aggregates to CloudWatch",
    )
    cloudwatch_namespace: str = setting(
        "GPU_METRICS_CLOUDWATCH_NAMESPACE",
        default="Gamekeeper/Fleet",
        help="CloudWatch namespace of the tier aggregates",
    )
    cloudwatch_interval_seconds: float = setting(
        "GPU_METRICS_CLOUDWATCH_INTERVAL_SECONDS",
        default=60.0,
        minimum=1,
        maximum=3600,
        help="seconds between two publications",
    )
    aws_region: str = setting(
        "AWS_REGION", default="us-east-1", help="AWS region of the CloudWatch metrics"
    )
    aws_endpoint_url: str | None = setting(
        "AWS_ENDPOINT_URL", default=None, help="another AWS endpoint, for a local AWS; empty: AWS"
    )

    def event_bounds(self) -> EventBounds:
        """Return how many GPU events are held."""
        return EventBounds(per_host=self.events_per_host, in_all=self.events_in_all)

    def fleet_policy(self) -> FleetPolicy:
        """Return the view's policy; latencies are kept for the longest interval asked for.

        Raises `SettingsError` when a host would expire before it is stale.
        """
        if self.expire_after_seconds <= self.stale_after_seconds:
            problem = (
                f"GPU_METRICS_EXPIRE_AFTER_SECONDS={self.expire_after_seconds:g} is wrong: must be "
                f"more than GPU_METRICS_STALE_AFTER_SECONDS={self.stale_after_seconds:g}"
            )
            raise SettingsError([problem])
        return FleetPolicy(
            stale_after_seconds=self.stale_after_seconds,
            expire_after_seconds=self.expire_after_seconds,
            window_seconds=self.latency_window_seconds,
            retained_seconds=max(self.latency_window_seconds, self.cloudwatch_interval_seconds),
            slot_seconds=min(self.latency_window_seconds, self.cloudwatch_interval_seconds) / 12,
            maximum_hosts=self.maximum_hosts,
        )
