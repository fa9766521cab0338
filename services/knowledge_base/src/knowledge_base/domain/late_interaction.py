"""How well a passage meets each word of a query, from vectors of their tokens.

Late interaction (Khattab & Zaharia 2020, "ColBERT", SIGIR): each token of the query looks for the
passage's token that is nearest to it, and the passage's score is the mean of those cosines. A
vector of a whole passage blurs what it says in passing; its tokens do not. In the mean a rare token
counts more than a frequent one, since nearly every passage has something near to a "the".

What is kept of a passage, its codes, are its tokens' unit vectors with few bits for each component.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["COARSE", "FINE", "TokenCodes", "met_share", "rarity_weights", "weights_of_parts"]

# The components of a token's vector are small, seldom above 0.3, so the scale's largest is 0.5.
_SCALE = 254
_LARGEST = 127
# Components in 2 bits: the sign, and whether it is among the larger third. For values that are
# normally distributed, as these nearly are, Max 1960 ("Quantizing for Minimum Distortion", IRE
# Transactions on Information Theory 6) puts the border at 0.98 deviations and the levels at 0.45
# and 1.51, which is 1 to 3.3; 3 did as well.
_BORDER = 0.98
_INNER, _OUTER = 1, 3
_IN_A_BYTE = 4
_PLACES = np.array([1, 4, 16, 64], dtype=np.uint8)
_LEVELS = np.array([-_INNER, _INNER, -_OUTER, _OUTER], dtype=np.int8)
# The four components of each byte, looked up as one number of four bytes: a row of four for each
# would take ten times as long. And how many of them are outer ones.
_UNPACKED = _LEVELS[(np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3]
_UNPACKED_AT_ONCE = np.ascontiguousarray(_UNPACKED).view(np.uint32).ravel()
_OUTER_COUNTS = np.count_nonzero(np.abs(_UNPACKED) == _OUTER, axis=1).astype(np.uint8)
# What a token of one question counts for another that is asked with it: it may tell what both are
# about. Chosen on the lore: 0 to 0.15 found as much, 0.2 to 0.6 ever less.
_ASIDE = 0.1
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


@dataclass(frozen=True, slots=True)
class TokenCodes:
    """A form of codes: 8 bits or 2 for each component of a token's unit vector.

    With 8 a component within -0.5..0.5 is kept to 0.002. With 2, a quarter of that, a vector keeps
    its direction to a cosine of 0.94 or so, and what a passage meets is the mean of many.
    """

    bits: int

    def encode(self, vectors: NDArray[np.float32]) -> bytes:
        """Returns the codes of unit vectors, shape [count, size]; a size is a multiple of 4."""
        if self.bits == 8:
            scaled = np.clip(np.rint(vectors * _SCALE), -_LARGEST, _LARGEST)
            return bytes(scaled.astype(np.int8).tobytes())
        border = _BORDER / np.sqrt(vectors.shape[1])
        levels = (vectors > 0).astype(np.uint8) + 2 * (np.abs(vectors) > border).astype(np.uint8)
        return bytes((levels.reshape(-1, _IN_A_BYTE) @ _PLACES).tobytes())

    def levels(
        self, codes: bytes, size: int
    ) -> tuple[NDArray[np.int8], NDArray[np.float32] | float]:
        """Returns vectors as small whole numbers, shape [count, size], and what their unit is.

        The latter is one number, or one for each vector, shape [count, 1].
        """
        if self.bits == 8:
            return np.frombuffer(codes, dtype=np.int8).reshape(-1, size), 1 / _SCALE
        packed = np.frombuffer(codes, dtype=np.uint8)
        levels = _UNPACKED_AT_ONCE.take(packed).view(np.int8).reshape(-1, size)
        outer = _OUTER_COUNTS.take(packed).reshape(len(levels), -1).sum(axis=1, keepdims=True)
        lengths = np.sqrt(_INNER**2 * size + (_OUTER**2 - _INNER**2) * outer)
        return levels, (1 / lengths).astype(np.float32)

    def count(self, codes: bytes, size: int) -> int:
        """Returns of how many tokens the codes are."""
        return len(codes) * 8 // self.bits // size


FINE = TokenCodes(8)
COARSE = TokenCodes(2)


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


def weights_of_parts(
    weights: NDArray[np.float32], starts: NDArray[np.int64], parts: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """Returns the weights of a text's tokens in each of its parts, a tenth in the others.

    Shape [parts, count]; parts without tokens, which were beyond what is read, have no row.

    Args:
        weights: of the tokens, shape [count].
        starts: where the tokens begin, shape [count].
        parts: where the parts begin and end.
    """
    inside = np.array([(starts >= start) & (starts < end) for start, end in parts])
    return np.where(inside[inside.any(axis=1)], weights, np.float32(_ASIDE) * weights)


def met_share(
    query: NDArray[np.float32],
    weights: NDArray[np.float32],
    passages: Sequence[bytes],
    form: TokenCodes = FINE,
) -> list[float]:
    """Returns how far each passage meets the query's tokens: 0 like any other text, 1 in full.

    Of a query that asks for several things, it is how far a passage meets the one that it meets
    best: each of them has passages of its own.

    Args:
        query: unit vectors of the query's tokens, shape [count, size].
        weights: how much each of them counts, above 0, shape [count]; of a query in parts,
            shape [parts, count].
        passages: the codes of each passage; 0 for one without tokens.
        form: of the codes.
    """
    shares = np.zeros(len(passages))
    filled = [index for index, codes in enumerate(passages) if codes]
    if len(query) and filled:
        # All passages stand below each other: what is done to each of fifty is what costs.
        size = query.shape[1]
        ends = np.cumsum([form.count(passages[index], size) for index in filled])
        starts = np.concatenate(([0], ends[:-1]))
        levels, unit = form.levels(b"".join(passages[index] for index in filled), size)
        cosines = _products(levels, query) * unit
        nearest = np.maximum.reduceat(cosines, starts, axis=0).astype(np.float64)
        ways = np.atleast_2d(weights).astype(np.float64)
        met = (nearest @ (ways / ways.sum(axis=1, keepdims=True)).T).max(axis=1)
        shares[filled] = np.clip((met - _UNRELATED) / (1 - _UNRELATED), 0.0, 1.0)
    return [float(share) for share in shares]


def _products(codes: NDArray[np.int8], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the product of each token of the codes with each of the query.

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
