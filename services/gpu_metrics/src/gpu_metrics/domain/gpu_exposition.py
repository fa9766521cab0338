"""The fleet's GPUs as pages that Prometheus reads.

Two pages of the same readings: one in base units under OpenTelemetry's names, one under the names
of dcgm-exporter. A scraper takes what it reads for current, so a GPU of a silent host shows only
that it is silent and since when; a figure that is missing is absent, and why is a metric too.

Formats: OpenMetrics 1.0 (RFC draft, openmetrics.io), Prometheus text exposition 0.0.4
(prometheus.io/docs/instrumenting/exposition_formats).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gpu_metrics.domain.agent_exposition import agent_lines
from gpu_metrics.domain.aggregate import attribute_gpus
from gpu_metrics.domain.exposition_text import escaped, family, label_text
from gpu_metrics.domain.gpu_figures import GPU_FIGURES_BY_NAME, ExportedFigure, FigureKind
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.readings import GPU_FIGURES, CountReading, GpuReading, MissingReason, known
from gpu_metrics.domain.xid_catalogue import xid_facts

__all__ = ["dcgm_page", "hardware_page"]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A GPU with its host; `labels` name it in every line about it."""

    gpu: GpuReading
    state: HostState
    labels: str

    @property
    def fresh(self) -> bool:
        return self.state.freshness is Freshness.FRESH


def hardware_page(hosts: Iterable[HostState], now: float, *, openmetrics: bool) -> str:
    """Return the page in base units; `now` is of the clock that the hosts were received by."""
    hosts = tuple(hosts)
    gpus = [
        _Shown(gpu, state, label_text((("hw_id", gpu.gpu_uuid), ("host_id", state.host.host_id))))
        for state in hosts
        for gpu in state.report.gpus
    ]
    lines: list[str] = []
    fresh = [each for each in gpus if each.fresh]
    for name, figures in groupby(GPU_FIGURES_BY_NAME, key=lambda figure: figure.name):
        lines += _figure_lines(name, list(figures), fresh, openmetrics=openmetrics)
    lines += family(
        "hw_gpu_fresh", "gauge", "", "1 when the figures are current.", openmetrics=openmetrics
    )
    lines += [f"hw_gpu_fresh{{{each.labels}}} {int(each.fresh)}" for each in gpus]
    lines += family(
        "hw_gpu_reading_age_seconds",
        "gauge",
        "seconds",
        "Time since the host's last report.",
        openmetrics=openmetrics,
    )
    lines += [
        f"hw_gpu_reading_age_seconds{{{each.labels}}} {max(0.0, now - each.state.received_at):.3f}"
        for each in gpus
    ]
    lines += family(
        "hw_gpu_missing_readings",
        "gauge",
        "",
        "Figures that should be there and are not, by reason.",
        openmetrics=openmetrics,
    )
    lines += _missing_lines(fresh)
    lines += _info_lines(hosts_gpus=gpus, openmetrics=openmetrics)
    lines += agent_lines(hosts, openmetrics=openmetrics)
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _figure_lines(
    name: str, figures: Sequence[ExportedFigure], gpus: Sequence[_Shown], *, openmetrics: bool
) -> Iterator[str]:
    first = figures[0]
    base = name.replace(".", "_") + (f"_{first.unit.word}" if first.unit.word else "")
    series = f"{base}_total" if first.kind is FigureKind.COUNTER else base
    yield from family(base, first.kind.value, first.unit.word, first.help, openmetrics=openmetrics)
    for figure in figures:
        key = figure.attribute
        more = f",{label_text(((key[0].replace('.', '_'), key[1]),))}" if key else ""
        value_of = figure.value
        for each in gpus:
            value = value_of(each.gpu)
            if value is not None:
                # Counters and bytes are whole or exact in a float's 15 digits.
                yield f"{series}{{{each.labels}{more}}} {value:.15g}"


def _missing_lines(gpus: Sequence[_Shown]) -> Iterator[str]:
    for each in gpus:
        readings = (getattr(each.gpu, name) for name in GPU_FIGURES)
        reasons = Counter(
            reading
            for reading in readings
            if isinstance(reading, MissingReason)
            and reading not in (MissingReason.NOT_TOLD, MissingReason.UNSUPPORTED)
        )
        for reason, count in sorted(reasons.items(), key=lambda item: item[0].value):
            yield (
                f'hw_gpu_missing_readings{{{each.labels},reason="{reason.name.lower()}"}} {count}'
            )


def _info_lines(*, hosts_gpus: Sequence[_Shown], openmetrics: bool) -> Iterator[str]:
    name = "hw_gpu" if openmetrics else "hw_gpu_info"
    yield from family(
        name, "info", "", "What the GPU is and whom it serves.", openmetrics=openmetrics
    )
    for state, gpus in groupby(hosts_gpus, key=lambda each: each.state):
        serves = attribute_gpus(state.report)
        tier_of = {gpu.gpu_uuid: tier for tier, served in serves.items() for gpu in served}
        for each in gpus:
            gpu = each.gpu
            tier = tier_of.get(gpu.gpu_uuid)
            told = (
                ("hw_model", gpu.product_name),
                ("hw_driver_version", state.host.driver_version),
                ("gpu_index", str(gpu.index)),
                ("tier", tier.name.lower() if tier else ""),
                ("instance_type", state.host.instance_type),
                ("availability_zone", state.host.availability_zone),
                ("simulated", "true" if state.host.simulated else ""),
            )
            # An empty label is the same as none.
            more = label_text([(key, value) for key, value in told if value])
            yield f'hw_gpu_info{{{each.labels},hw_type="gpu",{more}}} 1'


# --- dcgm-exporter's names ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _DcgmField:
    name: str
    kind: str
    help: str
    value: Callable[[GpuReading], float | None]


def _scaled(reading: CountReading, divisor: int) -> float | None:
    figure = known(reading)
    return None if figure is None else figure / divisor


def _free_mebibytes(gpu: GpuReading) -> float | None:
    used, total = known(gpu.memory_used_bytes), known(gpu.memory_total_bytes)
    return None if used is None or total is None else max(0, total - used) // 2**20


def _used_mebibytes(gpu: GpuReading) -> float | None:
    used = known(gpu.memory_used_bytes)
    return None if used is None else used // 2**20


_DCGM_FIELDS = (
    _DcgmField(
        "SM_CLOCK", "gauge", "SM clock (in MHz).", lambda gpu: known(gpu.sm_clock_megahertz)
    ),
    _DcgmField(
        "MEM_CLOCK",
        "gauge",
        "Memory clock (in MHz).",
        lambda gpu: known(gpu.memory_clock_megahertz),
    ),
    _DcgmField(
        "MEMORY_TEMP",
        "gauge",
        "Memory temperature (in C).",
        lambda gpu: known(gpu.memory_temperature_celsius),
    ),
    _DcgmField(
        "GPU_TEMP", "gauge", "GPU temperature (in C).", lambda gpu: known(gpu.temperature_celsius)
    ),
    _DcgmField(
        "POWER_USAGE",
        "gauge",
        "Power draw (in W).",
        lambda gpu: _scaled(gpu.power_milliwatts, 1000),
    ),
    _DcgmField(
        "POWER_MGMT_LIMIT",
        "gauge",
        "Power limit (in W).",
        lambda gpu: _scaled(gpu.power_limit_milliwatts, 1000),
    ),
    _DcgmField(
        "TOTAL_ENERGY_CONSUMPTION",
        "counter",
        "Energy since the driver was loaded (in mJ).",
        lambda gpu: known(gpu.energy_millijoules),
    ),
    _DcgmField(
        "PCIE_REPLAY_COUNTER",
        "counter",
        "PCIe transfers that were repeated.",
        lambda gpu: known(gpu.pcie_replays_total),
    ),
    _DcgmField(
        "GPU_UTIL",
        "gauge",
        "GPU utilization (in %).",
        lambda gpu: _scaled(gpu.utilization_permille, 10),
    ),
    _DcgmField(
        "MEM_COPY_UTIL",
        "gauge",
        "Memory utilization (in %).",
        lambda gpu: _scaled(gpu.memory_utilization_permille, 10),
    ),
    _DcgmField("FB_FREE", "gauge", "Free memory (in MiB).", _free_mebibytes),
    _DcgmField("FB_USED", "gauge", "Memory in use (in MiB).", _used_mebibytes),
    _DcgmField(
        "ECC_SBE_VOL_TOTAL",
        "counter",
        "Corrected memory errors since the driver was loaded.",
        lambda gpu: known(gpu.ecc_corrected_total),
    ),
    _DcgmField(
        "ECC_DBE_VOL_TOTAL",
        "counter",
        "Uncorrected memory errors since the driver was loaded.",
        lambda gpu: known(gpu.ecc_uncorrected_total),
    ),
    _DcgmField(
        "CLOCK_THROTTLE_REASONS",
        "gauge",
        "Why clocks are held back, as the driver's bits.",
        lambda gpu: known(gpu.clock_event_reasons),
    ),
)
"""Names, types and units as in dcgm-exporter's default collectors (NVIDIA DCGM Exporter Metrics,
docs.nvidia.com/datacenter/dcgm/latest/reference/dcgm-exporter-metrics.html, read November 2026)."""


def dcgm_page(hosts: Iterable[HostState], last_xid: Callable[[str, str], int]) -> str:
    """Return the page under dcgm-exporter's names and labels; fresh hosts only.

    `last_xid` gives the code of a host's GPU, 0 for none. A host without a journal tells of no XID,
    so it has no figure of them.
    """
    gpus = [
        _Shown(
            gpu,
            state,
            label_text(
                (
                    ("gpu", str(gpu.index)),
                    ("UUID", gpu.gpu_uuid),
                    ("pci_bus_id", gpu.pci_bus_id),
                    ("device", f"nvidia{gpu.index}"),
                    ("modelName", gpu.product_name),
                    ("Hostname", state.host.host_id),
                    ("DCGM_FI_DRIVER_VERSION", state.host.driver_version),
                )
            ),
        )
        for state in hosts
        if state.freshness is Freshness.FRESH
        for gpu in state.report.gpus
    ]
    lines: list[str] = []
    for field in _DCGM_FIELDS:
        name, value_of = f"DCGM_FI_DEV_{field.name}", field.value
        lines += (f"# HELP {name} {field.help}", f"# TYPE {name} {field.kind}")
        for each in gpus:
            value = value_of(each.gpu)
            if value is not None:
                lines.append(f"{name}{{{each.labels}}} {value:.15g}")
    lines += _xid_lines(gpus, last_xid)
    return "\n".join(lines) + "\n"


def _xid_lines(gpus: Sequence[_Shown], last_xid: Callable[[str, str], int]) -> Iterator[str]:
    """Yield the last code of each GPU; a gauge, as dcgm-exporter has it."""
    name = "DCGM_FI_DEV_XID_ERRORS"
    yield f"# HELP {name} Value of the last XID error encountered."
    yield f"# TYPE {name} gauge"
    for each in gpus:
        if each.state.report.journal_id:
            code = last_xid(each.state.host.host_id, each.gpu.gpu_uuid)
            text = xid_facts(code).description if code else "No Error"
            yield f'{name}{{{each.labels},err_code="{code}",err_msg="{escaped(text)}"}} {code}'
