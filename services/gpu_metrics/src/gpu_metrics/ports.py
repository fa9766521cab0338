"""What the agent and the collector need from outside."""

from collections.abc import Sequence
from typing import Protocol

from gaming.events.events_pb2 import GameEvent
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, ModelServerReading

__all__ = [
    "AggregateSink",
    "EventSink",
    "GpuSource",
    "HostSource",
    "ModelServerSource",
    "PublishFailed",
    "ReportSink",
]


class PublishFailed(Exception):
    """The sink did not take the metrics; `cause_name` says why in one word."""

    def __init__(self, cause_name: str) -> None:
        super().__init__(cause_name)
        self.cause_name = cause_name


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
        or device that is broken or absent.
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

    async def publish(self, aggregates: Sequence[TierAggregate]) -> None:
        """Publish one interval. Raises `PublishFailed` when it was not taken."""
        ...


class EventSink(Protocol):
    """Takes events to the game's bus."""

    async def publish(self, event: GameEvent) -> None:
        """Return once the bus took the event; raises a ServiceError otherwise."""
        ...
