"""What other ways of searching find, on the same PostgreSQL, texts and vectors.

cosine      pgvector's exact order by cosine distance
tsrank      plainto_tsquery (all words must occur) ordered by ts_rank_cd
rrf         reciprocal-rank fusion of the two, k = 60 (Cormack, Clarke & Büttcher 2009)
langchain   LangChain's PGVectorStore, hybrid with its default fusion, which `make eval` installs
"""

import asyncio
import tempfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from rival_process import Item, Rival, write_folder

from knowledge_base.adapters.database import encode_vector
from knowledge_base.ports import Vector

__all__ = ["Baselines"]

_OWN = ("cosine", "tsrank", "rrf")
_LANGCHAIN = "langchain"
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
    """Passages in one plain table, and the items they belong to.

    Args:
        connection: the owner's, to the database that holds the table.
        langchain: LangChain's store on the same database; None: it takes no part.
        passages: how many each finds.
    """

    def __init__(
        self, connection: asyncpg.Connection, langchain: Rival | None, passages: int
    ) -> None:
        self._connection = connection
        self._langchain = langchain
        self._passages = passages
        self._items: list[Hashable] = []
        self._found_by_langchain: dict[str, list[int]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What takes part, in the order it is shown."""
        return _OWN if self._langchain is None else (*_OWN, _LANGCHAIN)

    async def load(
        self,
        items: Sequence[Hashable],
        texts: Sequence[str],
        vectors: Vector,
        questions: Sequence[str],
        question_vectors: Vector,
    ) -> None:
        """Puts these passages in place of all before, and says what will be asked of them."""
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

        if self._langchain is not None:
            found = await asyncio.to_thread(
                _ask,
                self._langchain,
                _Asked(texts, vectors, questions, question_vectors),
                self._passages,
            )
            self._found_by_langchain = dict(zip(questions, found, strict=True))

    async def search(self, text: str, vector: Vector) -> dict[str, tuple[Hashable, ...]]:
        """Returns by baseline the items of its first passages, each item once."""
        passages = self._passages
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
        if self._langchain is not None:
            rankings[_LANGCHAIN] = self._found_by_langchain[text]
        return {
            name: tuple(dict.fromkeys(self._items[position] for position in ranking))
            for name, ranking in rankings.items()
        }


@dataclass(frozen=True, slots=True)
class _Asked:
    """Passages and questions, each with its vector."""

    texts: Sequence[str]
    vectors: Vector
    questions: Sequence[str]
    question_vectors: Vector


def _ask(rival: Rival, asked: _Asked, passages: int) -> list[list[int]]:
    """Returns the positions of what the rival finds for each question, best first."""
    items = [Item(str(position), text) for position, text in enumerate(asked.texts)]
    with tempfile.TemporaryDirectory(prefix="gamekeeper-rivals-") as directory:
        folder = write_folder(
            Path(directory), items, asked.vectors, asked.questions, asked.question_vectors
        )
        rival.load(folder)
        answer = rival.search(range(len(asked.questions)), mode="hybrid", limit=passages)
    return [[int(identifier) for identifier in found] for found in answer.ids]
