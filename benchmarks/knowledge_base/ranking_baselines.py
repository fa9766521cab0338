"""What other ways of searching find, on the same PostgreSQL, texts and vectors.

cosine      pgvector's exact order by cosine distance
tsrank      plainto_tsquery (all words must occur) ordered by ts_rank_cd
rrf         reciprocal-rank fusion of the two, k = 60 (Cormack, Clarke & Büttcher 2009)
"""

from collections.abc import Hashable, Sequence

import asyncpg

from knowledge_base.adapters.database import encode_vector
from knowledge_base.ports import Vector

__all__ = ["BASELINES", "Baselines"]

BASELINES = ("cosine", "tsrank", "rrf")
_RRF_K = 60
_INSERTED_AT_ONCE = 500

_SCHEMA = """
DROP TABLE IF EXISTS public.baseline;
CREATE TABLE public.baseline (
    position integer PRIMARY KEY,
    vector public.vector(384) NOT NULL,
    words tsvector NOT NULL
)
"""
_INSERT = """
INSERT INTO public.baseline
SELECT p, v, to_tsvector('english', t)
FROM unnest($1::integer[], $2::public.vector[], $3::text[]) AS r (p, v, t)
"""
_COSINE = "SELECT position FROM public.baseline ORDER BY vector <=> $1, position LIMIT $2"
_TSRANK = """
SELECT position FROM public.baseline, plainto_tsquery('english', $1) AS query
WHERE words @@ query ORDER BY ts_rank_cd(words, query) DESC, position LIMIT $2
"""


class Baselines:
    """Passages in one plain table, and the items they belong to."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._items: list[Hashable] = []

    async def load(self, items: Sequence[Hashable], texts: Sequence[str], vectors: Vector) -> None:
        """Puts these passages in place of all before; the arguments run parallel."""
        await self._connection.execute(_SCHEMA)
        await self._connection.set_type_codec(
            "vector", schema="public", encoder=bytes, decoder=bytes, format="binary"
        )
        self._items = list(items)
        for start in range(0, len(texts), _INSERTED_AT_ONCE):
            end = min(start + _INSERTED_AT_ONCE, len(texts))
            await self._connection.execute(
                _INSERT,
                list(range(start, end)),
                [encode_vector(vector) for vector in vectors[start:end]],
                texts[start:end],
            )

    async def search(
        self, text: str, vector: Vector, passages: int
    ) -> dict[str, tuple[Hashable, ...]]:
        """Returns by baseline the items of its first passages, each item once."""
        cosine = [
            row[0] for row in await self._connection.fetch(_COSINE, encode_vector(vector), passages)
        ]
        tsrank = [row[0] for row in await self._connection.fetch(_TSRANK, text, passages)]
        fused: dict[int, float] = {}
        for ranking in (cosine, tsrank):
            for rank, position in enumerate(ranking, start=1):
                fused[position] = fused.get(position, 0.0) + 1 / (_RRF_K + rank)
        rrf = sorted(fused, key=lambda position: (-fused[position], position))
        rankings = {"cosine": cosine, "tsrank": tsrank, "rrf": rrf}
        return {
            name: tuple(dict.fromkeys(self._items[position] for position in ranking))
            for name, ranking in rankings.items()
        }
