"""Starts the knowledge base.

python -m knowledge_base                 serves; first migrates, if the owner's address is set
python -m knowledge_base migrate         brings the database to this version, then ends
python -m knowledge_base prepare-model   writes the embedding model's graph, then ends
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

from gaming.events.events_pb2 import GameEvent
from knowledge_base.adapters.bus_events import bus_event
from knowledge_base.adapters.database import Database, UnsafeDatabaseError, open_database
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.adapters.postgres_concepts import PostgresConcepts
from knowledge_base.adapters.postgres_facts import PostgresFacts
from knowledge_base.adapters.postgres_graph import PostgresGraph
from knowledge_base.adapters.postgres_lore import PostgresLore
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.adapters.postgres_subscriptions import PostgresSubscriptions
from knowledge_base.adapters.schema import SCHEMA, migrate_schema
from knowledge_base.concepts import ConceptBook
from knowledge_base.config import (
    DatabaseSettings,
    EmbeddingSettings,
    KnowledgeBaseSettings,
    MigrationSettings,
    ModelSettings,
    NarrationSettings,
    RankingSettings,
)
from knowledge_base.embedding_cache import EmbeddingCache
from knowledge_base.facts import FactBook
from knowledge_base.graph import ConceptGraph
from knowledge_base.ingest import LoreIngest
from knowledge_base.memory import WorldMemory
from knowledge_base.ports import Embedder
from knowledge_base.search import LoreSearch
from knowledge_base.servicer import KnowledgeBaseServicer
from knowledge_base.subscriptions import BusListener, Subscriptions
from messaging.consumer import Handler
from messaging.service_bus import (
    keep_running,
    open_consumer,
    open_publisher,
    say_what_is_joined,
)
from messaging.store_tasks import store_tasks
from servicekit.clock import Clock
from servicekit.runtime import ServiceRuntime, run_service
from servicekit.settings import SettingsError

_USAGE = 2
# Enough for the relay, the clean-up and a few events at once; the rest of them wait their turn.
_BUS_CONNECTIONS = 6


async def serve(settings: KnowledgeBaseSettings, runtime: ServiceRuntime) -> None:
    """Serves until a signal comes."""
    stored = settings.database
    if stored.migration_database_url is not None:
        await migrate_schema(
            stored.migration_database_url, stored.database_url, stored.service_role
        )
    async with AsyncExitStack() as stack:
        embedder = EmbeddingCache(
            await stack.enter_async_context(await _open_embedder(settings.embedding)),
            settings.embedding.query_cache_size,
        )
        database = await stack.enter_async_context(connect(stored))
        servicer, memory = compose(
            database,
            embedder,
            runtime.clock,
            stored,
            settings.ranking,
            announces=settings.messaging.publishes,
        )
        await runtime.serve(
            [servicer.registration()],
            settings.server,
            memory.forget_requests,
            partial(_run_bus, settings, runtime, embedder),
        )


def compose(
    database: Database,
    embedder: Embedder,
    clock: Clock,
    stored: DatabaseSettings,
    ranking: RankingSettings,
    *,
    announces: bool,
) -> tuple[KnowledgeBaseServicer, WorldMemory]:
    """Returns the service on a database and an embedder, and the part that has a task to run.

    `announces` says whether recorded story events are put into the outbox.
    """
    lore = PostgresLore(database, clock, lock_wait_seconds=stored.ingest_lock_wait_seconds)
    memory = WorldMemory(
        PostgresMemory(database, announces=announces),
        embedder,
        clock,
        ranking.ranking,
        ranking.recall,
        request_retention=timedelta(hours=stored.request_retention_hours),
    )
    search = LoreSearch(
        lore, embedder, clock, ranking.ranking, stale_answer_seconds=stored.stale_answer_seconds
    )
    concepts = ConceptBook(PostgresConcepts(database), clock)
    facts = FactBook(PostgresFacts(database), clock)
    graph = ConceptGraph(PostgresGraph(database))
    ingest = LoreIngest(lore, embedder, clock)
    subscriptions = Subscriptions(PostgresSubscriptions(database), clock)
    servicer = KnowledgeBaseServicer(
        ingest,
        search,
        memory,
        concepts=concepts,
        facts=facts,
        graph=graph,
        subscriptions=subscriptions,
    )
    return servicer, memory


def compose_listener(
    database: Database,
    embedder: Embedder,
    clock: Clock,
    narration: NarrationSettings,
    *,
    announces: bool,
) -> Handler:
    """Returns what takes an event of the bus into the worlds that want it; it raises ServiceErrors.

    `announces` as for `compose`.
    """
    listener = BusListener(
        PostgresSubscriptions(database),
        PostgresMemory(database, announces=announces),
        embedder,
        clock,
        ignored_state_keys=narration.ignored_state_keys,
    )

    async def take(message: GameEvent) -> None:
        event = bus_event(message)
        if event is not None:
            await listener.take(event)

    return take


async def _run_bus(
    settings: KnowledgeBaseSettings, runtime: ServiceRuntime, embedder: Embedder
) -> None:
    """Joins the game's event bus as far as the settings name it, beside the server.

    Callers do not wait for it, and a flood of events takes no database connection from them: the
    bus has its own.
    """
    messaging = settings.messaging
    say_what_is_joined(messaging)
    if not (messaging.publishes or messaging.consumes):
        return
    clock, telemetry, rng = runtime.clock, runtime.telemetry, runtime.random
    async with AsyncExitStack() as stack:
        publisher = None
        if messaging.publishes:
            publisher = await stack.enter_async_context(
                open_publisher(messaging, clock=clock, telemetry=telemetry, random=rng)
            )
        database = await stack.enter_async_context(
            connect(replace(settings.database, pool_size=_BUS_CONNECTIONS))
        )
        tasks = store_tasks(
            database.pool,
            publisher,
            schema=SCHEMA,
            settings=settings.bus_store,
            stopping=runtime.stopping,
            clock=clock,
            rng=rng,
            telemetry=telemetry,
        )
        if messaging.consumes:
            take = compose_listener(
                database, embedder, clock, settings.narration, announces=messaging.publishes
            )
            consumer = await stack.enter_async_context(
                open_consumer(messaging, take, clock=clock, telemetry=telemetry, random=rng)
            )
            tasks += (partial(keep_running, "consumer", consumer.run, runtime.stopping, clock),)
        # Each ends by itself, in order, once the service is stopping; none of them raises.
        await asyncio.gather(*(task() for task in tasks))


async def migrate(settings: MigrationSettings, runtime: ServiceRuntime) -> None:
    """Brings the database to this version's schema."""
    await migrate_schema(
        settings.migration_database_url, settings.database_url, settings.service_role
    )


async def prepare_model(settings: ModelSettings, runtime: ServiceRuntime) -> None:
    """Writes the model's graph into the cache directory and loads it once."""
    async with await _open_embedder(settings.embedding) as embedder:
        await embedder.embed_query("ready")


async def _open_embedder(settings: EmbeddingSettings) -> OnnxEmbedder:
    return await asyncio.to_thread(
        OnnxEmbedder.from_package,
        settings.model_cache_directory.expanduser(),
        threads=settings.threads,
    )


@asynccontextmanager
async def connect(settings: DatabaseSettings) -> AsyncIterator[Database]:
    """Opens the database as the service's role.

    Raises SettingsError when the role or the schema is not right.
    """
    async with AsyncExitStack() as stack:
        try:
            pool = await stack.enter_async_context(
                open_database(
                    settings.database_url,
                    pool_size=settings.pool_size,
                    statement_timeout_seconds=settings.statement_timeout_seconds,
                )
            )
        except UnsafeDatabaseError as error:
            raise SettingsError([f"KNOWLEDGE_BASE_DATABASE_URL is wrong: {error}"]) from error
        yield Database(pool)


def main(arguments: list[str]) -> int:
    """Runs the command and returns the process's exit code."""
    match arguments:
        case []:
            return run_service("knowledge_base", KnowledgeBaseSettings, serve)
        case ["migrate"]:
            return run_service("knowledge_base-migrate", MigrationSettings, migrate)
        case ["prepare-model"]:
            return run_service("knowledge_base-prepare-model", ModelSettings, prepare_model)
    print(__doc__, file=sys.stderr)
    return 0 if arguments in (["-h"], ["--help"]) else _USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
