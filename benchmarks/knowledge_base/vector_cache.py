"""Keeps vectors of texts on disk, so that a set is embedded once."""

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knowledge_base.ports import Embedder, Vector

__all__ = ["DiskCachedEmbedder"]

_AT_ONCE = 64


class DiskCachedEmbedder:
    """An `Embedder` that computes a text's vector once for all runs.

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
        """Returns the vector of one text, shape [dimensions]."""
        vector: Vector = (await self.embed_documents([text]))[0]
        return vector

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the vectors of the texts, shape [len(texts), dimensions]."""
        known = {text: self._read(text) for text in texts}
        missing = sorted((text for text, vector in known.items() if vector is None), key=len)
        for start in range(0, len(missing), _AT_ONCE):
            batch = missing[start : start + _AT_ONCE]
            for text, vector in zip(batch, await self._inner.embed_documents(batch), strict=True):
                known[text] = vector.copy()
                self._store.execute(
                    "INSERT OR IGNORE INTO vectors VALUES (?, ?)",
                    (self._hash(text), vector.astype("<f4").tobytes()),
                )
        rows = [known[text] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimensions)

    def close(self) -> None:
        """Closes the file."""
        self._store.close()

    def _read(self, text: str) -> Vector | None:
        row = self._store.execute(
            "SELECT vector FROM vectors WHERE hash = ?", (self._hash(text),)
        ).fetchone()
        return None if row is None else np.frombuffer(row[0], dtype="<f4").astype(np.float32)

    def _hash(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.model}\0{text}".encode()).digest()
