"""Two minutes of steady load leave the knowledge base as they found it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from knowledge_base_soak import soak

pytestmark = [pytest.mark.endurance, pytest.mark.timeout(300)]

MOST_GROWTH_MEBIBYTES = 5.0


async def test_memory_and_connections_stay_flat_under_steady_load(
    record_property: Callable[[str, object], None],
) -> None:
    found = await soak(seconds=120, calls_per_second=15, window_seconds=10)
    memory = found.thirds(lambda window: window.resident_mebibytes)
    connections = found.thirds(lambda window: window.connections)
    latency = found.thirds(lambda window: window.p50_milliseconds)
    figures = {"MiB": memory, "connections": connections, "P50 ms": latency}
    record_property("figures", figures)
    print(figures)
    assert not found.failures
    assert memory[1] - memory[0] < MOST_GROWTH_MEBIBYTES
    assert connections[1] <= connections[0] + 1
