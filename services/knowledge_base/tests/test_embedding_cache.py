"""Vectors of recent texts are remembered, and only so many."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from knowledge_base.embedding_cache import EmbeddingCache
from knowledge_base.ports import Vector


class CountingEmbedder:
    model = "counting"
    dimensions = 2

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.fails_at = ""

    async def embed_query(self, text: str) -> Vector:
        self.asked[text] += 1
        return np.array([len(text), 1.0], dtype=np.float32)

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        if self.fails_at in texts:
            raise TimeoutError
        self.asked.update(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


async def test_a_query_is_embedded_once_while_it_is_recent() -> None:
    inner = CountingEmbedder()
    cache = EmbeddingCache(inner, 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        assert (await cache.embed_query(text))[0] == 1.0
    # b was the one longest unused when c came.
    assert inner.asked == {"a": 1, "b": 2, "c": 1}


async def test_a_remembered_vector_cannot_be_changed() -> None:
    vector = await EmbeddingCache(CountingEmbedder(), 2).embed_query("a")
    assert not vector.flags.writeable


async def test_documents_come_in_the_order_asked_each_computed_once() -> None:
    inner = CountingEmbedder()
    cache = EmbeddingCache(inner, 2)
    texts = [f"{'x' * n}" for n in (3, 1, 2, 3)]
    assert (await cache.embed_documents(texts))[:, 0].tolist() == [3, 1, 2, 3]
    assert (await cache.embed_documents(["xx", "xxxx"]))[:, 0].tolist() == [2, 4]
    assert set(inner.asked.values()) == {1}
    assert (await cache.embed_documents([])).shape == (0, 2)


async def test_a_call_that_broke_off_goes_on_where_it_was() -> None:
    inner = CountingEmbedder()
    cache = EmbeddingCache(inner, 2)
    texts = [f"text {n}" for n in range(30)]
    inner.fails_at = "text 20"
    with pytest.raises(TimeoutError):
        await cache.embed_documents(texts)
    done = dict(inner.asked)
    assert len(done) >= 16
    inner.fails_at = ""
    assert len(await cache.embed_documents(texts)) == 30
    assert all(inner.asked[text] == 1 for text in done)


async def test_only_so_many_documents_are_remembered() -> None:
    inner = CountingEmbedder()
    cache = EmbeddingCache(inner, 2)
    await cache.embed_documents([f"text {n}" for n in range(2000)])
    await cache.embed_documents(["text 0", "text 1999"])
    assert inner.asked["text 0"] == 2
    assert inner.asked["text 1999"] == 1
    assert (cache.model, cache.dimensions) == ("counting", 2)
