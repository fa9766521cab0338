"""Builders of readings and reports for the tests of the fleet view."""

from datetime import UTC, datetime
from typing import Any

from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import (
    GpuReading,
    Host,
    HostReport,
    ModelServerReading,
    ModelServerState,
    Tier,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOUNDS = (0.1, 0.2, 0.5)


def make_histogram(*counts: int, sum_seconds: float = 0.0) -> Histogram:
    return Histogram(BOUNDS, counts or (0, 0, 0, 0), sum_seconds)


def make_server(
    name: str = "gold-1", tier: Tier = Tier.GOLD, **readings: Any
) -> ModelServerReading:
    defaults: dict[str, Any] = {
        "endpoint_url": "http://10.0.0.1:8000",
        "state": ModelServerState.READY,
        "running_requests": 2,
        "waiting_requests": 0,
        "kv_cache_usage_permille": 250,
        "kv_cache_capacity_tokens": 100_000,
    }
    return ModelServerReading(server_id=name, tier=tier, **{**defaults, **readings})


def make_report(
    host_id: str = "i-1",
    sequence: int = 1,
    *servers: ModelServerReading,
    boot_id: str = "boot-1",
    gpus: tuple[GpuReading, ...] = (),
    leaving: bool = False,
) -> HostReport:
    return HostReport(
        host=Host(host_id=host_id),
        boot_id=boot_id,
        sequence=sequence,
        sample_time=NOON,
        gpus=gpus,
        servers=servers or (make_server(f"server-of-{host_id}"),),
        leaving=leaving,
    )
