"""Starts the knowledge base.

python -m knowledge_base                 serves; first migrates, if the owner's address is set
python -m knowledge_base migrate         brings the database to this version, then ends
python -m knowledge_base prepare-model   writes the embedding model's graphs, then ends
"""

if __name__ == "__main__":
    # Before all other imports, which it makes cheaper.
    from servicekit.process_start import begin

    begin()

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from random import Random

from gaming.events.events_pb2 import GameEvent
from knowledge_base.adapters.bus_events import bus_event
from knowledge_base.adapters.database import Database, UnsafeDatabaseError, open_database
from knowledge_base.adapters.late_interaction import LateInteraction
from knowledge_base.adapters.minilm_weights import ModelFilesError
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.adapters.postgres_concepts import PostgresConcepts
from knowledge_base.adapters.postgres_context import PostgresContextConcepts
from knowledge_base.adapters.postgres_embedding_models import PostgresEmbeddingModels
from knowledge_base.adapters.postgres_facts import PostgresFacts
from knowledge_base.adapters.postgres_graph import PostgresGraph
from knowledge_base.adapters.postgres_lore import PostgresLore
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.adapters.postgres_subscriptions import PostgresSubscriptions
from knowledge_base.adapters.schema import SCHEMA, migrate_schema
from knowledge_base.adapters.wordpiece_counter import WordpieceCounter
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
from knowledge_base.context import ContextBuilder
from knowledge_base.declarations import ConceptDeclarations
from knowledge_base.domain.embedding_models import LOCAL_DIMENSIONS, LOCAL_MODEL, titan_name
from knowledge_base.domain.late_interaction import COARSE
from knowledge_base.domain.token_count import ByteTokenCounter
from knowledge_base.embedding_change import EmbeddingChange
from knowledge_base.embedding_models import EmbeddingModels, OfferedModel
from knowledge_base.facts import FactBook
from knowledge_base.graph import ConceptGraph
from knowledge_base.ingest import LoreIngest
from knowledge_base.memory import WorldMemory
from knowledge_base.ports import Embedder
from knowledge_base.ports_context import TokenCounter
from knowledge_base.ports_reranker import NO_RERANKERS, Rerankers
from knowledge_base.search import LoreSearch
from knowledge_base.servicer import KnowledgeBaseServicer
from knowledge_base.subscriptions import BusListener, Subscriptions
from knowledge_base.whole_worlds import WholeWorlds, open_whole_worlds
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

LendModel = Callable[[], Awaitable[OnnxEmbedder]]


async def serve(settings: KnowledgeBaseSettings, runtime: ServiceRuntime) -> None:
    """Serves until a signal comes."""
    stored = settings.database
    if stored.migration_database_url is not None:
        await migrate_schema(
            stored.migration_database_url, stored.database_url, stored.service_role
        )
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(connect(stored))
        lend_model = await stack.enter_async_context(shared_model(settings.embedding))
        models = await stack.enter_async_context(
            EmbeddingModels(
                offered_models(settings.embedding, lend_model, runtime.clock, runtime.random),
                PostgresEmbeddingModels(database),
                runtime.clock,
                query_cache_size=settings.embedding.query_cache_size,
            )
        )
        await models.open()
        worlds = await stack.enter_async_context(
            open_whole_worlds(connect, stored, models, runtime.clock)
        )
        rerankers = await _rerankers(settings.embedding, lend_model)
        servicer, memory, change = compose(
            database,
            models,
            runtime.clock,
            stored,
            settings.ranking,
            announces=settings.messaging.publishes,
            filled_rows_per_second=settings.embedding.filled_rows_per_second,
            worlds=worlds,
            token_counter=await asyncio.to_thread(_token_counter),
            rerankers=rerankers,
        )
        await runtime.serve(
            [servicer.registration()],
            settings.server,
            memory.forget_requests,
            change.fill,
            *worlds.tasks,
            partial(worlds.close_watches, runtime.stopping),
            partial(_run_bus, settings, runtime, models, rerankers),
        )


def compose(
    database: Database,
    models: EmbeddingModels,
    clock: Clock,
    stored: DatabaseSettings,
    ranking: RankingSettings,
    *,
    announces: bool,
    filled_rows_per_second: float,
    worlds: WholeWorlds,
    token_counter: TokenCounter | None = None,
    rerankers: Rerankers = NO_RERANKERS,
) -> tuple[KnowledgeBaseServicer, WorldMemory, EmbeddingChange]:
    """Returns the service on a database and its models, and the parts that have a task to run.

    `announces` says whether recorded story events are put into the outbox. Without `token_counter`
    tokens are counted by bytes.
    """
    lore = PostgresLore(database, clock, lock_wait_seconds=stored.ingest_lock_wait_seconds)
    memory = WorldMemory(
        PostgresMemory(database, announces=announces),
        models,
        clock,
        ranking.ranking,
        ranking.recall,
        request_retention=timedelta(hours=stored.request_retention_hours),
        reranker=rerankers.memory,
    )
    search = LoreSearch(
        lore,
        models,
        clock,
        ranking.ranking,
        stale_answer_seconds=stored.stale_answer_seconds,
        reranker=rerankers.lore,
    )
    worlds.forgetful.extend((models, search))
    if rerankers.memory is not None:
        worlds.forgetful.append(rerankers.memory)
    concepts = ConceptBook(PostgresConcepts(database), clock)
    facts = FactBook(PostgresFacts(database), clock)
    graph = ConceptGraph(PostgresGraph(database))
    ingest = LoreIngest(lore, models, ConceptDeclarations(concepts), clock, reranker=rerankers.lore)
    subscriptions = Subscriptions(PostgresSubscriptions(database), clock)
    change = EmbeddingChange(
        PostgresEmbeddingModels(database), models, clock, rows_per_second=filled_rows_per_second
    )
    servicer = KnowledgeBaseServicer(
        ingest=ingest,
        search=search,
        memory=memory,
        concepts=concepts,
        facts=facts,
        graph=graph,
        subscriptions=subscriptions,
        models=models,
        embedding_change=change,
        worlds=worlds,
        context=ContextBuilder(
            search, memory, PostgresContextConcepts(database), token_counter or ByteTokenCounter()
        ),
    )
    return servicer, memory, change


def _token_counter() -> TokenCounter:
    """Returns the local model's tokenizer; where that is not installed, a count by bytes."""
    try:
        return WordpieceCounter.from_package()
    except ModelFilesError:
        return ByteTokenCounter()


def compose_listener(
    database: Database,
    models: EmbeddingModels,
    clock: Clock,
    narration: NarrationSettings,
    *,
    announces: bool,
    rerankers: Rerankers = NO_RERANKERS,
) -> Handler:
    """Returns what takes an event of the bus into the worlds that want it; it raises ServiceErrors.

    `announces` as for `compose`.
    """
    listener = BusListener(
        PostgresSubscriptions(database),
        PostgresMemory(database, announces=announces),
        models,
        clock,
        ignored_state_keys=narration.ignored_state_keys,
        reranker=rerankers.memory,
    )

    async def take(message: GameEvent) -> None:
        event = bus_event(message)
        if event is not None:
            await models.with_one_model(partial(listener.take, event))

    return take


async def _run_bus(
    settings: KnowledgeBaseSettings,
    runtime: ServiceRuntime,
    models: EmbeddingModels,
    rerankers: Rerankers,
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
                database,
                models,
                clock,
                settings.narration,
                announces=messaging.publishes,
                rerankers=rerankers,
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
    """Writes the model's graphs into the cache directory and loads them once."""
    async with await _open_embedder(settings.embedding) as embedder:
        await embedder.embed_query("ready")


def offered_models(
    settings: EmbeddingSettings, lend_model: LendModel, clock: Clock, rng: Random
) -> tuple[OfferedModel, ...]:
    """Returns the models this process can embed with, the one of the settings first."""

    @asynccontextmanager
    async def open_local() -> AsyncIterator[Embedder]:
        yield await lend_model()

    def open_bedrock() -> AbstractAsyncContextManager[Embedder]:
        # The AWS SDK is slow to import, and a service on the local model does without it.
        from knowledge_base.adapters.bedrock_embedder import (  # noqa: PLC0415  # see above
            open_bedrock_embedder,
        )

        return open_bedrock_embedder(
            region=settings.bedrock_region,
            endpoint_url=settings.bedrock_endpoint_url,
            dimensions=int(settings.bedrock_dimensions),
            calls_at_once=settings.bedrock_calls_at_once,
            timeout_seconds=settings.bedrock_timeout_seconds,
            clock=clock,
            rng=rng,
        )

    local = OfferedModel(LOCAL_MODEL, LOCAL_DIMENSIONS, open_local)
    if not settings.bedrock_region:
        if settings.embedder == "bedrock":
            raise SettingsError(
                ["KNOWLEDGE_BASE_EMBEDDER=bedrock needs KNOWLEDGE_BASE_BEDROCK_REGION"]
            )
        return (local,)
    dimensions = int(settings.bedrock_dimensions)
    bedrock = OfferedModel(titan_name(dimensions), dimensions, open_bedrock)
    return (local, bedrock) if settings.embedder == "local" else (bedrock, local)


@asynccontextmanager
async def shared_model(settings: EmbeddingSettings) -> AsyncIterator[LendModel]:
    """Lends the local model to whoever asks, opened when it is first needed, closed at the end.

    What is lent raises ModelFilesError and OSError, as `OnnxEmbedder.from_package` does.
    """
    opening = asyncio.Lock()
    opened: list[OnnxEmbedder] = []
    async with AsyncExitStack() as stack:

        async def lend() -> OnnxEmbedder:
            async with opening:
                if not opened:
                    model = await _open_embedder(settings)
                    opened.append(await stack.enter_async_context(model))
            return opened[0]

        yield lend


async def _rerankers(settings: EmbeddingSettings, lend_model: LendModel) -> Rerankers:
    """Returns the rerankers of the settings; none where the local model is not installed."""
    if settings.reranker == "none":
        return NO_RERANKERS
    try:
        model = await lend_model()
    except ModelFilesError:
        return NO_RERANKERS
    # A world's events are many, and short: 1.2 kB of codes each, in place of 4.7.
    return Rerankers(LateInteraction(model), LateInteraction(model, COARSE))


async def _open_embedder(settings: EmbeddingSettings) -> OnnxEmbedder:
    return await asyncio.to_thread(
        OnnxEmbedder.from_package,
        settings.model_cache_directory.expanduser(),
        query_threads=settings.query_threads,
        document_runs=settings.document_runs,
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
