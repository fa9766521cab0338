"""What NVML would read on the GPU of a simulated host, from the model server's state and time.

Pure: a reading follows from the server's counters, the cold start and the reading before it
(utilisation and temperature are averages over time in reality too).

Sources and assumptions: board limits and clocks are NVIDIA's for A10G (300 W, 1,710 MHz boost,
6,251 MHz memory) and L4 (72 W, 2,040 MHz, 6,251 MHz). Decoding is memory bound and draws about
65 % of the limit, prefill 95 %, idle 20 W / 12 W. Utilisation counts the time in which any kernel
ran, so one lone request already reads about 87 % (a step spends 1.2 ms on the host): that is the
well-known trap, reproduced on purpose. vLLM allocates 90 % of memory when it starts, whatever the
load. Temperature follows power with a time constant of 40 s at 0.16 K/W (A10G) over 30 degrees.
"""

import math
from dataclasses import dataclass

from fleetsim.cold_start import ColdStart, ColdStartPhase
from fleetsim.model_server import ModelServer

__all__ = ["GPU_SPECS", "GpuReading", "GpuSpec", "read_gpu"]

_GIB = 1 << 30
_HOST_SECONDS_PER_STEP = 0.0012
_AMBIENT_CELSIUS = 30.0
_THERMAL_SECONDS = 40.0
_DRIVER_RESERVED_BYTES = 450 << 20
_VLLM_MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Limits of one GPU model."""

    name: str
    memory_bytes: int
    power_limit_watts: float
    idle_watts: float
    boost_clock_mhz: int
    memory_clock_mhz: int
    kelvin_per_watt: float


GPU_SPECS: dict[str, GpuSpec] = {
    "g5.xlarge": GpuSpec("NVIDIA A10G", 23028 << 20, 300.0, 20.0, 1710, 6251, 0.16),
    "g5.2xlarge": GpuSpec("NVIDIA A10G", 23028 << 20, 300.0, 20.0, 1710, 6251, 0.16),
    "g6.xlarge": GpuSpec("NVIDIA L4", 23034 << 20, 72.0, 12.0, 2040, 6251, 0.6),
}
"""The GPU of each instance type that has one."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One sample. `energy_millijoules` counts since the host booted, as NVML's counter does.

    `busy_seconds_total` is the server's counter behind `utilization_ratio`, kept so that the next
    reading can average over the time between.
    """

    time: float
    name: str
    uuid: str
    utilization_ratio: float
    memory_utilization_ratio: float
    memory_used_bytes: int
    memory_total_bytes: int
    power_watts: float
    power_limit_watts: float
    temperature_celsius: float
    sm_clock_mhz: int
    memory_clock_mhz: int
    energy_millijoules: int
    busy_seconds_total: float


def read_gpu(
    spec: GpuSpec,
    server: ModelServer,
    cold_start: ColdStart,
    now: float,
    *,
    previous: GpuReading | None = None,
) -> GpuReading:
    """Return the reading at `now`. The server must have been settled at `now`."""
    load = server.load(now)
    phase, done = cold_start.phase_at(now)
    busy = server.busy_seconds_total
    prefill = server.prefill_seconds_total
    decode_watts = 0.65 * spec.power_limit_watts - spec.idle_watts
    prefill_watts = 0.95 * spec.power_limit_watts - spec.idle_watts
    joules = (
        spec.idle_watts * max(0.0, now - cold_start.booted_time)
        + decode_watts * (busy - prefill)
        + prefill_watts * prefill
    )
    kernel_share = max(0.0, 1.0 - _HOST_SECONDS_PER_STEP / load.step_seconds)
    elapsed = 0.0 if previous is None else now - previous.time
    if previous is None or elapsed <= 0.0:
        busy_share = 1.0 if load.running else 0.0
        active_watts = prefill_watts if load.is_prefilling else decode_watts
        power = spec.idle_watts + active_watts * busy_share
        temperature = _AMBIENT_CELSIUS + spec.kelvin_per_watt * spec.idle_watts
    else:
        busy_share = min(1.0, max(0.0, (busy - previous.busy_seconds_total) / elapsed))
        power = (joules - previous.energy_millijoules / 1000.0) / elapsed
        target = _AMBIENT_CELSIUS + spec.kelvin_per_watt * power
        approach = 1.0 - math.exp(-elapsed / _THERMAL_SECONDS)
        temperature = previous.temperature_celsius
        temperature += (target - temperature) * approach
    active = busy_share > 0.0 or phase is ColdStartPhase.WARMING_UP
    return GpuReading(
        time=now,
        name=spec.name,
        uuid=_uuid(server.server_id),
        utilization_ratio=busy_share * kernel_share,
        memory_utilization_ratio=busy_share * kernel_share * 0.8,
        memory_used_bytes=_memory_used(spec, server.profile.weights_gb, phase, done),
        memory_total_bytes=spec.memory_bytes,
        power_watts=min(spec.power_limit_watts, max(spec.idle_watts * 0.9, power)),
        power_limit_watts=spec.power_limit_watts,
        temperature_celsius=temperature,
        sm_clock_mhz=spec.boost_clock_mhz if active else 210,
        memory_clock_mhz=spec.memory_clock_mhz if active else 405,
        energy_millijoules=round(joules * 1000),
        busy_seconds_total=busy,
    )


def _memory_used(spec: GpuSpec, weights_gb: float, phase: ColdStartPhase, done: float) -> int:
    if phase is ColdStartPhase.READY:
        return round(spec.memory_bytes * _VLLM_MEMORY_SHARE) + _DRIVER_RESERVED_BYTES
    weights = weights_gb * 1e9
    if phase is ColdStartPhase.LOADING_WEIGHTS:
        return _DRIVER_RESERVED_BYTES + round(weights * done)
    if phase is ColdStartPhase.WARMING_UP:
        return _DRIVER_RESERVED_BYTES + round(weights) + _GIB
    return _DRIVER_RESERVED_BYTES


def _uuid(server_id: str) -> str:
    """Return a stable GPU UUID in NVML's form, derived from the server's id."""
    digits = "".join(c for c in server_id.lower() if c in "0123456789abcdef").rjust(32, "0")[-32:]
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
