"""Remembers the vectors of recent queries."""

from collections import OrderedDict
from collections.abc import Sequence

from knowledge_base.ports import Embedder, Vector

__all__ = ["QueryCache"]


class QueryCache:
    """An `Embedder` that computes a query's vector once while it is among the last `size`.

    A vector depends on the text alone, so nothing in it tells worlds or callers apart. Documents
    are not remembered: the store keeps theirs.
    """

    def __init__(self, inner: Embedder, size: int) -> None:
        self._inner = inner
        self._size = size
        self._vectors: OrderedDict[str, Vector] = OrderedDict()

    @property
    def model(self) -> str:
        """Names the model."""
        return self._inner.model

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return self._inner.dimensions

    async def embed_query(self, text: str) -> Vector:
        """Returns the vector of one text."""
        known = self._vectors.get(text)
        if known is not None:
            self._vectors.move_to_end(text)
            return known
        vector = await self._inner.embed_query(text)
        vector.setflags(write=False)
        self._vectors[text] = vector
        while len(self._vectors) > self._size:
            self._vectors.popitem(last=False)
        return vector

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the vectors of the texts, as the model computes them."""
        return await self._inner.embed_documents(texts)
