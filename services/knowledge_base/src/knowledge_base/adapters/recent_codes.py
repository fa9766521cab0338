"""Remembers what a reranker keeps of the passages that searches met lately."""

from collections import OrderedDict

__all__ = ["RecentCodes"]


class RecentCodes:
    """Codes by reranker and hash of the passage's text, those used last, within a number of bytes.

    Codes follow from the text alone, so they stay right whatever becomes of its passage, also when
    a database is put back to an earlier time. They are of lore, which belongs to no world.

    Args:
        limit: most bytes of codes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._codes: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()

    def get(self, key: tuple[str, bytes]) -> bytes | None:
        """Returns the codes, None when they are not remembered."""
        codes = self._codes.get(key)
        if codes is not None:
            self._codes.move_to_end(key)
        return codes

    def put(self, key: tuple[str, bytes], codes: bytes) -> None:
        """Remembers codes, at the cost of those that were not used for longest."""
        self._bytes += len(codes) - len(self._codes.pop(key, b""))
        self._codes[key] = codes
        while self._bytes > self._limit:
            self._bytes -= len(self._codes.popitem(last=False)[1])
