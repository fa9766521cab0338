"""Keeps what the model makes of texts on disk, so that a set is read once."""

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knowledge_base.ports import Embedder, Vector
from knowledge_base.ports_reranker import PreparedPassages, Reranker

__all__ = ["DiskCachedEmbedder", "DiskCachedReranker"]

_AT_ONCE = 64


class DiskCachedEmbedder:
    """An `Embedder` that computes a document's vector once for all runs.

    A vector is found by the SHA-256 of the model's name and the text, so texts themselves are not
    kept.

    Args:
        inner: computes the vectors.
        path: the SQLite file; made when absent.
    """

    def __init__(self, inner: Embedder, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._inner = inner
        self._store = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._store.execute(
            "CREATE TABLE IF NOT EXISTS vectors (hash BLOB PRIMARY KEY, vector BLOB NOT NULL)"
        )

    @property
    def model(self) -> str:
        """Names the model."""
        return self._inner.model

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return self._inner.dimensions

    async def embed_query(self, text: str) -> Vector:
        """Returns the vector of one text, shape [dimensions], computed each time.

        A model may read queries in another way than documents.
        """
        return await self._inner.embed_query(text)

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the vectors of the texts, shape [len(texts), dimensions]."""
        known = {text: self._read(text) for text in texts}
        missing = sorted((text for text, vector in known.items() if vector is None), key=len)
        for start in range(0, len(missing), _AT_ONCE):
            batch = missing[start : start + _AT_ONCE]
            for text, vector in zip(batch, await self._inner.embed_documents(batch), strict=True):
                known[text] = vector.copy()
                self.remember(text, vector)
        rows = [known[text] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimensions)

    def close(self) -> None:
        """Closes the file."""
        self._store.close()

    def remember(self, text: str, vector: Vector) -> None:
        """Keeps a vector of a text that was computed elsewhere."""
        self._store.execute(
            "INSERT OR IGNORE INTO vectors VALUES (?, ?)",
            (self._hash(text), vector.astype("<f4").tobytes()),
        )

    def _read(self, text: str) -> Vector | None:
        row = self._store.execute(
            "SELECT vector FROM vectors WHERE hash = ?", (self._hash(text),)
        ).fetchone()
        return None if row is None else np.frombuffer(row[0], dtype="<f4").astype(np.float32)

    def _hash(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.model}\0{text}".encode()).digest()


class DiskCachedReranker:
    """A `Reranker` that prepares a text once for all runs.

    Args:
        inner: reads the texts.
        embedder: keeps the vectors that come along.
        path: the SQLite file; made when absent.
    """

    def __init__(self, inner: Reranker, embedder: DiskCachedEmbedder, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._inner = inner
        self._embedder = embedder
        self._store = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._store.execute(
            "CREATE TABLE IF NOT EXISTS codes (hash BLOB PRIMARY KEY, codes BLOB NOT NULL)"
        )

    @property
    def name(self) -> str:
        """Names the reranker."""
        return self._inner.name

    @property
    def embedding_model(self) -> str:
        """The embedding model whose vectors come along."""
        return self._inner.embedding_model

    async def prepare(self, texts: Sequence[str]) -> PreparedPassages:
        """Returns what the inner reranker makes of the texts, and their vectors."""
        known = {text: self._read(text) for text in texts}
        missing = sorted((text for text, codes in known.items() if codes is None), key=len)
        for start in range(0, len(missing), _AT_ONCE):
            batch = missing[start : start + _AT_ONCE]
            prepared = await self._inner.prepare(batch)
            for row, (text, codes) in enumerate(zip(batch, prepared.codes, strict=True)):
                known[text] = codes
                self._store.execute(
                    "INSERT OR IGNORE INTO codes VALUES (?, ?)", (self._hash(text), codes)
                )
                if prepared.vectors is not None:
                    self._embedder.remember(text, prepared.vectors[row])
        return PreparedPassages(
            tuple(known[text] or b"" for text in texts),
            await self._embedder.embed_documents(texts),
        )

    async def score(self, query: str, passages: Sequence[bytes]) -> list[float]:
        """Returns the inner reranker's scores."""
        return await self._inner.score(query, passages)

    def forget_texts(self) -> None:
        """Forgets the queries it remembers."""
        self._inner.forget_texts()

    def close(self) -> None:
        """Closes the file."""
        self._store.close()

    def _read(self, text: str) -> bytes | None:
        row = self._store.execute(
            "SELECT codes FROM codes WHERE hash = ?", (self._hash(text),)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def _hash(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.name}\0{text}".encode()).digest()
