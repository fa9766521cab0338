"""Which hosts went away lately, for readers that still have them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from gpu_metrics.domain.readings import Tier

__all__ = ["Removal", "RemovalLog"]


@dataclass(frozen=True, slots=True)
class Removal:
    """A host that went away, at which revision, and the tiers it ever served."""

    revision: int
    host_id: str
    tiers_ever: frozenset[Tier]


class RemovalLog:
    """The last `maximum` removals, oldest first; remembers up to where it is complete."""

    __slots__ = ("_complete_after", "_maximum", "_removals")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._removals: deque[Removal] = deque()
        self._complete_after = 0

    def add(self, removal: Removal) -> None:
        """Remember a removal, and forget the oldest one when there are too many."""
        if len(self._removals) >= self._maximum:
            self._complete_after = self._removals.popleft().revision
        self._removals.append(removal)

    def covers(self, revision: int) -> bool:
        """Return whether all removals after `revision` are known."""
        return revision >= self._complete_after

    def after(self, revision: int) -> Iterator[Removal]:
        """Yield the removals after `revision`, newest first."""
        for removal in reversed(self._removals):
            if removal.revision <= revision:
                return
            yield removal
