"""How long to wait before a restart, and when to give up; pure, time is an argument."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

__all__ = ["RestartHistory", "RestartPolicy"]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """A process that ends is started again at once, while it dies soon again after doubled waits.

    One that keeps dying is given up.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 8.0
    give_up_after: int = 5
    window_seconds: float = 60.0
    soon_seconds: float = 10.0
    """Of one that lived longer it is not the start that ends it: it counts as the first end."""


@dataclass(frozen=True, slots=True)
class RestartHistory:
    """When a process ended, in monotonic seconds, within the policy's window."""

    policy: RestartPolicy = RestartPolicy()
    ends: tuple[float, ...] = ()

    def ended(self, now: float) -> RestartHistory:
        """The history after one more end at `now`."""
        kept = tuple(end for end in self.ends if now - end < self.policy.window_seconds)
        return RestartHistory(self.policy, (*kept, now))

    @property
    def hopeless(self) -> bool:
        """True when it ended too often within the window to be started again."""
        return len(self.ends) >= self.policy.give_up_after

    @property
    def delay_seconds(self) -> float:
        """How long to wait before the next start."""
        exponent = 0
        for former, later in reversed(list(itertools.pairwise(self.ends))):
            if later - former >= self.policy.soon_seconds:
                break
            exponent += 1
        if exponent == 0:
            return 0.0
        return min(self.policy.longest_seconds, self.policy.first_seconds * 2.0 ** (exponent - 1))
