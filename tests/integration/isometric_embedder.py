"""An embedding model that is the exact image of another one in more dimensions."""

from collections.abc import Sequence

import numpy as np

from knowledge_base.ports import Embedder, Vector

__all__ = ["IsometricEmbedder"]

_SEED = 20260501


class IsometricEmbedder:
    """Embeds as `inner` does, turned into a space of more dimensions.

    The map has orthonormal columns, so all inner products stay as they were: whatever is ranked by
    them is ranked the same, and a change of the model can be told from one of the quality.

    Args:
        inner: whose vectors are turned.
        dimensions: of the new space.
    """

    def __init__(self, inner: Embedder, dimensions: int = 1024) -> None:
        self._inner = inner
        self.model = f"image-of-{inner.model}/{dimensions}"
        self.dimensions = dimensions
        rng = np.random.default_rng(_SEED)
        square = rng.standard_normal((dimensions, inner.dimensions))
        self._turn = np.linalg.qr(square)[0]
        self.embedded = 0

    async def embed_query(self, text: str) -> Vector:
        """Returns the turned vector of one text."""
        return self._turned(await self._inner.embed_query(text))

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the turned vectors, shape [len(texts), dimensions]."""
        self.embedded += len(texts)
        return self._turned(await self._inner.embed_documents(texts))

    def _turned(self, vectors: Vector) -> Vector:
        return np.asarray(vectors.astype(np.float64) @ self._turn.T, dtype=np.float32)
