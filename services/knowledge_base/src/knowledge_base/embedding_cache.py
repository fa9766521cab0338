"""Remembers the vectors of recent texts."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from knowledge_base.ports import Embedder, Vector

__all__ = ["EmbeddingCache"]

_REMEMBERED_DOCUMENTS = 512
# What is computed before it is remembered: a call that ran out of time loses no more than this.
_DOCUMENTS_AT_ONCE = 16


class EmbeddingCache:
    """An `Embedder` that computes a text's vector once while the text is among the recent ones.

    A vector depends on the text alone, so nothing in it tells worlds or callers apart. Queries are
    remembered because players ask alike; documents so that a caller who ran out of time and repeats
    the call goes on where it was, instead of running out of time again.

    Args:
        inner: computes the vectors.
        query_count: how many queries are remembered; of documents it is 512.
    """

    def __init__(self, inner: Embedder, query_count: int) -> None:
        self._inner = inner
        self._queries = _RecentVectors(query_count)
        self._documents = _RecentVectors(_REMEMBERED_DOCUMENTS)

    @property
    def model(self) -> str:
        """Names the model."""
        return self._inner.model

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return self._inner.dimensions

    async def embed_query(self, text: str) -> Vector:
        """Returns the vector of one text; it cannot be written to."""
        known = self._queries.get(text)
        if known is not None:
            return known
        return self._queries.put(text, await self._inner.embed_query(text))

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the vectors of the texts, shape [len(texts), dimensions]."""
        vectors = {text: self._documents.get(text) for text in texts}
        missing = [text for text, vector in vectors.items() if vector is None]
        for start in range(0, len(missing), _DOCUMENTS_AT_ONCE):
            batch = missing[start : start + _DOCUMENTS_AT_ONCE]
            computed = await self._inner.embed_documents(batch)
            for text, vector in zip(batch, computed, strict=True):
                vectors[text] = self._documents.put(text, vector.copy())
        rows = [vectors[text] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimensions)

    def forget_texts(self) -> None:
        """Forgets all texts and their vectors."""
        self._queries.clear()
        self._documents.clear()


class _RecentVectors:
    """The vectors of the texts used last, at most `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._vectors: OrderedDict[str, Vector] = OrderedDict()

    def get(self, text: str) -> Vector | None:
        known = self._vectors.get(text)
        if known is not None:
            self._vectors.move_to_end(text)
        return known

    def put(self, text: str, vector: Vector) -> Vector:
        vector.setflags(write=False)
        self._vectors[text] = vector
        self._vectors.move_to_end(text)
        while len(self._vectors) > self._size:
            self._vectors.popitem(last=False)
        return vector

    def clear(self) -> None:
        self._vectors.clear()
