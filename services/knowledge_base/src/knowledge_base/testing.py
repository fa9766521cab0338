"""What tests put in place of the embedding model."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from knowledge_base.ports import Vector

__all__ = ["HashEmbedder"]

_WORD = re.compile(r"\w+")


class HashEmbedder:
    """An `Embedder` for tests: texts that share words are similar, nothing more.

    No setting selects it. `embedded` lists the documents it was asked for.
    """

    model = "hash-for-tests"
    dimensions = 384

    def __init__(self) -> None:
        self.embedded: list[str] = []

    async def embed_query(self, text: str) -> Vector:
        """Returns a unit vector of the text's words."""
        return self._vector(text)

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns unit vectors, shape [len(texts), 384]."""
        self.embedded.extend(texts)
        return np.array([self._vector(text) for text in texts], dtype=np.float32).reshape(
            len(texts), self.dimensions
        )

    def _vector(self, text: str) -> Vector:
        vector = np.zeros(self.dimensions, dtype=np.float32)
        vector[0] = 0.1  # a text without words is a vector too
        for word in _WORD.findall(text.lower()):
            digest = hashlib.sha256(word.encode()).digest()
            vector[1 + int.from_bytes(digest[:4], "big") % (self.dimensions - 1)] += 1.0
        return vector / np.float32(np.linalg.norm(vector))
