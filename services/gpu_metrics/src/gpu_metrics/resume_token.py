"""Where a subscription resumes: a run of the collector, a revision of its view, a tier filter."""

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_metrics.domain.readings import Tier
from servicekit.errors import ResumeTokenTooOld

__all__ = ["ResumeToken", "UnknownResumeToken"]


class UnknownResumeToken(ResumeTokenTooOld):
    """The token was given out by another run of the collector, or for another tier filter."""

    reason = "RESUME_TOKEN_UNKNOWN"


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """A point of a subscription; opaque to clients, who hand it back as they got it."""

    epoch: str
    revision: int
    tiers: frozenset[Tier]

    def encode(self) -> str:
        """Return the token as text."""
        return f"{self.epoch}.{self.revision}.{_filter_text(self.tiers)}"

    @classmethod
    def resume(cls, text: str, *, epoch: str, tiers: frozenset[Tier]) -> "ResumeToken":
        """Return the token a client handed back.

        Raises `UnknownResumeToken` when it is not of this epoch and filter: the reader's state
        then cannot be completed by changes, it has to start again without a token.
        """
        parts = text.split(".")
        if len(parts) != 3 or not parts[1].isdecimal():
            raise UnknownResumeToken("the resume token is none of this collector's")
        if parts[0] != epoch:
            raise UnknownResumeToken(
                "the resume token is of another run of the collector; watch again without it"
            )
        if parts[2] != _filter_text(tiers):
            raise UnknownResumeToken(
                "the resume token is of a subscription to other tiers; watch again without it"
            )
        return cls(epoch, int(parts[1]), tiers)


def _filter_text(tiers: Iterable[Tier]) -> str:
    return "".join(str(tier.value) for tier in sorted(tiers, key=lambda tier: tier.value)) or "0"
