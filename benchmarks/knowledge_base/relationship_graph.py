"""Ways through a graph of 10,000 concepts and 100,000 relationships, as a caller waits for them.

Each relationship joins two concepts drawn with a skew (the square of a uniform number), so some
concepts have hundreds and most have a few. Beside it lie twenty other worlds with graphs of their
own, a hundredth of the size each. Measured through the store, on the role that row-level security
binds, client and server on one machine.
"""

import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from knowledge_base.__main__ import connect
from knowledge_base.adapters.database import Database
from knowledge_base.adapters.postgres_graph import PostgresGraph
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.config import DatabaseSettings
from knowledge_base.domain.graph import (
    PathQuery,
    TieFilter,
    TraversalDirection,
    TraversalQuery,
)
from knowledge_base.domain.story_time import NOW, Layer
from knowledge_base.testing import SERVICE_ROLE, service_url
from localsuite.postgres import EmbeddedPostgres
from servicekit.settings import load_settings

CONCEPTS, RELATIONSHIPS, OTHER_WORLDS = 10_000, 100_000, 20
SMALLER = 100
CALLS = 20
# Every answer comes well within the five seconds that a statement may take.
MAXIMUM_P95_SECONDS = 2.5
RECORDED = datetime(2026, 1, 1, tzinfo=UTC)


async def fill(connection: asyncpg.Connection, concepts: int, ties: int, seed: int) -> uuid.UUID:
    """Writes a world with a graph, as the owner; returns its id."""
    world, rng = uuid.UUID(int=seed + 1), random.Random(seed)  # noqa: S311  # no secret
    await connection.execute(
        "INSERT INTO knowledge_base.worlds (world_id, name, description, create_time)"
        " VALUES ($1, $2, '', $3)",
        world,
        str(world),
        RECORDED,
    )
    ids = [uuid.UUID(int=rng.getrandbits(128)) for _ in range(concepts)]
    await connection.copy_records_to_table(
        "narrative_concepts",
        schema_name="knowledge_base",
        columns=("world_id", "concept_id", "name", "latest_version"),
        records=[(world, each, name_of(number), 1) for number, each in enumerate(ids)],
    )
    pairs: set[tuple[int, int]] = set()
    while len(pairs) < ties:
        pairs.add((int(rng.random() ** 2 * concepts), int(rng.random() ** 2 * concepts)))
    await connection.copy_records_to_table(
        "concept_relationships",
        schema_name="knowledge_base",
        columns=(
            *("world_id", "relationship_id", "from_world_id", "from_concept_id", "to_world_id"),
            *("to_concept_id", "from_name", "to_name", "kind", "strength", "record_time"),
        ),
        records=[
            (
                *(world, uuid.UUID(int=rng.getrandbits(128)), world, ids[start], world),
                *(ids[end], name_of(start), name_of(end), rng.choice(("knows", "fears"))),
                *(round(rng.random(), 3), RECORDED),
            )
            for start, end in sorted(pairs)
        ],
    )
    return world


def name_of(number: int) -> str:
    """Returns the name of a concept."""
    return f"Concept {number:05d}"


async def measure(
    name: str, call: Callable[[int], Awaitable[str]]
) -> tuple[str, float, float, float, str]:
    """Returns median, 95th percentile and largest seconds of the calls, and what one found."""
    times = []
    found = await call(0)
    for number in range(CALLS):
        started = time.perf_counter()
        found = await call(number)
        times.append(time.perf_counter() - started)
    ranked = sorted(times)
    return name, statistics.median(times), ranked[int(0.95 * CALLS) - 1], ranked[-1], found


async def run(server: EmbeddedPostgres) -> int:
    """Fills, measures, prints; returns how many limits were missed."""
    server.create_database("graph")
    owner = server.url("graph")
    await migrate_schema(owner, service_url(owner), SERVICE_ROLE)
    connection = await asyncpg.connect(owner)
    try:
        world = await fill(connection, CONCEPTS, RELATIONSHIPS, 0)
        for seed in range(1, OTHER_WORLDS + 1):
            await fill(connection, CONCEPTS // SMALLER, RELATIONSHIPS // SMALLER, seed)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    settings = load_settings(
        DatabaseSettings,
        {
            "KNOWLEDGE_BASE_DATABASE_URL": service_url(owner),
            # A call that takes too long shall be seen, not cut off.
            "KNOWLEDGE_BASE_STATEMENT_TIMEOUT_SECONDS": "60",
        },
    )
    async with connect(settings) as database:
        rows = [
            await measure(name, call) for name, call in calls_on(database, Layer(world)).items()
        ]
    print(f"{'call':<46} {'median':>9} {'p95':>9} {'largest':>9}   found")
    for name, median, p95, largest, found in rows:
        print(
            f"{name:<46} {median * 1000:6.0f} ms {p95 * 1000:6.0f} ms {largest * 1000:6.0f} ms"
            f"   {found}"
        )
    missed = [name for name, _, p95, _, _ in rows if p95 > MAXIMUM_P95_SECONDS]
    for name in missed:
        print(f"MISSED: {name}: p95 above {MAXIMUM_P95_SECONDS} s")
    return len(missed)


def calls_on(database: Database, layer: Layer) -> dict[str, Callable[[int], Awaitable[str]]]:
    """Returns what is measured, by name; each call starts from another concept."""
    graph = PostgresGraph(database)
    rng = random.Random(99)  # noqa: S311  # no secret
    names = [name_of(rng.randrange(CONCEPTS)) for _ in range(2 * CALLS)]

    def traversal(
        depth: int, concepts: int, ties: int, direction: TraversalDirection, minimum: float = 0.0
    ) -> Callable[[int], Awaitable[str]]:
        async def call(number: int) -> str:
            query = TraversalQuery(
                names[number], depth, TieFilter((), minimum, direction, NOW), concepts, ties
            )
            found = await graph.traverse(layer, query)
            return f"{len(found.concepts)} concepts, {len(found.relationships)} relationships" + (
                ", truncated" if found.truncated else ""
            )

        return call

    def path(shortest: bool) -> Callable[[int], Awaitable[str]]:
        async def call(number: int) -> str:
            found = await graph.find_path(
                layer,
                PathQuery(
                    names[number],
                    names[-1 - number],
                    6,
                    TieFilter((), 0.0, TraversalDirection.OUT, NOW),
                    shortest=shortest,
                    maximum_width=1000,
                ),
            )
            return f"{len(found.relationships)} relationships of strength {found.strength:.3f}"

        return call

    out, both = TraversalDirection.OUT, TraversalDirection.BOTH
    return {
        "depth 2, as by default (200 concepts)": traversal(2, 200, 1000, out),
        "depth 3, as by default (200 concepts)": traversal(3, 200, 1000, out),
        "depth 3, ties of at least 0.8": traversal(3, 2000, 5000, out, 0.8),
        "depth 3, largest bounds": traversal(3, 2000, 5000, out),
        "depth 3, both ways, largest bounds": traversal(3, 2000, 5000, both),
        "depth 6, both ways, largest bounds": traversal(6, 2000, 5000, both),
        "shortest path, up to 6": path(shortest=True),
        "strongest path, up to 6": path(shortest=False),
    }


def main() -> int:
    """Runs the benchmark on a server of its own."""
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-graph-"))
    server = EmbeddedPostgres(directory, durable=False)
    try:
        with server:
            return asyncio.run(run(server))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
