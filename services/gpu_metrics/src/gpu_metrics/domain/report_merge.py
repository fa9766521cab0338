"""What becomes of a report that a newer one replaces before a collector has it.

Its readings are made obsolete by the newer ones; its samples, its peaks and its processes are not.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import accumulate, pairwise

from gpu_metrics.domain.readings import GpuReading, HostReport, MissingReason
from gpu_metrics.domain.samples import SampleSeries

__all__ = ["MAXIMUM_SAMPLES", "merged"]

MAXIMUM_SAMPLES = 512
"""Samples of one figure of one GPU in a report, the protocol's limit."""

_MICROSECOND = timedelta(microseconds=1)
# Beyond it the host's clock was set between the two reports, and its monotonic clock tells instead.
_CLOCK_SET_MICROSECONDS = 1_000_000


def merged(older: HostReport, newer: HostReport) -> HostReport:
    """Return the newer report with what only the older one tells.

    Of each figure at most `MAXIMUM_SAMPLES` are kept, the newest. GPUs are told apart by their
    UUID, so the samples of one that is gone, or that another took the place of, are dropped.
    """
    if newer.leaving or newer.boot_id != older.boot_id:
        return newer
    places = {gpu.gpu_uuid: gpu.index for gpu in newer.gpus}
    moved = {gpu.index: places.get(gpu.gpu_uuid) for gpu in older.gpus}
    return newer._replace(
        gpus=_with_peaks(older.gpus, newer.gpus),
        series=_merged_series(older.series, newer.series, moved, _between(older, newer)),
        processes=newer.processes or older.processes,
    )


def _between(older: HostReport, newer: HostReport) -> int:
    """Return the microseconds from one report to the next."""
    wall = (newer.sample_time - older.sample_time) // _MICROSECOND
    if not older.monotonic_microseconds or not newer.monotonic_microseconds:
        return wall
    passed = newer.monotonic_microseconds - older.monotonic_microseconds
    # As the wall clock tells it, samples keep exactly the time they would have had.
    return wall if abs(wall - passed) < _CLOCK_SET_MICROSECONDS else passed


def _with_peaks(older: Sequence[GpuReading], newer: Sequence[GpuReading]) -> tuple[GpuReading, ...]:
    peaks = {gpu.gpu_uuid: gpu.peak_utilization_permille for gpu in older}
    merged_gpus = []
    for gpu in newer:
        before, now = peaks.get(gpu.gpu_uuid), gpu.peak_utilization_permille
        if isinstance(before, int) and (isinstance(now, MissingReason) or before > now):
            gpu = replace(gpu, peak_utilization_permille=before)  # noqa: PLW2901  # the same GPU
        merged_gpus.append(gpu)
    return tuple(merged_gpus)


def _merged_series(
    older: Sequence[SampleSeries],
    newer: Sequence[SampleSeries],
    moved: dict[int, int | None],
    between_microseconds: int,
) -> tuple[SampleSeries, ...]:
    found = {(series.gpu_index, series.metric): series for series in newer}
    for series in older:
        place = moved.get(series.gpu_index)
        if place is None or not series.values:
            continue
        # Positions in time, in microseconds from the newer report on, negative before it.
        times = _times(series, -between_microseconds)
        values = list(series.values)
        following = found.get((place, series.metric))
        if following is not None and following.values:
            times += _times(following, 0)
            values += following.values
        in_order = sorted(zip(times, values, strict=True))[-MAXIMUM_SAMPLES:]
        merged_series = _series(place, series, in_order)
        if merged_series is not None:
            found[place, series.metric] = merged_series
    return tuple(found.values())


def _times(series: SampleSeries, end: int) -> list[int]:
    offsets = series.offset_microseconds
    return list(accumulate(offsets[1:], initial=end - offsets[0]))


def _series(
    gpu_index: int, like: SampleSeries, in_order: Sequence[tuple[int, int]]
) -> SampleSeries | None:
    # After the clock was set back a sample may seem to lie ahead; the protocol knows none such.
    past = [(time, value) for time, value in in_order if time <= 0]
    if not past:
        return None
    times = [time for time, _ in past]
    steps = (after - before for before, after in pairwise(times))
    return SampleSeries(
        gpu_index=gpu_index,
        metric=like.metric,
        offset_microseconds=(-times[0], *steps),
        values=tuple(value for _, value in past),
    )
