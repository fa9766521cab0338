"""Starts the knowledge base.

python -m knowledge_base                 serves; first migrates, if the owner's address is set
python -m knowledge_base migrate         brings the database to this version, then ends
python -m knowledge_base prepare-model   writes the embedding model's graph, then ends
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from knowledge_base.adapters.database import Database, UnsafeDatabaseError, open_database
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.adapters.postgres_concepts import PostgresConcepts
from knowledge_base.adapters.postgres_lore import PostgresLore
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.concepts import ConceptBook
from knowledge_base.config import (
    DatabaseSettings,
    EmbeddingSettings,
    KnowledgeBaseSettings,
    MigrationSettings,
    ModelSettings,
    RankingSettings,
)
from knowledge_base.embedding_cache import EmbeddingCache
from knowledge_base.ingest import LoreIngest
from knowledge_base.memory import WorldMemory
from knowledge_base.ports import Embedder
from knowledge_base.search import LoreSearch
from knowledge_base.servicer import KnowledgeBaseServicer
from servicekit.clock import Clock
from servicekit.runtime import ServiceRuntime, run_service
from servicekit.settings import SettingsError

_USAGE = 2


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
        servicer, memory = compose(database, embedder, runtime.clock, stored, settings.ranking)
        await runtime.serve([servicer.registration()], settings.server, memory.forget_requests)


def compose(
    database: Database,
    embedder: Embedder,
    clock: Clock,
    stored: DatabaseSettings,
    ranking: RankingSettings,
) -> tuple[KnowledgeBaseServicer, WorldMemory]:
    """Returns the service on a database and an embedder, and the part that has a task to run."""
    lore = PostgresLore(database, clock, lock_wait_seconds=stored.ingest_lock_wait_seconds)
    memory = WorldMemory(
        PostgresMemory(database),
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
    ingest = LoreIngest(lore, embedder, clock)
    return KnowledgeBaseServicer(ingest, search, memory, concepts), memory


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
