"""The memory of a collector's view and history has a stated bound."""

import gc
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gpu_metrics import wire
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.history import History
from gpu_metrics.domain.history_ring import HistoryLengths
from gpu_metrics.domain.readings import GpuReading, Host, HostReport

HOSTS = 1000
GPUS = 8
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HISTORY_BYTES = 40_000_000
# What the view itself holds of a GPU: its last reading as a message, and its place in the history.
VIEW_BYTES_PER_GPU = 5_000


def resident_bytes() -> int:
    """Return the memory of this process; messages are kept outside of Python's own count."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def message_of(host: int, turn: int) -> bytes:
    report = HostReport(
        host=Host(host_id=f"i-{host:017x}"),
        boot_id="boot",
        sequence=turn + 1,
        sample_time=NOW + timedelta(seconds=turn),
        monotonic_microseconds=10**12 + turn * 10**6,
        gpus=tuple(
            GpuReading(
                gpu_uuid=f"GPU-{host:08x}-0000-4000-8000-{index:012x}",
                index=index,
                utilization_permille=500,
                memory_used_bytes=2**34,
                power_milliwatts=200_000,
                temperature_celsius=60,
                sm_clock_megahertz=1700,
            )
            for index in range(GPUS)
        ),
    )
    return wire.report_message(report).SerializeToString()


@pytest.mark.endurance
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells it in /proc")
def test_a_thousand_hosts_of_eight_gpus_stay_below_the_stated_bound() -> None:
    before = resident_bytes()
    history = History(HistoryLengths(), maximum_bytes=HISTORY_BYTES, started=int(NOW.timestamp()))
    view = FleetView(FleetPolicy(maximum_hosts=HOSTS), history)
    for turn in (0, 1, 2, 31, 91):
        for host in range(HOSTS):
            message = gpu_metrics_pb2.StreamReportsRequest.FromString(message_of(host, turn))
            time = NOW + timedelta(seconds=turn)
            view.apply(wire.lazy_report_from_message(message), float(turn), time)
    for gpu in list(history.gpus()):
        history.fold(gpu)
    grown = resident_bytes() - before
    print(f"{grown / 1e6:.0f} MB, {history.bytes_held / 1e6:.1f} MB of it history")
    assert len(view.hosts(91.0)) == HOSTS
    assert history.bytes_held <= HISTORY_BYTES
    # Most of so many have no history in so little memory, and that is said.
    assert history.refused_samples > 0
    assert grown <= HISTORY_BYTES + HOSTS * GPUS * VIEW_BYTES_PER_GPU
