"""How well a passage meets each word of a query, from vectors of their tokens.

Late interaction (Khattab & Zaharia 2020, "ColBERT", SIGIR): each token of the query looks for the
passage's token that is nearest to it, and the passage's score is the mean of those cosines. A
vector of a whole passage blurs what it says in passing; its tokens do not. In the mean a rare token
counts more than a frequent one, since nearly every passage has something near to a "the".

What is kept of a passage, its codes, are its tokens' unit vectors as int8 of one scale: 128 bytes a
token. The components of such a vector are small, seldom above 0.3, so the scale's largest is 0.5.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_tokens", "encode_tokens", "met_share", "rarity_weights"]

_SCALE = 254
_LARGEST = 127
# The mean of the best cosines of a query's tokens in passages that have nothing to do with it; it
# makes the score comparable to the others, which are near 0 there.
_UNRELATED = 0.3
# The most frequent tokens keep some weight: to leave them out lost much.
_RANK_OFFSET = 3
# Multiplications of a product of matrices. OpenBLAS shares larger ones (4 * 65,536) with its other
# threads, which then spin for tens of milliseconds and take the cores from the model.
_PRODUCT = 250_000
# Rows that a matrix product takes at once, a multiple of what its kernels do.
_ROWS = 16


def encode_tokens(vectors: NDArray[np.float32]) -> bytes:
    """Returns the codes of unit vectors, shape [count, size]: count * size bytes."""
    scaled = np.clip(np.rint(vectors * _SCALE), -_LARGEST, _LARGEST)
    return bytes(scaled.astype(np.int8).tobytes())


def decode_tokens(codes: bytes, size: int) -> NDArray[np.float32]:
    """Returns the vectors, shape [count, size], that `encode_tokens` made codes of.

    Components within -0.5..0.5 are given back to 0.002.
    """
    vectors = np.frombuffer(codes, dtype=np.int8).reshape(-1, size).astype(np.float32)
    vectors /= _SCALE
    return vectors


def rarity_weights(ranks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns how much each token counts, shape [count]: the root of its inverse frequency's log.

    By Zipf's law a token's frequency in its language is inverse to its rank, so that log is that of
    the rank but for a constant. The root was chosen on dialogues and scientific abstracts: the log
    itself gave too little to what stands around the rare words.

    Args:
        ranks: of the tokens by frequency, the most frequent one's is 1.
    """
    weights: NDArray[np.float32] = np.sqrt(np.log(ranks + _RANK_OFFSET)).astype(np.float32)
    return weights


def met_share(
    query: NDArray[np.float32], weights: NDArray[np.float32], passages: Sequence[bytes]
) -> list[float]:
    """Returns how far each passage meets the query's tokens: 0 like any other text, 1 in full.

    Args:
        query: unit vectors of the query's tokens, shape [count, size].
        weights: how much each of them counts, above 0, shape [count].
        passages: the codes of each passage; 0 for one without tokens.
    """
    shares = np.zeros(len(passages))
    filled = [index for index, codes in enumerate(passages) if codes]
    if len(query) and filled:
        # All passages stand below each other: what is done to each of fifty is what costs.
        size = query.shape[1]
        ends = np.cumsum([len(passages[index]) // size for index in filled])
        starts = np.concatenate(([0], ends[:-1]))
        codes = np.frombuffer(b"".join(passages[index] for index in filled), dtype=np.int8)
        scaled = _products(codes.reshape(-1, size), query)
        nearest = np.maximum.reduceat(scaled, starts, axis=0).astype(np.float64) / _SCALE
        met = nearest @ (weights / weights.sum(dtype=np.float64))
        shares[filled] = np.clip((met - _UNRELATED) / (1 - _UNRELATED), 0.0, 1.0)
    return [float(share) for share in shares]


def _products(codes: NDArray[np.int8], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the cosine of each token of the codes to each of the query, times `_SCALE`.

    Converted part by part into the same few pages, the codes are in the processor's cache when they
    are multiplied; as a whole, four times their size, they would be written to memory and read.

    Args:
        codes: of tokens, shape [count, size].
        query: shape [asked, size].
    """
    rows = max(1, _PRODUCT // query.size)
    rows = min(rows - rows % _ROWS or rows, len(codes))
    turned = np.ascontiguousarray(query.T)
    part = np.zeros((rows, query.shape[1]), dtype=np.float32)
    products = np.empty((len(codes), len(query)), dtype=np.float32)
    for full in range(0, len(codes), rows):
        # The last part is as large as the others, since a product's rounding depends on its size.
        start = min(full, len(codes) - rows)
        part[:] = codes[start : start + rows]
        np.matmul(part, turned, out=products[start : start + rows])
    return products
