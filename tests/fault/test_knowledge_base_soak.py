"""Two minutes of steady load leave the knowledge base as they found it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from knowledge_base_soak import soak

pytestmark = [pytest.mark.endurance, pytest.mark.timeout(300)]

MOST_GROWTH_MEBIBYTES = 5.0
# The service's five sessions hold 26 MiB together, once each has its plans, and gain half a MiB in
# the last third. There may be a sixth one then, which takes as much as another.
MOST_DATABASE_GROWTH_MEBIBYTES = 8.0
# Worlds grow meanwhile, and the machine may be busy with something else in one of the thirds.
MOST_SLOWDOWN, SLOWDOWN_GRACE_MILLISECONDS = 1.5, 5.0


async def test_memory_connections_and_latency_stay_flat_under_steady_load(
    record_property: Callable[[str, object], None],
) -> None:
    found = await soak(seconds=120, calls_per_second=15, window_seconds=10)
    memory = found.thirds(lambda window: window.resident_mebibytes)
    database = found.thirds(lambda window: window.database_mebibytes)
    connections = found.thirds(lambda window: window.connections)
    latency = found.thirds(lambda window: window.p50_milliseconds)
    figures = {
        "MiB": memory,
        "MiB in the database": database,
        "connections": connections,
        "P50 ms": latency,
    }
    record_property("figures", figures)
    print(figures)
    assert not found.failures
    assert memory[1] - memory[0] < MOST_GROWTH_MEBIBYTES
    assert database[1] > 0
    assert database[1] - database[0] < MOST_DATABASE_GROWTH_MEBIBYTES
    assert connections[1] <= connections[0] + 1
    assert latency[1] <= latency[0] * MOST_SLOWDOWN + SLOWDOWN_GRACE_MILLISECONDS
