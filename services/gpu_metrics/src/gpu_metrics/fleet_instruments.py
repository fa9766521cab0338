"""The fleet's GPUs as OpenTelemetry instruments, exported over OTLP with the service's own.

The exporter reads instruments in a thread of its own, so it gets the hosts as they were at the
last look and never the view. A stale host and a missing figure give no data point.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from opentelemetry.metrics import CallbackOptions, Observation

from gpu_metrics.domain.gpu_figures import GPU_FIGURES_BY_NAME, ExportedFigure, FigureKind
from gpu_metrics.domain.host_state import Freshness, HostState
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["FleetInstruments"]


class FleetInstruments:
    """Registers one instrument for each figure's name; costs nothing when nothing is exported."""

    def __init__(
        self,
        hosts: Callable[[], Sequence[HostState]],
        *,
        clock: Clock,
        telemetry: Telemetry,
        look_seconds: float = 5.0,
    ) -> None:
        self._hosts = hosts
        self._clock = clock
        self._look_seconds = look_seconds
        self._seen: tuple[HostState, ...] = ()
        for name, figures in groupby(GPU_FIGURES_BY_NAME, key=lambda figure: figure.name):
            self._register(name, tuple(figures), telemetry)

    def _register(self, name: str, figures: Sequence[ExportedFigure], telemetry: Telemetry) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return list(self._observations(figures))

        first, meter = figures[0], telemetry.meter
        counts = first.kind is FigureKind.COUNTER
        create = meter.create_observable_counter if counts else meter.create_observable_gauge
        create(name, callbacks=[observe], unit=first.unit.ucum, description=first.help)

    def _observations(self, figures: Sequence[ExportedFigure]) -> Iterable[Observation]:
        for state in self._seen:
            if state.freshness is not Freshness.FRESH:
                continue
            host_id = state.host.host_id
            for gpu in state.report.gpus:
                attributes = {"hw.id": gpu.gpu_uuid, "hw.type": "gpu", "host.id": host_id}
                if gpu.product_name:
                    attributes["hw.model"] = gpu.product_name
                for figure in figures:
                    value = figure.value(gpu)
                    if value is not None:
                        key = figure.attribute
                        yield Observation(
                            value, {**attributes, key[0]: key[1]} if key else attributes
                        )

    async def look(self) -> None:
        """Take the hosts as they are from time to time, until cancelled."""
        while True:
            self._seen = tuple(self._hosts())
            await self._clock.sleep(self._look_seconds)
