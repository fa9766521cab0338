"""txtai's index in PostgreSQL, told on standard input what to do (see exchange.py).

    .tool/rivals/bin/python benchmarks/knowledge_base/rivals/txtai_index.py URL

Vectors lie in pgvector under txtai's HNSW index, words in its PostgreSQL text scoring; hybrid is
its own convex combination of both. txtai has no filter inside its index: one holds one scope. It
runs queries one at a time on one connection.
"""

import asyncio
import sys
from functools import partial
from typing import Any

import numpy as np
from exchange import Documents, Queries, Searched, converse, embedded, timed
from txtai import Embeddings

# txtai adds the legs with equal weights unless told otherwise.
ONLY_VECTORS, BOTH = 1.0, 0.5


class TxtaiIndex:
    """An index of txtai's, its tables in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self._vectors: dict[str, Any] = {}
        self._queries = Queries([], None)
        self._embeddings: Embeddings | None = None

    async def load(self, documents: Documents, queries: Queries) -> None:
        """Makes the index anew and fills it."""
        self._queries = queries
        self._vectors = embedded(documents, queries)
        self._embeddings = Embeddings(
            method="external",
            transform=lambda texts: np.stack([self._vectors[text] for text in texts]),
            backend="pgvector",
            pgvector={"url": self._url, "table": "txtai_vectors"},
            scoring={"method": "pgtext", "url": self._url, "table": "txtai_words"},
            hybrid=True,
        )
        self._embeddings.index(
            (identifier, text, None)
            for identifier, text in zip(documents.ids, documents.texts, strict=True)
        )
        # Otherwise its transactions, and with them its tables, stay open and unseen by ANALYZE.
        self._embeddings.ann.save(None)
        self._embeddings.scoring.save(None)

    async def attach(self, queries: Queries) -> None:
        """Refuses: txtai keeps its ids beside the database."""
        raise NotImplementedError("txtai fills its own index; load it")

    async def index(self) -> None:
        """Does nothing: the approximate index is there from the start."""

    async def search(
        self, rows: list[int], scope: str | None, mode: str, limit: int, clients: int
    ) -> Searched:
        """Searches for the queries in these rows, one after another."""
        found = [await timed(partial(self._one, row, mode, limit)) for row in rows]
        return Searched([ids for ids, _ in found], [seconds for _, seconds in found])

    async def _one(self, row: int, mode: str, limit: int) -> list[str]:
        assert self._embeddings is not None, "load comes first"
        weights = ONLY_VECTORS if mode == "vector" else BOTH
        found = self._embeddings.search(self._queries.texts[row], limit, weights=weights)
        return [identifier for identifier, _ in found]


if __name__ == "__main__":
    asyncio.run(converse(TxtaiIndex(sys.argv[1])))
