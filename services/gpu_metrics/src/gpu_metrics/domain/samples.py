"""Samples between two reports, and what an agent costs."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

__all__ = ["AgentCost", "DriverCost", "FleetMetric", "SampleSeries"]


class FleetMetric(IntEnum):
    """A figure of a GPU or of a model server; the numbers are those of the protocol."""

    GPU_UTILIZATION_PERMILLE = 1
    GPU_MEMORY_UTILIZATION_PERMILLE = 2
    GPU_MEMORY_USED_BYTES = 3
    GPU_POWER_MILLIWATTS = 4
    GPU_TEMPERATURE_CELSIUS = 5
    GPU_SM_CLOCK_MEGAHERTZ = 6
    RUNNING_REQUESTS = 7
    WAITING_REQUESTS = 8
    KV_CACHE_USAGE_PERMILLE = 9
    GENERATION_TOKENS_PER_SECOND = 10


class SampleSeries(NamedTuple):
    """One figure of one GPU at several moments, in order of time.

    The first offset is before the report's sample time, each further one after the sample before;
    both tuples are equally long.
    """

    gpu_index: int
    metric: FleetMetric
    offset_microseconds: tuple[int, ...]
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DriverCost:
    """What was asked of a GPU driver since the source was opened."""

    calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCost:
    """What an agent cost its host since it started; processor time includes the driver's."""

    driver_calls: int = 0
    driver_seconds: float = 0.0
    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    replaced_reports: int = 0
    lost_events: int = 0
