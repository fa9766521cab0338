"""What agents cost their hosts and had to give up, as metrics that Prometheus reads."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gpu_metrics.domain.exposition_text import family, label_text
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.samples import AgentCost

__all__ = ["agent_lines"]


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    kind: str
    unit: str
    help: str
    value: Callable[[AgentCost], float]


_FIGURES = (
    _Figure(
        "gpu_agent_cpu_seconds",
        "counter",
        "seconds",
        "Processor time of the host's agent, the driver's share included.",
        lambda cost: cost.cpu_seconds,
    ),
    _Figure(
        "gpu_agent_driver_seconds",
        "counter",
        "seconds",
        "Time that the host's agent waited in the GPU driver.",
        lambda cost: cost.driver_seconds,
    ),
    _Figure(
        "gpu_agent_driver_calls",
        "counter",
        "",
        "Calls of the host's agent into the GPU driver.",
        lambda cost: cost.driver_calls,
    ),
    _Figure(
        "gpu_agent_memory_bytes",
        "gauge",
        "bytes",
        "Resident memory of the host's agent.",
        lambda cost: cost.resident_bytes,
    ),
    _Figure(
        "gpu_agent_lost_events",
        "counter",
        "",
        "Events that the host's journal had to give up before any collector had them.",
        lambda cost: cost.lost_events,
    ),
    _Figure(
        "gpu_agent_replaced_reports",
        "counter",
        "",
        "Reports that a newer one replaced before they could be sent.",
        lambda cost: cost.replaced_reports,
    ),
)
"""All count from the agent's start, so a counter that falls is another run of it."""


def agent_lines(hosts: Iterable[HostState], *, openmetrics: bool) -> Iterator[str]:
    """Yield the metrics of the agents that told their cost; of fresh hosts only."""
    told = [
        (label_text((("host_id", state.host.host_id),)), state.cost)
        for state in hosts
        if state.cost is not None and state.freshness is Freshness.FRESH
    ]
    for figure in _FIGURES:
        series = f"{figure.name}_total" if figure.kind == "counter" else figure.name
        yield from family(
            figure.name, figure.kind, figure.unit, figure.help, openmetrics=openmetrics
        )
        for labels, cost in told:
            yield f"{series}{{{labels}}} {figure.value(cost):.15g}"
