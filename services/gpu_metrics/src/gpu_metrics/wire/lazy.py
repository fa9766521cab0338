"""An agent's report as the collector takes it in: parsed, and converted only as far as it is read.

A report is taken in far more often than anybody asks for all of it, so its GPUs and servers stay
the messages they came as. What the view needs of every report is read out directly.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter, methodcaller
from typing import Any, Generic, TypeVar, overload

from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2
from gpu_metrics.domain.readings import (
    GPU_HISTORY_FIGURES,
    GPU_LIFE_SIGNS,
    EnergyCounter,
    GpuAlertFigures,
    GpuReading,
    Host,
    HostReport,
    MissingReason,
    PackedGpus,
)
from gpu_metrics.wire.events import event_from_message
from gpu_metrics.wire.moments import moment
from gpu_metrics.wire.processes import processes_from_message
from gpu_metrics.wire.readings import (
    gpu_from_message,
    host_from_message,
    reason_from_message,
    server_from_message,
)
from gpu_metrics.wire.samples import cost_from_message, packed_series_from_message

__all__ = ["LazyGpus", "LazySequence", "lazy_report_from_message"]

_Item = TypeVar("_Item")

# Several fields read at once take half as long as one after the other.
_gpu_uuid = attrgetter("gpu_uuid")
_memory_used = attrgetter("memory_used_bytes")
_alert_parts = attrgetter("clock_event_reasons", "ecc_uncorrected_total", "driver_epoch")
_counts_errors = methodcaller("HasField", "ecc_uncorrected_total")
_history_parts = attrgetter(*GPU_HISTORY_FIGURES)
_report_parts = attrgetter(
    "host",
    "boot_id",
    "sequence",
    "sample_time",
    "gpus",
    "servers",
    "leaving",
    "monotonic_microseconds",
    "sample_blocks",
    "series",
    "events",
    "journal_id",
    "events_only",
    "oldest_event_sequence",
    "collectors_before",
)


class LazySequence(Sequence[_Item], Generic[_Item]):
    """Messages that become domain values, all at once, when the first is asked for."""

    __slots__ = ("_convert", "_converted", "messages")

    def __init__(self, messages: Any, convert: Callable[[Any], _Item]) -> None:
        # A repeated field makes its messages anew each time that it is read; a slice, all at once.
        self.messages = messages[:]
        self._convert = convert
        self._converted: tuple[_Item, ...] | None = None

    def _values(self) -> tuple[_Item, ...]:
        if self._converted is None:
            self._converted = tuple(map(self._convert, self.messages))
        return self._converted

    @overload
    def __getitem__(self, index: int) -> _Item: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[_Item, ...]: ...

    def __getitem__(self, index: int | slice) -> _Item | tuple[_Item, ...]:
        return self._values()[index]

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[_Item]:
        return iter(self._values())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LazySequence):
            return self._values() == other._values()
        return self._values() == other

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return repr(self._values())


class LazyGpus(LazySequence[GpuReading], PackedGpus):
    """GPUs as an agent sent them."""

    __slots__ = ("_uuids",)

    def __init__(self, messages: "Iterable[fleet_pb2.GpuSample]") -> None:
        super().__init__(messages, gpu_from_message)
        self._uuids: tuple[str, ...] | None = None

    def uuids(self) -> tuple[str, ...]:
        """Return the UUIDs in the order of the report."""
        if self._uuids is None:
            self._uuids = tuple(map(_gpu_uuid, self.messages))
        return self._uuids

    def alert_figures(self) -> list[GpuAlertFigures]:
        """Return what of each GPU may need attention."""
        return list(map(_alert_figures, self.messages))

    def alert_digest(self) -> object | None:
        """Return what is equal for GPUs of equal alert figures, None if one may not answer."""
        # A GPU that answers has memory in use, if only its driver's; else it is looked at closely.
        if not all(map(_memory_used, self.messages)):
            return None
        # A total of 0 is told from none: later totals are compared with the first.
        counts = tuple(map(_counts_errors, self.messages))
        return (self.uuids(), counts, *map(_alert_parts, self.messages))

    def energy(self) -> list[EnergyCounter]:
        """Return the energy counter of each GPU."""
        return [
            EnergyCounter(
                gpu.gpu_uuid,
                gpu.driver_epoch,
                gpu.energy_millijoules if gpu.HasField("energy_millijoules") else None,
            )
            for gpu in self.messages
        ]

    def history_figures(self) -> list[float | None]:
        """Return six figures of each GPU, in the order of `GPU_HISTORY_FIGURES`."""
        figures: list[float | None] = []
        for gpu in self.messages:
            parts: Sequence[float | None] = _history_parts(gpu)
            if 0 in parts:
                # A figure that is not 0 is there; only a 0 may stand for one that is unset.
                parts = [
                    part or (0 if gpu.HasField(name) else None)
                    for part, name in zip(parts, GPU_HISTORY_FIGURES, strict=True)
                ]
            figures += parts
        return figures


def _alert_figures(gpu: fleet_pb2.GpuSample) -> GpuAlertFigures:
    # A figure that is not 0 is there; only a 0 may stand for one that is unset.
    answers = bool(
        gpu.memory_used_bytes
        or gpu.power_milliwatts
        or gpu.temperature_celsius
        or gpu.HasField("utilization_permille")
        or gpu.HasField("memory_used_bytes")
        or gpu.HasField("power_milliwatts")
        or gpu.HasField("temperature_celsius")
    )
    return GpuAlertFigures(
        gpu.gpu_uuid,
        gpu.index,
        answers,
        gpu.clock_event_reasons,
        gpu.ecc_uncorrected_total or (0 if gpu.HasField("ecc_uncorrected_total") else None),
        gpu.driver_epoch,
        frozenset() if answers else _silence(gpu),
    )


def _silence(gpu: fleet_pb2.GpuSample) -> frozenset[MissingReason]:
    reasons = [each.reason for each in gpu.missing if each.field in GPU_LIFE_SIGNS]
    return frozenset(map(reason_from_message, reasons))


@lru_cache(maxsize=4096)
def _host_of(serialized: bytes) -> Host:
    # A host hardly ever changes what it says of itself.
    return host_from_message(fleet_pb2.Host.FromString(serialized))


def lazy_report_from_message(message: gpu_metrics_pb2.StreamReportsRequest) -> HostReport:
    """Return an agent's report that reads `message` as it goes; the message must not change.

    Raises `HistogramShapeError` for an impossible histogram, and `InvalidSampleBlock`.
    """
    (
        host,
        boot_id,
        sequence,
        sample_time,
        gpus,
        servers,
        leaving,
        monotonic_microseconds,
        blocks,
        series,
        events,
        journal_id,
        events_only,
        oldest_event_sequence,
        collectors_before,
    ) = _report_parts(message)
    return HostReport(
        host=_host_of(host.SerializeToString()),
        boot_id=boot_id,
        sequence=sequence,
        sample_time=moment(sample_time),
        gpus=LazyGpus(gpus),
        servers=tuple(map(server_from_message, servers)) if servers else (),
        leaving=leaving,
        monotonic_microseconds=monotonic_microseconds,
        series=packed_series_from_message(message) if blocks or series else (),
        events=tuple(map(event_from_message, events)) if events else (),
        journal_id=journal_id,
        events_only=events_only,
        oldest_event_sequence=oldest_event_sequence,
        collectors_before=collectors_before,
        processes=(
            processes_from_message(message.processes) if message.HasField("processes") else None
        ),
        cost=cost_from_message(message.cost) if message.HasField("cost") else None,
    )
