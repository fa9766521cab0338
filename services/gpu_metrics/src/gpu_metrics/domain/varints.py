"""Numbers out of their base-128 form, thousands at once.

The form is that of Protocol Buffers ("Encoding", Base 128 Varints): seven bits to a byte, the
lowest first, and a byte of 128 or more says that another follows.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["numbers_of"]

# So many bytes of a number are taken at once, as one machine word; more are hardly ever needed.
_WORD = 8
_LEAD = bytes(_WORD - 1)

_CLOSING_UP = tuple(
    tuple(map(np.uint64, each))
    for each in (
        (0x007F007F007F007F, 0x7F007F007F007F00, 1),
        (0x00003FFF00003FFF, 0x3FFF00003FFF0000, 2),
        (0x000000000FFFFFFF, 0x0FFFFFFF00000000, 4),
    )
)


def numbers_of(encoded: bytes) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the numbers that `encoded` consists of, and at which place of it each ends."""
    # Before the first number there is enough for a word that ends with it.
    padded = np.frombuffer(b"".join((_LEAD, encoded)), np.uint8)
    ends = (padded[_WORD - 1 :] < 0x80).nonzero()[0]
    if not len(ends):
        return np.empty(0), ends
    lengths = np.empty_like(ends)
    lengths[0] = ends[0] + 1
    np.subtract(ends[1:], ends[:-1], out=lengths[1:])
    words = np.ndarray((len(encoded),), "<u8", padded, strides=(1,)).take(ends)
    # What is of the number before falls out below.
    spare = np.minimum(lengths, _WORD)
    spare *= -8
    spare += 8 * _WORD
    words >>= spare.view(np.uint64)
    # Groups of seven bits close up, then those of fourteen, then those of twenty-eight.
    for lower, upper, distance in _CLOSING_UP:
        highs = words & upper
        highs >>= distance
        words &= lower
        words |= highs
    # Of fifty-six bits, which as signed ones become floats sooner.
    numbers = words.view(np.int64).astype(np.float64)
    for place in (lengths > _WORD).nonzero()[0]:
        end = int(ends[place]) + 1
        numbers[place] = _number(encoded[end - int(lengths[place]) : end])
    return numbers, ends


def _number(encoded: bytes) -> int:
    number = 0
    for byte in reversed(encoded):
        number = number << 7 | byte & 0x7F
    return number & 0xFFFFFFFFFFFFFFFF
