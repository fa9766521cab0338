"""One GPU of the host: its thread, what it said last, and how its driver behaves."""

import asyncio
import operator
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gpu_metrics.adapters.daemon_worker import DaemonWorker
from gpu_metrics.adapters.nvml_device import NvmlDevice
from gpu_metrics.adapters.nvml_discovery import FoundGpu, open_device
from gpu_metrics.adapters.nvml_library import CallMeter, NvmlLibrary
from gpu_metrics.domain.driver_health import CounterWatch, GpuHealth
from gpu_metrics.domain.readings import GPU_FIGURES, CountReading, GpuReading, MissingReason
from gpu_metrics.domain.samples import SampleSeries

__all__ = ["NvmlGpu"]


class NvmlGpu:
    """A GPU with a thread of its own, so that one that hangs takes no other with it.

    `index` is its place on the host and stays with its UUID, whatever the driver counts meanwhile.
    """

    def __init__(self, index: int, found: FoundGpu) -> None:
        self.index = index
        self.found = found
        self.meter = CallMeter()
        self.health = GpuHealth.ANSWERING
        self.counters = CounterWatch()
        self.epoch = 0
        # When the driver last listed the processes.
        self.listed_time = datetime.fromtimestamp(0, UTC)
        self.last_figures: Mapping[str, CountReading] = {}
        self._worker = DaemonWorker(f"nvml-gpu-{index}")
        # Kept when the handle is given up: its samples are still to be taken.
        self._device: NvmlDevice | None = None
        self._attached = False
        self._began = 0.0
        self._rings_due = 0.0
        self._slow_due = 0.0
        self._reading: dict[str, CountReading] = {}
        self._not_begun: MissingReason | None = None

    @property
    def busy(self) -> bool:
        """Return whether the driver has not answered the last reading yet."""
        return self._worker.busy

    def attach(self, library: NvmlLibrary, found: FoundGpu, *, same_run: bool = False) -> None:
        """Read by this handle from now on; without one the reason is what is read.

        Samples go on where they were left. In the `same_run` of a driver so does the rest, if there
        was a handle until now.
        """
        self.found = found
        before, same_run = self._device, same_run and self._attached
        self._attached = bool(found.handle)
        if not found.handle:
            return
        self._device = open_device(library, found, self.meter)
        if before is not None:
            self._device.go_on_from(before, same_run=same_run)
        if not same_run:
            self._slow_due = self._rings_due = 0.0

    def detach(self, reason: MissingReason) -> None:
        """Give up the handle; every figure is missing for this reason."""
        self.found = replace(self.found, handle=0, reason=reason)
        self._attached = False

    def drain(self) -> "asyncio.Future[None] | None":
        """Start to take the samples that wait, unless there is no handle or it does not answer."""
        if self._device is None or not self._attached or self._worker.busy:
            return None
        return self._worker.call(self._device.drain)

    def begin(
        self, now: float, *, time: datetime, ring_seconds: float, slow_seconds: float
    ) -> "asyncio.Future[None] | None":
        """Start a reading unless the one before still hangs or there is no handle."""
        device = self._device if self._attached else None
        self._not_begun = self.found.reason if device is None else None
        if device is None or self._worker.busy:
            return None
        # A twentieth early, so that a timer that fires a little early does not skip a turn.
        rings = now >= self._rings_due - ring_seconds / 20
        slow = now >= self._slow_due - slow_seconds / 20
        figures = self._reading = {}
        self._began = now

        def read() -> None:
            was_slow = device.read(figures, rings=rings, slow=slow)
            if rings:
                self._rings_due = now + ring_seconds
            if was_slow:
                self._slow_due = now + slow_seconds
                self.listed_time = time

        return self._worker.call(read)

    def wait(self, reason: MissingReason) -> None:
        """Begin no reading now; figures that could be read are missing for this reason."""
        self._not_begun = reason if self._attached else self.found.reason

    def finish(self, now: float, *, hung_after_seconds: float) -> Mapping[str, CountReading]:
        """Return what was read, the rest missing for a reason; call it after `begin` or `wait`."""
        figures, self._reading = self._reading, {}
        if self._not_begun is not None:
            missing = self._not_begun
        elif not self._worker.busy:
            missing = MissingReason.UNREACHABLE
        elif now - self._began >= hung_after_seconds:
            missing = MissingReason.HUNG
        else:
            missing = MissingReason.TIMEOUT
        read = dict(figures)
        self.last_figures = {name: read.get(name, missing) for name in GPU_FIGURES}
        return self.last_figures

    def as_reading(self) -> GpuReading:
        """Return the last figures as a reading."""
        figures: dict[str, Any] = dict(self.last_figures)
        return GpuReading(
            gpu_uuid=self.found.uuid,
            index=self.index,
            product_name=self.found.product_name,
            pci_bus_id=self.found.pci_bus_id,
            driver_epoch=self.epoch,
            **figures,
        )

    def take_series(self, sample_time: datetime) -> list[SampleSeries]:
        """Return the samples that wait, unless the thread may be adding to them."""
        if self._device is None or self._worker.busy:
            return []
        moment = round(sample_time.timestamp() * 1_000_000)
        series = []
        for ring in self._device.rings.values():
            if not ring.samples:
                continue
            moments, values = zip(*ring.samples, strict=True)
            offsets = (moment - moments[0], *map(operator.sub, moments[1:], moments))
            if min(offsets) < 0:
                # The clock was set back.
                offsets = tuple(max(0, offset) for offset in offsets)
            series.append(
                SampleSeries(
                    gpu_index=self.index,
                    metric=ring.metric,
                    offset_microseconds=offsets,
                    values=values,
                )
            )
            ring.samples.clear()
        return series

    def processes(self) -> "tuple[tuple[int, int | None], ...] | MissingReason":
        """Return the processes as last read, or why they are not known."""
        if self._device is None or not self._attached:
            return self.found.reason
        if self.health in (GpuHealth.HUNG, GpuHealth.LOST):
            return MissingReason[self.health.name]
        return self._device.processes.last

    def close(self) -> None:
        """Let the thread end."""
        self._worker.close()
