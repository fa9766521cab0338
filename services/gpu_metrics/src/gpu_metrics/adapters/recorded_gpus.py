"""A recording played as if it were this machine's driver."""

import asyncio
import bisect
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gpu_metrics.domain.driver_recording import Recording, ring_samples
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent
from gpu_metrics.domain.readings import GpuReading
from gpu_metrics.domain.samples import DriverCost, FleetMetric, SampleSeries
from gpu_metrics.domain.xid_catalogue import xid_facts
from servicekit.clock import Clock

__all__ = ["RecordedGpus"]

# Field of a reading and the reading's unit in the driver's, by the recording's figure.
_FIGURES: Mapping[str, tuple[str, int]] = {
    "utilization": ("utilization_permille", 10),
    "memory_utilization": ("memory_utilization_permille", 10),
    "memory_used": ("memory_used_bytes", 1),
    "memory_total": ("memory_total_bytes", 1),
    "power": ("power_milliwatts", 1),
    "power_limit": ("power_limit_milliwatts", 1),
    "energy": ("energy_millijoules", 1),
    "temperature": ("temperature_celsius", 1),
    "field 82": ("memory_temperature_celsius", 1),
    "sm_clock": ("sm_clock_megahertz", 1),
    "memory_clock": ("memory_clock_megahertz", 1),
    "clock_event_reasons": ("clock_event_reasons", 1),
    "pcie_tx": ("pcie_transmit_bytes_per_second", 1024),
    "pcie_rx": ("pcie_receive_bytes_per_second", 1024),
    "pcie_replays": ("pcie_replays_total", 1),
    "field 3": ("ecc_corrected_total", 1),
    "field 4": ("ecc_uncorrected_total", 1),
}
_RINGS = {
    "utilization": (FleetMetric.GPU_UTILIZATION_PERMILLE, 10),
    "memory_utilization": (FleetMetric.GPU_MEMORY_UTILIZATION_PERMILLE, 10),
    "power": (FleetMetric.GPU_POWER_MILLIWATTS, 1),
    "sm_clock": (FleetMetric.GPU_SM_CLOCK_MEGAHERTZ, 1),
}
_Track = tuple[list[int], list[float]]


class RecordedGpus:
    """Answers as the recorded driver did, from the first reading on; the last state stays.

    A GPU, event and driver source. Figures that were refused are left out as not told.
    """

    def __init__(self, recording: Recording, *, clock: Clock) -> None:
        self._recording = recording
        self._clock = clock
        self._began: float | None = None
        self._read_until = 0
        self._taken_until = 0
        self._epoch = int(clock.now().timestamp() * 1000)
        self._events: asyncio.Queue[ObservedEvent] = asyncio.Queue()
        self._xids = [
            (call.at_microseconds, call.gpu, int(call.answer["xid"]))
            for call in recording.calls
            if "xid" in call.answer
        ]
        self._tracks: dict[tuple[int, str], _Track] = defaultdict(lambda: ([], []))
        for moment, gpu, name, value in recording.figures():
            if name in _FIGURES:
                moments, values = self._tracks[gpu, name]
                moments.append(moment)
                values.append(value)
        self._samples: dict[tuple[int, str], _Track] = {
            key: (
                [moment - recording.started_microseconds for moment, _ in samples],
                [float(value) for _, value in samples],
            )
            for key, samples in ring_samples(recording).items()
        }

    @property
    def driver_version(self) -> str:
        """Return the recorded driver's version."""
        return self._recording.driver_version

    @property
    def cost(self) -> DriverCost:
        """Return nothing: no driver is asked."""
        return DriverCost()

    @property
    def finished(self) -> bool:
        """Return whether everything recorded was played."""
        calls = self._recording.calls
        return not calls or self._read_until >= calls[-1].at_microseconds

    async def read_gpus(self) -> Sequence[GpuReading]:
        """Return the GPUs as they were at this time of the recording."""
        if self._began is None:
            self._began = self._clock.monotonic()
        before = self._read_until
        now = self._read_until = int((self._clock.monotonic() - self._began) * 1_000_000)
        while self._xids and self._xids[0][0] <= now:
            self._put(*self._xids.pop(0)[1:])
        return [self._reading(index, before, now) for index in range(len(self._recording.gpus))]

    def _reading(self, index: int, before: int, now: int) -> GpuReading:
        figures: dict[str, Any] = {}
        for name, (field, scale) in _FIGURES.items():
            moments, values = self._tracks.get((index, name), ([], []))
            # The first answers came within the first moments of the recording.
            place = max(bisect.bisect_right(moments, now), 1)
            if moments:
                figures[field] = int(values[place - 1] * scale)
        moments, values = self._samples.get((index, "utilization"), ([], []))
        since = values[bisect.bisect_right(moments, before) : bisect.bisect_right(moments, now)]
        if since:
            figures["peak_utilization_permille"] = int(max(since) * 10)
        gpu = self._recording.gpus[index]
        return GpuReading(
            gpu_uuid=gpu.uuid,
            index=index,
            product_name=gpu.name,
            driver_epoch=self._epoch,
            **figures,
        )

    def take_series(self, sample_time: datetime) -> tuple[SampleSeries, ...]:
        """Return the recorded samples between the last call and the last reading."""
        if self._began is None:
            return ()
        elapsed = round((self._clock.monotonic() - self._began) * 1_000_000)
        series = []
        for (gpu, ring), (moments, values) in self._samples.items():
            first = bisect.bisect_right(moments, self._taken_until)
            last = bisect.bisect_right(moments, self._read_until)
            if first == last:
                continue
            metric, scale = _RINGS[ring]
            taken = moments[first:last]
            steps = [after - before for before, after in itertools.pairwise(taken)]
            series.append(
                SampleSeries(
                    gpu_index=gpu,
                    metric=metric,
                    offset_microseconds=(max(0, elapsed - taken[0]), *steps)[:512],
                    values=tuple(int(value * scale) for value in values[first:last])[:512],
                )
            )
        self._taken_until = self._read_until
        return tuple(series)

    async def next_events(self) -> Sequence[ObservedEvent]:
        """Wait for the next XID of the recording."""
        return (await self._events.get(),)

    def _put(self, gpu: int, code: int) -> None:
        facts = xid_facts(code)
        self._events.put_nowait(
            ObservedEvent(
                kind=GpuEventKind.XID,
                time=self._clock.now(),
                gpu_uuid=self._recording.gpus[gpu].uuid,
                xid=code,
                severity=facts.severity,
                recommended_action=facts.action.value,
                description=facts.description,
                driver_epoch=self._epoch,
            )
        )
