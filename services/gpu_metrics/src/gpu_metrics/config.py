"""The settings of the collector; the agent's are in `agent_settings`."""

from dataclasses import dataclass

from gpu_metrics.agent_settings import COLLECTOR_DEFAULT_ADDRESS
from gpu_metrics.alert_settings import AlertSettings
from gpu_metrics.domain.fleet import FleetPolicy
from gpu_metrics.history_settings import HistorySettings
from gpu_metrics.prometheus_settings import PrometheusSettings
from messaging.settings import MessagingSettings
from servicekit.server import ServerSettings
from servicekit.settings import SettingsError, setting
from servicekit.telemetry import TelemetrySettings

__all__ = [
    "COLLECTOR_DEFAULT_ADDRESS",
    "CollectorSettings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSettings:
    """How the collector judges silence, how far it looks back, and where it publishes."""

    server: ServerSettings
    telemetry: TelemetrySettings
    messaging: MessagingSettings
    prometheus: PrometheusSettings
    history: HistorySettings
    alerts: AlertSettings
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
        default=0.5,
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
            sample_window_seconds=self.history.sample_window_seconds,
        )
