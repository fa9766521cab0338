"""Where a subscription resumes: a run of the collector, a revision of its view, a filter."""

import hashlib
import json
from dataclasses import dataclass

from gpu_metrics.domain.fleet_filter import FleetFilter
from servicekit.errors import ResumeTokenTooOld

__all__ = ["ResumeToken", "UnknownResumeToken"]


class UnknownResumeToken(ResumeTokenTooOld):
    """The token was given out by another run of the collector, or for another filter."""

    reason = "RESUME_TOKEN_UNKNOWN"


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """A point of a subscription; opaque to clients, who hand it back as they got it."""

    epoch: str
    revision: int
    wanted: FleetFilter

    def encode(self) -> str:
        """Return the token as text."""
        return f"{self.epoch}.{self.revision}.{_filter_text(self.wanted)}"

    @classmethod
    def resume(cls, text: str, *, epoch: str, wanted: FleetFilter) -> "ResumeToken":
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
        if parts[2] != _filter_text(wanted):
            raise UnknownResumeToken(
                "the resume token is of a subscription with another filter; watch again without it"
            )
        return cls(epoch, int(parts[1]), wanted)


def _filter_text(wanted: FleetFilter) -> str:
    """Return the tiers as digits, and a digest of whatever else is named."""
    tiers = "".join(map(str, sorted(tier.value for tier in wanted.tiers))) or "0"
    if wanted.by_tier_alone:
        return tiers
    # Whoever finds another filter of the same digest fools nobody but themselves.
    return f"{tiers}-{hashlib.sha256(json.dumps(wanted.names()).encode()).hexdigest()[:16]}"
