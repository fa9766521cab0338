"""LangChain's PGVectorStore, told on standard input what to do (see exchange.py).

    .tool/rivals/bin/python benchmarks/knowledge_base/rivals/langchain_store.py URL

Set up as its documentation advises for filtered hybrid search: the scope is a column of its own
with a B-tree index, the text search column has its GIN index. Hybrid search takes `limit` rows from
each leg and adds their scores, which is the library's default fusion.
"""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from exchange import Documents, Queries, Searched, converse, embedded, timed
from langchain_core.embeddings import Embeddings
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.hybrid_search_config import HybridSearchConfig
from langchain_postgres.v2.indexes import HNSWIndex
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

TABLE = "langchain_documents"
TSV_COLUMN = "content_tsv"
LOADED_AT_ONCE = 500


class LookedUp(Embeddings):  # type: ignore[misc]  # its types are in another environment
    """Gives each text the vector that it has."""

    def __init__(self) -> None:
        self.vectors: dict[str, Any] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns the vectors of texts."""
        return [self.vectors[text].tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a text."""
        return self.embed_documents([text])[0]

    async def aembed_query(self, text: str) -> list[float]:
        """Returns the vector of a text, without the thread that the base class would use."""
        return self.embed_query(text)


class LangChainStore:
    """A table of LangChain's."""

    def __init__(self, url: str, clients: int = 8) -> None:
        self._pool = create_async_engine(
            url.replace("postgresql://", "postgresql+asyncpg://", 1), pool_size=clients
        )
        self._engine = PGEngine.from_engine(self._pool)
        self._embeddings = LookedUp()
        self._queries = Queries([], None)
        self._store: PGVectorStore | None = None

    async def load(self, documents: Documents, queries: Queries) -> None:
        """Makes the table anew and fills it."""
        await self._engine.ainit_vectorstore_table(
            TABLE,
            documents.vectors.shape[1],
            id_column=Column("langchain_id", "TEXT", nullable=False),
            metadata_columns=[Column("scope", "TEXT", nullable=False)],
            hybrid_search_config=_hybrid(4),
            overwrite_existing=True,
        )
        await self.attach(queries)
        self._embeddings.vectors = embedded(documents, queries)
        for start in range(0, len(documents.ids), LOADED_AT_ONCE):
            part = slice(start, start + LOADED_AT_ONCE)
            await self._opened().aadd_texts(
                documents.texts[part],
                metadatas=[{"scope": scope} for scope in documents.scopes[part]],
                ids=documents.ids[part],
            )
        await self._opened_index()

    async def attach(self, queries: Queries) -> None:
        """Uses the table as it is."""
        self._queries = queries
        self._embeddings.vectors = embedded(None, queries)
        self._store = await PGVectorStore.create(
            self._engine,
            self._embeddings,
            TABLE,
            metadata_columns=["scope"],
            hybrid_search_config=_hybrid(4),
        )

    async def index(self) -> None:
        """Adds HNSW with the library's parameters."""
        await self._opened().aapply_vector_index(HNSWIndex())

    async def search(
        self, rows: list[int], scope: str | None, mode: str, limit: int, clients: int
    ) -> Searched:
        """Searches for the queries in these rows."""
        waiting = iter(rows)
        found: dict[int, tuple[list[str], float]] = {}

        async def client() -> None:
            for row in waiting:
                found[row] = await timed(partial(self._one, row, scope, mode, limit))

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return Searched([found[row][0] for row in rows], [found[row][1] for row in rows])

    async def _one(self, row: int, scope: str | None, mode: str, limit: int) -> list[str]:
        question = self._queries.texts[row]
        chosen = None if scope is None else {"scope": scope}
        if mode == "hybrid":
            # A configuration of its own for each question: the store keeps the first question's
            # words in the one it was made with.
            found: Sequence[Any] = await self._opened().asimilarity_search(
                question, k=limit, filter=chosen, hybrid_search_config=_hybrid(limit)
            )
        else:
            found = await self._opened().asimilarity_search_by_vector(
                self._embeddings.embed_query(question),
                k=limit,
                filter=chosen,
                hybrid_search_config=None,
            )
        return [document.id for document in found]

    async def _opened_index(self) -> None:
        async with self._pool.begin() as connection:
            await connection.execute(text(f"CREATE INDEX ON {TABLE} (scope)"))
            await connection.execute(text(f"CREATE INDEX ON {TABLE} USING gin ({TSV_COLUMN})"))
            await connection.execute(text(f"ANALYZE {TABLE}"))

    def _opened(self) -> PGVectorStore:
        if self._store is None:
            raise RuntimeError("load or attach comes first")
        return self._store


def _hybrid(limit: int) -> HybridSearchConfig:
    return HybridSearchConfig(
        tsv_column=TSV_COLUMN,
        tsv_lang="pg_catalog.english",
        primary_top_k=limit,
        secondary_top_k=limit,
    )


if __name__ == "__main__":
    asyncio.run(converse(LangChainStore(sys.argv[1])))
