"""What of the fleet needs attention: conditions that begin and end. Time is an argument."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.readings import GpuReading, MissingReason, ModelServerState, Tier

__all__ = ["Alert", "AlertBook", "AlertKind", "Condition"]

# Of hosts that were given up so many are remembered, to say when one is back.
_LOST_HOSTS_REMEMBERED = 1000

_GPU_FAILURES = {
    MissingReason.LOST: "the GPU fell off the bus",
    MissingReason.TIMEOUT: "the driver does not answer for the GPU",
    MissingReason.UNREACHABLE: "the driver cannot be reached",
}


class AlertKind(Enum):
    """What an alert is about; the numbers are those of `gaming.events.GpuAlertKind`."""

    HOST_SILENT = 1
    HOST_LOST = 2
    GPU_FAILED = 3
    SERVER_UNHEALTHY = 4


@dataclass(frozen=True, slots=True)
class Condition:
    """What an alert is about, exactly; `part_id` is a GPU's or a server's, else empty."""

    kind: AlertKind
    host_id: str
    part_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A condition that has begun (`raised`) or ended."""

    condition: Condition
    raised: bool
    reason: str
    tiers: tuple[Tier, ...]
    last_report_time: datetime
    simulated: bool


@dataclass(frozen=True, slots=True)
class _Finding:
    condition: Condition
    reason: str
    host: HostState

    def alert(self, *, raised: bool, reason: str = "") -> Alert:
        return Alert(
            condition=self.condition,
            raised=raised,
            reason=reason or self.reason,
            tiers=tuple(sorted(self.host.tiers, key=lambda tier: tier.value)),
            last_report_time=self.host.receive_time,
            simulated=self.host.host.simulated,
        )


class AlertBook:
    """Which conditions are raised; looked at again and again, it says what begins and what ends.

    A failed GPU or server must stay so for `confirm_seconds`, for a single late answer is no
    failure; silence has been waited for by the view already. A host that announced its end (a Spot
    notice, or an agent that says it leaves) is neither silent nor lost. While a host is silent,
    nothing is said of what is on it.
    """

    def __init__(self, *, confirm_seconds: float) -> None:
        self._confirm_seconds = confirm_seconds
        self._raised: dict[Condition, _Finding] = {}
        self._suspected: dict[Condition, float] = {}
        self._lost: dict[str, _Finding] = {}

    def look(self, hosts: Sequence[HostState], now: float) -> tuple[Alert, ...]:
        """Return what began and what ended since the last look; `hosts` are all of the view."""
        present = {state.host.host_id: state for state in hosts}
        alerts = [*self._returned(present), *self._given_up(present)]
        found = {f.condition: f for state in hosts for f in _findings(state)}
        silent = {i for i, state in present.items() if state.freshness is Freshness.STALE}
        for condition, finding in list(self._raised.items()):
            if condition in found:
                self._raised[condition] = found[condition]
            elif condition.kind is AlertKind.HOST_SILENT:
                del self._raised[condition]
                alerts.append(finding.alert(raised=False, reason="The host reports again."))
            elif condition.host_id not in silent:
                # It works again, or it is gone together with its host or its server.
                del self._raised[condition]
                alerts.append(finding.alert(raised=False, reason="It works again, or is gone."))
        for condition, finding in found.items():
            if condition not in self._raised and self._is_confirmed(condition, now):
                self._raised[condition] = finding
                alerts.append(finding.alert(raised=True))
        self._suspected = {c: at for c, at in self._suspected.items() if c in found}
        return tuple(alerts)

    def _is_confirmed(self, condition: Condition, now: float) -> bool:
        if condition.kind is AlertKind.HOST_SILENT:
            return True
        return now - self._suspected.setdefault(condition, now) >= self._confirm_seconds

    def _returned(self, present: dict[str, HostState]) -> Iterator[Alert]:
        for host_id in [i for i in self._lost if i in present]:
            finding = self._lost.pop(host_id)
            yield finding.alert(raised=False, reason="The host reports again.")

    def _given_up(self, present: dict[str, HostState]) -> Iterator[Alert]:
        """Silent hosts that left the view; being lost takes the place of being silent."""
        gone = [
            condition
            for condition in self._raised
            if condition.kind is AlertKind.HOST_SILENT and condition.host_id not in present
        ]
        for condition in gone:
            host = self._raised.pop(condition).host
            lost = _Finding(
                Condition(AlertKind.HOST_LOST, condition.host_id),
                "The host has been silent for so long that it was given up.",
                host,
            )
            self._lost[condition.host_id] = lost
            if len(self._lost) > _LOST_HOSTS_REMEMBERED:
                del self._lost[next(iter(self._lost))]
            yield lost.alert(raised=True)


def _findings(state: HostState) -> Iterator[_Finding]:
    host_id = state.host.host_id
    if state.freshness is Freshness.STALE:
        if state.host.interruption_time is None:
            condition = Condition(AlertKind.HOST_SILENT, host_id)
            yield _Finding(condition, "The host has stopped reporting.", state)
        return
    for gpu in state.report.gpus:
        failure = _gpu_failure(gpu)
        if failure:
            condition = Condition(AlertKind.GPU_FAILED, host_id, gpu.gpu_uuid)
            yield _Finding(condition, f"GPU {gpu.index}: {failure}.", state)
    for server in state.report.servers:
        if server.state is ModelServerState.UNHEALTHY:
            condition = Condition(AlertKind.SERVER_UNHEALTHY, host_id, server.server_id)
            reason = f"The model server {server.server_id} does not pass its health check."
            yield _Finding(condition, reason, state)


def _gpu_failure(gpu: GpuReading) -> str:
    """Return what is wrong with a GPU, nothing when it answers for anything at all."""
    readings = (
        gpu.utilization_permille,
        gpu.memory_used_bytes,
        gpu.power_milliwatts,
        gpu.temperature_celsius,
    )
    reasons = [reading for reading in readings if isinstance(reading, MissingReason)]
    if len(reasons) < len(readings):
        return ""
    return next((text for reason, text in _GPU_FAILURES.items() if reason in reasons), "")
