"""The settings of the agent."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gpu_metrics.domain.readings import PurchaseOption, Tier
from servicekit.channels import ChannelSettings
from servicekit.settings import setting
from servicekit.telemetry import TelemetrySettings

__all__ = [
    "COLLECTOR_DEFAULT_ADDRESS",
    "AgentSettings",
    "ModelServerAddress",
    "default_state_directory",
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


def _parse_url(text: str) -> str:
    """Return an http or https url without a slash at its end. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a http or https url, for example http://127.0.0.1:9400/metrics")
    return text.rstrip("/")


def default_state_directory(user_id: int, home: str) -> Path:
    """Return where an agent keeps its journal: below /var for root, else below the home."""
    base = Path("/var/lib") if user_id == 0 or not home else Path(home, ".local/state")
    return base / "gamekeeper/gpu_metrics"


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
        help="a name unique in the fleet; empty takes the EC2 instance id, else the host name",
    )
    instance_type: str = setting(
        "GPU_METRICS_INSTANCE_TYPE", default="", help="EC2 instance type; empty asks EC2"
    )
    availability_zone: str = setting(
        "GPU_METRICS_AVAILABILITY_ZONE", default="", help="availability zone; empty asks EC2"
    )
    purchase_option: PurchaseOption = setting(
        "GPU_METRICS_PURCHASE_OPTION",
        default=PurchaseOption.UNKNOWN,
        parse=_parse_purchase_option,
        help="how the host is paid for: on-demand or spot; empty asks EC2",
    )
    imds_enabled: bool = setting(
        "GPU_METRICS_IMDS_ENABLED",
        default=True,
        help="ask EC2's instance metadata service what host this is, and for Spot notices",
    )
    imds_url: str = setting(
        "GPU_METRICS_IMDS_URL",
        default="http://169.254.169.254",
        parse=_parse_url,
        help="where the instance metadata service answers",
    )
    imds_timeout_seconds: float = setting(
        "GPU_METRICS_IMDS_TIMEOUT_SECONDS",
        default=1.0,
        minimum=0.05,
        maximum=10,
        help="how long an answer of the instance metadata service may take",
    )
    spot_poll_seconds: float = setting(
        "GPU_METRICS_SPOT_POLL_SECONDS",
        default=5.0,
        minimum=0.1,
        maximum=60,
        help="seconds between two questions for a Spot notice or rebalance recommendation",
    )
    state_directory: Path = setting(
        "GPU_METRICS_STATE_DIRECTORY",
        default=default_state_directory(os.getuid(), os.environ.get("HOME", "")),
        help="where events are kept until collectors have them, in a directory for each host id",
    )
    journal_events: int = setting(
        "GPU_METRICS_JOURNAL_EVENTS",
        default=16_384,
        minimum=16,
        maximum=1_000_000,
        help="events kept for collectors that lack them; beyond it the oldest are given up",
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
        help="how long a page of a model server or of dcgm-exporter may take",
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
    nvml_hung_after_seconds: float = setting(
        "GPU_METRICS_NVML_HUNG_AFTER_SECONDS",
        default=0.9,
        minimum=0.1,
        maximum=300,
        help="how long the driver may leave a GPU's reading unanswered before the GPU is hung",
    )
    dcgm_url: str | None = setting(
        "GPU_METRICS_DCGM_URL",
        default=None,
        parse=_parse_url,
        help="metrics page of dcgm-exporter; its figures fill in what the driver does not tell",
    )
    process_root: Path = setting(
        "GPU_METRICS_PROC_DIRECTORY",
        default=Path("/proc"),
        help="the host's /proc, to find out in which containers the GPUs are used",
    )
    ecs_agent_url: str = setting(
        "GPU_METRICS_ECS_AGENT_URL",
        default="http://127.0.0.1:51678",
        parse=_parse_url,
        help="introspection endpoint of the host's ECS agent",
    )
    ecs_metadata_url: str | None = setting(
        "ECS_CONTAINER_METADATA_URI_V4",
        default=None,
        parse=_parse_url,
        help="metadata of the agent's own ECS task; ECS sets it",
    )
