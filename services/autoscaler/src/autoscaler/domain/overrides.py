"""An operator's hold on a tier."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Override", "OverrideKind"]


class OverrideKind(StrEnum):
    """What kind of hold."""

    PIN = "pin"
    BOUNDS = "bounds"
    FREEZE = "freeze"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A hold that ends by itself; times are Unix seconds.

    PIN uses `desired`; BOUNDS uses `minimum` and, or, `maximum`, each None keeping the configured
    one; FREEZE keeps the size that is asked for.
    """

    kind: OverrideKind
    expire_time: float
    reason: str
    set_by: str
    desired: int | None = None
    minimum: int | None = None
    maximum: int | None = None

    def in_force(self, now: float) -> bool:
        """Whether the hold has not expired."""
        return now < self.expire_time
