"""The rerankers that searches of lore and recalls may use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from knowledge_base.ports import Vector

__all__ = ["NO_RERANKERS", "PreparedPassages", "Reranker", "Rerankers"]


@dataclass(frozen=True, slots=True)
class PreparedPassages:
    """What a reranker makes of texts when they are ingested or recorded.

    Attributes:
        codes: what is kept of each passage.
        vectors: those of the embedding model that the reranker runs anyway, shape [passages,
            dimensions]; None when it runs none.
    """

    codes: tuple[bytes, ...]
    vectors: Vector | None


class Reranker(Protocol):
    """Scores the best passages of a search once more, by reading them more closely.

    What it needs of a passage is computed when the passage is ingested and kept beside it. What is
    said here of passages holds for story events, which are recorded.
    """

    @property
    def name(self) -> str:
        """Names the reranker; codes of different rerankers are not compared."""
        ...

    @property
    def embedding_model(self) -> str:
        """Names the embedding model whose vectors `prepare` returns; empty: none."""
        ...

    async def prepare(self, texts: Sequence[str]) -> PreparedPassages:
        """Returns what is kept of the texts, in the order given."""
        ...

    async def score(self, query: str, passages: Sequence[bytes]) -> list[float]:
        """Returns how well passages answer a query, 0..1 each, from their codes."""
        ...

    def forget_texts(self) -> None:
        """Forgets the queries it remembers."""
        ...


@dataclass(frozen=True, slots=True)
class Rerankers:
    """Those of searches of lore and of recalls; None: the search's own order stays."""

    lore: Reranker | None = None
    memory: Reranker | None = None


NO_RERANKERS = Rerankers()
