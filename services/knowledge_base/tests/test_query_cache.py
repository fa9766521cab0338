"""Vectors of recent queries are remembered, and only so many."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from knowledge_base.ports import Vector
from knowledge_base.query_cache import QueryCache


class CountingEmbedder:
    model = "counting"
    dimensions = 2

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def embed_query(self, text: str) -> Vector:
        self.asked[text] += 1
        return np.array([len(text), 1.0], dtype=np.float32)

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        self.asked.update(texts)
        return np.zeros((len(texts), 2), dtype=np.float32)


async def test_a_query_is_embedded_once_while_it_is_recent() -> None:
    inner = CountingEmbedder()
    cache = QueryCache(inner, 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        assert (await cache.embed_query(text))[0] == 1.0
    # b was the one longest unused when c came.
    assert inner.asked == {"a": 1, "b": 2, "c": 1}


async def test_a_remembered_vector_cannot_be_changed() -> None:
    vector = await QueryCache(CountingEmbedder(), 2).embed_query("a")
    assert not vector.flags.writeable


async def test_documents_are_not_remembered() -> None:
    inner = CountingEmbedder()
    cache = QueryCache(inner, 2)
    await cache.embed_documents(["a"])
    await cache.embed_documents(["a"])
    assert inner.asked == {"a": 2}
    assert (cache.model, cache.dimensions) == ("counting", 2)
