"""What becomes of outbox rows after the topic has answered; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servicekit.errors import ServiceError, StatusCode

__all__ = ["Deferred", "Parked", "RetryPolicy", "Verdict", "judge"]

# What is wrong with such an event no repeat changes.
_HOPELESS = frozenset({StatusCode.INVALID_ARGUMENT, StatusCode.OUT_OF_RANGE})
_REASON_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a row is tried that the topic refuses while it takes others."""

    attempts: int
    first_delay_seconds: float
    maximum_delay_seconds: float

    def delay_seconds(self, attempts: int) -> float:
        """Returns the pause after the `attempts`-th refusal, from 1: doubled each time."""
        doubled = self.first_delay_seconds * 2.0 ** min(attempts - 1, 60)
        return min(self.maximum_delay_seconds, doubled)


@dataclass(frozen=True, slots=True)
class Parked:
    """A row that is given up, and why."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """A row that waits while others pass."""

    position: int
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with each row of a batch; a row in no list stays as it is.

    Attributes:
        accepted: positions of rows the topic has, to be deleted.
        parked: to be set aside for people.
        deferred: to be tried later.
        topic_away: nothing was accepted and something waits: pause before the next batch.
    """

    accepted: tuple[int, ...]
    parked: tuple[Parked, ...]
    deferred: tuple[Deferred, ...]
    topic_away: bool


def judge(
    rows: Sequence[tuple[int, int]],
    failures: Mapping[int, ServiceError],
    policy: RetryPolicy,
) -> Verdict:
    """Returns what becomes of a batch.

    A failure counts against a row only when the topic accepted another one of the batch: while the
    topic is away nothing is counted, so no outage, however long, parks an event.

    Args:
        rows: position and earlier attempts of every row that was tried.
        failures: by position, why a row was not accepted; all others were.
        policy: how often to try.
    """
    accepted = tuple(position for position, _ in rows if position not in failures)
    parked: list[Parked] = []
    deferred: list[Deferred] = []
    waiting = 0
    for position, attempts in rows:
        error = failures.get(position)
        if error is None:
            continue
        # Other refusals, of permission for example, may end while they are being put right.
        if error.code in _HOPELESS or (accepted and attempts + 1 >= policy.attempts):
            reason = f"{error.reason}: {error.message}"
            parked.append(Parked(position, reason[:_REASON_CHARACTERS]))
        elif accepted:
            deferred.append(Deferred(position, policy.delay_seconds(attempts + 1)))
        else:
            waiting += 1
    return Verdict(accepted, tuple(parked), tuple(deferred), topic_away=waiting > 0)
