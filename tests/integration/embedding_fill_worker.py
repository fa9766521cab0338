"""A process that fills a changed model's vectors, slowly, until it is killed."""

import asyncio
import os
from collections.abc import Sequence

from knowledge_base.__main__ import connect
from knowledge_base.adapters.postgres_embedding_models import PostgresEmbeddingModels
from knowledge_base.config import DatabaseSettings
from knowledge_base.embedding_change import EmbeddingChange
from knowledge_base.embedding_models import EmbeddingModels, OfferedModel
from knowledge_base.ports import Vector
from knowledge_base.testing import HashEmbedder, IsometricEmbedder
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

_BATCHES_BEFORE_IT_HANGS = 3


class HangingEmbedder(IsometricEmbedder):
    """Embeds a few batches and then takes for ever, so that it is killed within one."""

    batches = 0

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the turned vectors, a few times."""
        self.batches += len(texts)
        if self.batches > 32 * _BATCHES_BEFORE_IT_HANGS:
            await asyncio.Event().wait()
        return await super().embed_documents(texts)


async def _main() -> None:
    settings = load_settings(
        DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": os.environ["WORKER_DATABASE_URL"]}
    )
    clock = SystemClock()
    offered = [OfferedModel.of(e) for e in (HashEmbedder(), HangingEmbedder(HashEmbedder()))]
    async with connect(settings) as database:
        store = PostgresEmbeddingModels(database)
        async with EmbeddingModels(offered, store, clock) as models:
            await EmbeddingChange(store, models, clock, rows_per_second=100_000).fill()


if __name__ == "__main__":
    asyncio.run(_main())
