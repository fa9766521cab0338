"""What the agent and the collector need from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol, TypeAlias

from gaming.events.events_pb2 import GameEvent
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.gpu_events import ObservedEvent
from gpu_metrics.domain.processes import ProcessReading
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, ModelServerReading
from gpu_metrics.domain.samples import DriverCost, SampleSeries
from gpu_metrics.domain.tier_samples import TierDistribution

__all__ = [
    "AggregateSink",
    "DriverMismatch",
    "DriverSource",
    "EventSink",
    "GpuEventSource",
    "GpuSource",
    "HostSource",
    "MetricBatch",
    "ModelServerSource",
    "ProcessSource",
    "Publication",
    "PublishFailed",
    "PublishOutcome",
    "ReportSink",
]


class PublishOutcome(Enum):
    """What is known of a batch that was not confirmed."""

    NOT_TAKEN = "not_taken"
    """It certainly had no effect and may succeed later."""

    REFUSED = "refused"
    """It certainly had no effect and never will."""

    UNKNOWN = "unknown"
    """It may have had its effect, so repeating it could count everything twice."""


class PublishFailed(Exception):
    """The sink did not confirm a batch; `cause_name` says why in one word."""

    def __init__(self, cause_name: str, outcome: PublishOutcome) -> None:
        super().__init__(cause_name)
        self.cause_name = cause_name
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Publication:
    """What is told about one interval, and when it ended."""

    time: datetime
    aggregates: Sequence[TierAggregate]
    distributions: Sequence[TierDistribution] = ()


MetricBatch: TypeAlias = Sequence[Mapping[str, Any]]
"""What a sink takes at once, all or nothing; in its own form."""


class DriverMismatch(Exception):
    """The driver's library and its kernel module are of different versions.

    Only a process that loads the library anew can read the GPUs again, so the agent must end.
    """


class HostSource(Protocol):
    """Tells what machine this is, and whether the cloud is about to take it back."""

    async def read_host(self) -> Host:
        """Return the machine as it is now; within a bounded time, without raising."""
        ...


class GpuSource(Protocol):
    """Reads the GPUs of the machine."""

    async def read_gpus(self) -> Sequence[GpuReading]:
        """Return all GPUs, each figure a value or the reason it is missing.

        Answers within a bounded time whatever the driver does, and does not raise for a driver
        or device that is broken or absent. Raises `DriverMismatch` alone, after the event of that
        kind was handed over.
        """
        ...


class DriverSource(Protocol):
    """What else a source that reads a GPU driver knows."""

    @property
    def driver_version(self) -> str:
        """Return the driver's version; empty while it is unknown."""
        ...

    @property
    def cost(self) -> DriverCost:
        """Return the calls into the driver and the time spent there, since the start."""
        ...

    def take_series(self, sample_time: datetime) -> tuple[SampleSeries, ...]:
        """Return the samples since the last call, their offsets counted from `sample_time`."""
        ...


class GpuEventSource(Protocol):
    """Sees what happens to the GPUs."""

    async def next_events(self) -> Sequence[ObservedEvent]:
        """Wait for events; return those that wait, in the order they were seen, each once.

        A source may bound how many wait to be taken: what it gives up then is counted.
        """
        ...


class ProcessSource(Protocol):
    """Tells which processes use the GPUs."""

    async def read_processes(self) -> ProcessReading | None:
        """Return the processes as last read, None before they were.

        Of what is not known of a process the fields are empty.

        Answers at once: the source itself decides how often the driver is asked.
        """
        ...


class ModelServerSource(Protocol):
    """Reads one model server of the machine."""

    async def read_server(self) -> ModelServerReading:
        """Return the server, each figure a value or the reason it is missing.

        Answers within a bounded time whatever the server does, and does not raise for a server
        that is broken or absent.
        """
        ...


class ReportSink(Protocol):
    """Delivers reports to one collector."""

    def offer(self, report: HostReport) -> None:
        """Take the newest report; one that has not been sent yet is replaced by it.

        The sink numbers the reports itself; the report's own sequence is not used.
        """
        ...

    async def run(self) -> None:
        """Deliver what is offered, for ever, whatever happens to the collector."""
        ...

    async def delivered(self) -> None:
        """Return once the last report offered is acknowledged."""
        ...


class AggregateSink(Protocol):
    """Takes tier aggregates for dashboards and alarms."""

    def batches(self, publication: Publication) -> Sequence[MetricBatch]:
        """Return the publication in parts that the sink takes, none when it is empty."""
        ...

    async def send(self, batch: MetricBatch) -> None:
        """Hand over one part, once. Raises `PublishFailed` when it was not confirmed."""
        ...


class EventSink(Protocol):
    """Takes events to the game's bus."""

    async def publish(self, event: GameEvent) -> None:
        """Return once the bus took the event; raises a ServiceError otherwise."""
        ...
