"""What a host's report shows that needs attention. Pure; one report at a time.

The bits that say why clocks are held back are those of `nvmlClocksEventReason*` in NVIDIA's NVML
reference ("NvmlClocksEventReasons", also in nvidia-ml-py). `SwPowerCap` is no sign of trouble: a
GPU at work is held at its power limit as a rule. `HwSlowdown` is set together with the bit that
says more; alone it means that the board drew too much and was slowed down to protect it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from gpu_metrics.domain.alerts import AlertKind, Condition
from gpu_metrics.domain.gpu_events import Severity
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import (
    GpuAlertFigures,
    GpuReading,
    MissingReason,
    ModelServerState,
    gpu_alert_digest,
    gpu_alert_figures,
)

__all__ = [
    "POWER_BITS",
    "THERMAL_BITS",
    "EccMemory",
    "Finding",
    "digest_of",
    "findings_of",
    "report_answers",
]

_HW_SLOWDOWN = 0x08
_SW_THERMAL_SLOWDOWN = 0x20
_HW_THERMAL_SLOWDOWN = 0x40
_HW_POWER_BRAKE_SLOWDOWN = 0x80

THERMAL_BITS = _SW_THERMAL_SLOWDOWN | _HW_THERMAL_SLOWDOWN
POWER_BITS = _HW_POWER_BRAKE_SLOWDOWN | _HW_SLOWDOWN

_GPU_FAILURES = (
    (MissingReason.LOST, AlertKind.GPU_LOST, "the GPU fell off the bus"),
    (MissingReason.HUNG, AlertKind.GPU_HUNG, "the driver does not answer for the GPU"),
    (MissingReason.TIMEOUT, AlertKind.GPU_HUNG, "the driver does not answer for the GPU"),
    (MissingReason.UNREACHABLE, AlertKind.DRIVER_UNREACHABLE, "The driver cannot be reached"),
)

EccMemory = dict[str, tuple[int, int]]
"""The driver epoch and the total of uncorrected errors that each GPU last told."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition that holds now.

    `reason` says so in words, once somebody is told. `occurrence` tells its beginning from any
    other; one that is `named` is so by the host and does not change while the condition holds.
    `at_once` says that it needs no confirmation.
    """

    condition: Condition
    reason: Callable[[], str]
    occurrence: str | datetime
    named: bool = False
    at_once: bool = False
    severity: Severity | None = None


def digest_of(state: HostState, *, skew_seconds: float) -> object | None:
    """Return what is equal for reports that show the same, or None where each must be looked at.

    It costs a fraction of the findings, and hardly ever changes.
    """
    if abs(state.clock_skew_seconds) > skew_seconds:
        return None
    for server in state.report.servers:
        if server.state is ModelServerState.UNHEALTHY:
            return None
    return gpu_alert_digest(state.report.gpus)


def findings_of(state: HostState, ecc: EccMemory, *, skew_seconds: float) -> Iterator[Finding]:
    """Yield what a fresh host's last report shows; `ecc` is brought up to date by it."""
    report = state.report
    host_id, sample, gpus = report.host.host_id, report.sample_time, report.gpus
    for place, figure in enumerate(gpu_alert_figures(gpus)):
        if not figure.answers:
            finding = _failure(host_id, figure, sample)
            if finding is not None:
                yield finding
        if figure.clock_event_reasons & (THERMAL_BITS | POWER_BITS):
            yield from _throttling(host_id, gpus, place, figure, sample)
        if figure.ecc_uncorrected_total is not None:
            finding = _ecc(host_id, figure, figure.ecc_uncorrected_total, ecc)
            if finding is not None:
                yield finding
    for server in report.servers:
        if server.state is ModelServerState.UNHEALTHY:
            condition = Condition(AlertKind.SERVER_UNHEALTHY, host_id, server.server_id)
            reason = "The model server {} does not pass its health check."
            yield Finding(condition, partial(reason.format, server.server_id), sample)
    if abs(state.clock_skew_seconds) > skew_seconds:
        condition = Condition(AlertKind.CLOCK_SKEW, host_id)
        yield Finding(condition, partial(_skew, state.clock_skew_seconds), sample)


def report_answers(gpus: Sequence[GpuReading], gpu_uuid: str) -> bool:
    """Return whether a GPU of a report, any without a UUID, answers for anything at all."""
    return any(
        figure.answers for figure in gpu_alert_figures(gpus) if gpu_uuid in ("", figure.gpu_uuid)
    )


def _failure(host_id: str, figure: GpuAlertFigures, sample: datetime) -> Finding | None:
    for missing, kind, text in _GPU_FAILURES:
        if missing in figure.silence:
            if kind is AlertKind.DRIVER_UNREACHABLE:
                return Finding(Condition(kind, host_id), partial("{}.".format, text), sample)
            condition = Condition(kind, host_id, figure.gpu_uuid)
            return Finding(condition, partial("GPU {}: {}.".format, figure.gpu_index, text), sample)
    return None


def _throttling(
    host_id: str,
    gpus: Sequence[GpuReading],
    place: int,
    figure: GpuAlertFigures,
    sample: datetime,
) -> Iterator[Finding]:
    bits = figure.clock_event_reasons
    if bits & THERMAL_BITS:
        condition = Condition(AlertKind.THERMAL_THROTTLING, host_id, figure.gpu_uuid)
        yield Finding(condition, partial(_heat, gpus, place), sample)
    if bits & _HW_POWER_BRAKE_SLOWDOWN or (bits & POWER_BITS and not bits & THERMAL_BITS):
        condition = Condition(AlertKind.POWER_THROTTLING, host_id, figure.gpu_uuid)
        reason = "GPU {}: its clocks are held back because of its power supply."
        yield Finding(condition, partial(reason.format, figure.gpu_index), sample)


def _heat(gpus: Sequence[GpuReading], place: int) -> str:
    gpu = gpus[place]
    reason = f"GPU {gpu.index}: its clocks are held back because it is hot"
    if not isinstance(gpu.temperature_celsius, MissingReason):
        reason += f", {gpu.temperature_celsius} degrees Celsius"
    return f"{reason}."


def _ecc(host_id: str, figure: GpuAlertFigures, total: int, ecc: EccMemory) -> Finding | None:
    """Return new errors; totals of different runs of the driver are not compared."""
    before = ecc.get(figure.gpu_uuid)
    if before == (figure.driver_epoch, total):
        return None
    ecc[figure.gpu_uuid] = (figure.driver_epoch, total)
    if before is None or before[0] != figure.driver_epoch or total <= before[1]:
        return None
    reason = (
        f"GPU {figure.gpu_index}: {total - before[1]} memory errors could not be corrected, "
        f"{total} since the driver was loaded."
    )
    condition = Condition(AlertKind.ECC_UNCORRECTED, host_id, figure.gpu_uuid)
    occurrence = f"{figure.driver_epoch}:{before[1]}"
    return Finding(condition, partial(str, reason), occurrence, named=True, at_once=True)


def _skew(seconds: float) -> str:
    side = "ahead of" if seconds > 0 else "behind"
    return f"The host's clock is {abs(seconds):.1f} s {side} the collector's."
