"""How well a passage meets each word of a query, from vectors of their tokens.

Late interaction (Khattab & Zaharia 2020, "ColBERT", SIGIR): each token of the query looks for the
passage's token that is nearest to it, and the passage's score is the mean of those cosines. A
vector of a whole passage blurs what it says in passing; its tokens do not.

What is kept of a passage, its codes, are its tokens' unit vectors as int8, each scaled to its own
largest component: 128 bytes a token. Bringing them back to unit length undoes the scale.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_tokens", "encode_tokens", "met_share"]

_LARGEST = 127
# The mean of the best cosines of a query's tokens in passages that have nothing to do with it; it
# makes the score comparable to the others, which are near 0 there.
_UNRELATED = 0.3


def encode_tokens(vectors: NDArray[np.float32]) -> bytes:
    """Returns the codes of unit vectors, shape [count, size]: count * size bytes."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=1e-12)
    codes: NDArray[np.int8] = np.rint(vectors * (_LARGEST / largest)).astype(np.int8)
    return bytes(codes.tobytes())


def decode_tokens(codes: bytes, size: int) -> NDArray[np.float32]:
    """Returns the unit vectors, shape [count, size], that `encode_tokens` made codes of.

    Their components are within 0.5 / 127 of the largest one of each vector.
    """
    vectors = np.frombuffer(codes, dtype=np.int8).reshape(-1, size).astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    unit: NDArray[np.float32] = vectors / np.maximum(norms, np.float32(1e-6))
    return unit


def met_share(query: NDArray[np.float32], passages: Sequence[bytes]) -> list[float]:
    """Returns how far each passage meets the query's tokens: 0 like any other text, 1 in full.

    Args:
        query: unit vectors of the query's tokens, shape [count, size].
        passages: the codes of each passage; 0 for one without tokens.
    """
    size = query.shape[1]
    counts = [len(codes) // size for codes in passages]
    present = [index for index, count in enumerate(counts) if count]
    shares = [0.0] * len(passages)
    if not len(query) or not present:
        return shares
    tokens = decode_tokens(b"".join(passages[index] for index in present), size)
    starts = np.cumsum([0, *(counts[index] for index in present[:-1])])
    nearest = np.maximum.reduceat(query @ tokens.T, starts, axis=1).mean(axis=0)
    for index, cosine in zip(present, nearest, strict=True):
        shares[index] = min(1.0, max(0.0, (float(cosine) - _UNRELATED) / (1 - _UNRELATED)))
    return shares
