"""Which calls to the strict bus fail, and how: planned one by one, or by chance under a seed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from enum import Enum, auto
from random import Random

__all__ = ["Fault", "FaultPlan"]


class Fault(Enum):
    """One way in which a call to AWS goes wrong."""

    THROTTLED = auto()
    """Refused before anything happened: too many requests."""
    SERVER_ERROR = auto()
    """HTTP 503 before anything happened."""
    ANSWER_LOST = auto()
    """Everything happened, and the answer is HTTP 500."""
    DISCONNECTED = auto()
    """Everything happened, and the connection ends without an answer."""
    GARBLED = auto()
    """Everything happened, and the answer is a web page."""
    SLOW = auto()
    """Everything happens, after a while."""
    PARTIAL = auto()
    """Every second entry of a batch happens; the others fail on the server's side."""
    PARTIAL_THROTTLED = auto()
    """Every second entry of a batch happens; the others are throttled."""


class FaultPlan:
    """Decides for each call. Without a plan and without chances nothing fails.

    Args:
        chances: the share of calls that each fault meets, of all operations.
        seed: makes the chances repeatable.
        slow_seconds: how late a slow answer is.
    """

    def __init__(
        self,
        chances: Mapping[Fault, float] | None = None,
        *,
        seed: int = 7,
        slow_seconds: float = 0.5,
    ) -> None:
        self.slow_seconds = slow_seconds
        self.met: defaultdict[tuple[str, Fault], int] = defaultdict(int)
        self._chances = dict(chances or {})
        self._random = Random(seed)  # noqa: S311  # repeatable, no secret
        self._planned: defaultdict[str, deque[Fault]] = defaultdict(deque)

    def plan(self, operation: str, *faults: Fault) -> None:
        """Has the next calls of `operation`, such as `PublishBatch`, meet these, one each."""
        self._planned[operation].extend(faults)

    def clear(self) -> None:
        """Lets everything succeed from now on."""
        self._chances = {}
        self._planned.clear()

    def next(self, operation: str) -> Fault | None:
        """Returns what the present call meets; None: nothing."""
        fault = self._planned[operation].popleft() if self._planned[operation] else self._drawn()
        if fault is not None:
            self.met[operation, fault] += 1
        return fault

    def _drawn(self) -> Fault | None:
        draw = self._random.random()
        for fault, chance in self._chances.items():
            draw -= chance
            if draw < 0:
                return fault
        return None
