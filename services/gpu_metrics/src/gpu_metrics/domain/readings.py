"""What an agent reads on one host at one moment.

A reading is a value or the reason why it is not there (`MissingReason`); it is never a stand-in
such as 0 or NaN. The enum numbers are those of `gaming.gpu_metrics.v1` and
`gaming.common.v1.Tier`, so that the wire mapping needs no tables.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from typing import NamedTuple, TypeAlias

from gpu_metrics.domain.gpu_events import GpuEvent
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.processes import ProcessReading
from gpu_metrics.domain.samples import AgentCost, SampleSeries

__all__ = [
    "GPU_FIGURES",
    "GPU_HISTORY_FIGURES",
    "GPU_LIFE_SIGNS",
    "CountReading",
    "EnergyCounter",
    "GpuAlertFigures",
    "GpuReading",
    "HistogramReading",
    "Host",
    "HostReport",
    "MissingReason",
    "ModelServerReading",
    "ModelServerState",
    "PackedGpus",
    "PurchaseOption",
    "Tier",
    "gpu_alert_digest",
    "gpu_alert_figures",
    "gpu_energy",
    "gpu_history_figures",
    "gpu_uuids",
    "known",
]


class MissingReason(Enum):
    """Why a reading is not there."""

    NOT_TOLD = 0
    UNSUPPORTED = 1
    LOST = 2
    TIMEOUT = 3
    PERMISSION = 4
    MALFORMED = 5
    UNREACHABLE = 6
    HUNG = 7
    STALE = 8


class Tier(Enum):
    """A class of model servers with one model and one latency target."""

    GOLD = 1
    SILVER = 2
    BRONZE = 3


class ModelServerState(Enum):
    """What a model server is doing."""

    UNKNOWN = 0
    STARTING = 1
    READY = 2
    UNHEALTHY = 3


class PurchaseOption(Enum):
    """How a host is paid for."""

    UNKNOWN = 0
    ON_DEMAND = 1
    SPOT = 2


CountReading: TypeAlias = int | MissingReason
HistogramReading: TypeAlias = Histogram | MissingReason


def known(reading: CountReading) -> int | None:
    """Return the value, or None when the reading is missing for whatever reason."""
    return None if isinstance(reading, MissingReason) else reading


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU at one moment; every figure is a value or the reason it is missing.

    `driver_epoch` names the driver's run: totals and energy of different epochs must not be
    subtracted from each other. 0 is an unknown one.
    """

    gpu_uuid: str
    index: int
    product_name: str = ""
    pci_bus_id: str = ""
    utilization_permille: CountReading = MissingReason.NOT_TOLD
    memory_used_bytes: CountReading = MissingReason.NOT_TOLD
    memory_total_bytes: CountReading = MissingReason.NOT_TOLD
    power_milliwatts: CountReading = MissingReason.NOT_TOLD
    energy_millijoules: CountReading = MissingReason.NOT_TOLD
    temperature_celsius: CountReading = MissingReason.NOT_TOLD
    sm_clock_megahertz: CountReading = MissingReason.NOT_TOLD
    peak_utilization_permille: CountReading = MissingReason.NOT_TOLD
    memory_utilization_permille: CountReading = MissingReason.NOT_TOLD
    memory_clock_megahertz: CountReading = MissingReason.NOT_TOLD
    memory_temperature_celsius: CountReading = MissingReason.NOT_TOLD
    clock_event_reasons: CountReading = MissingReason.NOT_TOLD
    power_limit_milliwatts: CountReading = MissingReason.NOT_TOLD
    pcie_transmit_bytes_per_second: CountReading = MissingReason.NOT_TOLD
    pcie_receive_bytes_per_second: CountReading = MissingReason.NOT_TOLD
    pcie_replays_total: CountReading = MissingReason.NOT_TOLD
    ecc_corrected_total: CountReading = MissingReason.NOT_TOLD
    ecc_uncorrected_total: CountReading = MissingReason.NOT_TOLD
    driver_epoch: int = 0


GPU_FIGURES = tuple(field.name for field in fields(GpuReading) if field.type == CountReading)
"""The fields of a `GpuReading` that are a value or a reason."""

GPU_LIFE_SIGNS = (
    "utilization_permille",
    "memory_used_bytes",
    "power_milliwatts",
    "temperature_celsius",
)
"""The fields of a `GpuReading` of which every GPU that answers has at least one."""

GPU_HISTORY_FIGURES = (
    "utilization_permille",
    "memory_utilization_permille",
    "memory_used_bytes",
    "power_milliwatts",
    "temperature_celsius",
    "sm_clock_megahertz",
)
"""The fields of a `GpuReading` with a history, in the order of their `FleetMetric`."""


class GpuAlertFigures(NamedTuple):
    """What of a GPU may need attention: whether it answers for anything, and three figures.

    Of one that does not answer `silence` are the reasons. Clock-event reasons that are missing are
    0: none is known.
    """

    gpu_uuid: str
    gpu_index: int
    answers: bool
    clock_event_reasons: int
    ecc_uncorrected_total: int | None
    driver_epoch: int
    silence: frozenset[MissingReason] = frozenset()


class PackedGpus:
    """GPUs whose figures can be had without a `GpuReading` of each.

    No `ABC`, as to tell whether something is one would then take five times as long.
    """

    __slots__ = ()

    @abstractmethod
    def uuids(self) -> tuple[str, ...]:
        """Return the UUIDs in the order of the report."""

    @abstractmethod
    def alert_figures(self) -> list[GpuAlertFigures]:
        """Return what of each GPU may need attention."""

    @abstractmethod
    def alert_digest(self) -> object | None:
        """Return what is equal for GPUs of equal alert figures, None if one may not answer."""

    @abstractmethod
    def energy(self) -> "list[EnergyCounter]":
        """Return the energy counter of each GPU."""

    @abstractmethod
    def history_figures(self) -> list[float | None]:
        """Return the figures of `GPU_HISTORY_FIGURES` of each GPU, one GPU after the other."""


def gpu_uuids(gpus: Sequence[GpuReading]) -> tuple[str, ...]:
    """Return the UUIDs in the order of the report."""
    if isinstance(gpus, PackedGpus):
        return gpus.uuids()
    return tuple(gpu.gpu_uuid for gpu in gpus)


def gpu_alert_figures(gpus: Sequence[GpuReading]) -> list[GpuAlertFigures]:
    """Return what of each GPU may need attention, in the order of the report."""
    if isinstance(gpus, PackedGpus):
        return gpus.alert_figures()
    return [_alert_figures(gpu) for gpu in gpus]


def gpu_alert_digest(gpus: Sequence[GpuReading]) -> object | None:
    """Return what is equal for GPUs of equal alert figures, and far cheaper to have.

    None if a GPU may not answer.
    """
    if isinstance(gpus, PackedGpus):
        return gpus.alert_digest()
    figures = gpu_alert_figures(gpus)
    return figures if all(figure.answers for figure in figures) else None


def _alert_figures(gpu: GpuReading) -> GpuAlertFigures:
    readings = [getattr(gpu, name) for name in GPU_LIFE_SIGNS]
    reasons = frozenset(each for each in readings if isinstance(each, MissingReason))
    answers = any(not isinstance(each, MissingReason) for each in readings)
    return GpuAlertFigures(
        gpu.gpu_uuid,
        gpu.index,
        answers,
        known(gpu.clock_event_reasons) or 0,
        known(gpu.ecc_uncorrected_total),
        gpu.driver_epoch,
        frozenset() if answers else reasons,
    )


class EnergyCounter(NamedTuple):
    """A GPU's energy since its driver was loaded, None when it is missing."""

    gpu_uuid: str
    driver_epoch: int
    millijoules: int | None


def gpu_energy(gpus: Sequence[GpuReading]) -> Sequence[EnergyCounter]:
    """Return the energy counter of each GPU, in the order of the report."""
    if isinstance(gpus, PackedGpus):
        return gpus.energy()
    return [
        EnergyCounter(gpu.gpu_uuid, gpu.driver_epoch, known(gpu.energy_millijoules)) for gpu in gpus
    ]


def gpu_history_figures(gpus: Sequence[GpuReading]) -> list[float | None]:
    """Return the figures of `GPU_HISTORY_FIGURES` of each GPU; None is one that is missing."""
    if isinstance(gpus, PackedGpus):
        return gpus.history_figures()
    return [known(getattr(gpu, name)) for gpu in gpus for name in GPU_HISTORY_FIGURES]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServerReading:
    """One model server at one moment; histograms and totals count since the server started."""

    server_id: str
    endpoint_url: str
    tier: Tier
    model: str = ""
    state: ModelServerState = ModelServerState.UNKNOWN
    running_requests: CountReading = MissingReason.NOT_TOLD
    waiting_requests: CountReading = MissingReason.NOT_TOLD
    kv_cache_usage_permille: CountReading = MissingReason.NOT_TOLD
    kv_cache_capacity_tokens: CountReading = MissingReason.NOT_TOLD
    prompt_tokens_total: CountReading = MissingReason.NOT_TOLD
    generation_tokens_total: CountReading = MissingReason.NOT_TOLD
    time_to_first_token: HistogramReading = MissingReason.NOT_TOLD
    inter_token_latency: HistogramReading = MissingReason.NOT_TOLD
    gpu_uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine an agent runs on.

    `interruption_time` is set once a Spot notice was given, `rebalance_time` once the cloud
    recommended to move elsewhere.
    """

    host_id: str
    instance_type: str = ""
    availability_zone: str = ""
    purchase_option: PurchaseOption = PurchaseOption.UNKNOWN
    interruption_time: datetime | None = None
    simulated: bool = False
    rebalance_time: datetime | None = None
    ecs_cluster: str = ""
    driver_version: str = ""


class HostReport(NamedTuple):
    """One report of one agent run.

    A tuple, as a frozen dataclass of as many fields takes longer to make than the rest of a report
    to decode.

    `sequence` counts from 1 within `boot_id`; `leaving` says that the agent stops on purpose.
    `monotonic_microseconds` is the host's monotonic clock at `sample_time`, 0 when unknown.
    `series` are the samples since the report before, `events` those of the journal `journal_id`
    that the collector lacks, in order, and `oldest_event_sequence` is the oldest that the journal
    still holds (0 means that it gave nothing up). A report that is `events_only` says nothing of
    readings, and its sequence means nothing. `collectors_before` is how many collectors that the
    agent names earlier take its reports; the host counts at the one for which it is 0.
    """

    host: Host
    boot_id: str
    sequence: int
    sample_time: datetime
    gpus: Sequence[GpuReading] = ()
    servers: Sequence[ModelServerReading] = ()
    leaving: bool = False
    monotonic_microseconds: int = 0
    series: Sequence[SampleSeries] = ()
    events: tuple[GpuEvent, ...] = ()
    journal_id: str = ""
    events_only: bool = False
    processes: ProcessReading | None = None
    cost: AgentCost | None = None
    oldest_event_sequence: int = 0
    collectors_before: int = 0
