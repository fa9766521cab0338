"""Why a request was not answered; each reason tells the caller something else to do.

Overloaded          RESOURCE_EXHAUSTED  servers and queue are full: wait, then repeat
DeadlineUnreachable RESOURCE_EXHAUSTED  the predicted wait is longer than the caller can wait
NoCapacity          UNAVAILABLE         no server of the tier runs; it was reported as demand
UpstreamFailed      UNAVAILABLE         every server tried failed before its first token
UpstreamFailedMidstream UNAVAILABLE     the server failed after text was sent: it is incomplete
RejectedByModel     INVALID_ARGUMENT    the model server refuses the request as it stands
UnknownServer       NOT_FOUND           no server of that name
"""

from __future__ import annotations

from servicekit.errors import InvalidRequest, NotFound, ResourceExhausted, Unavailable

__all__ = [
    "DeadlineUnreachable",
    "NoCapacity",
    "Overloaded",
    "RejectedByModel",
    "UnknownServer",
    "UpstreamFailed",
    "UpstreamFailedMidstream",
]


class Overloaded(ResourceExhausted):
    """Servers and queue are full, or somebody more urgent took the place in the queue."""

    reason = "OVERLOADED"


class DeadlineUnreachable(ResourceExhausted):
    """The predicted wait leaves no time for the answer."""

    reason = "DEADLINE_UNREACHABLE"


class NoCapacity(Unavailable):
    """No server of the wanted tier, nor of one that may stand in, takes requests."""

    reason = "NO_CAPACITY"
    default_retry_after_seconds = 5.0


class UpstreamFailed(Unavailable):
    """Every server tried failed before its first token; nothing was sent, so repeating is safe."""

    reason = "UPSTREAM_FAILED"


class UpstreamFailedMidstream(Unavailable):
    """The server failed after text was sent; the text is incomplete."""

    reason = "UPSTREAM_FAILED_MIDSTREAM"


class RejectedByModel(InvalidRequest):
    """The model server refuses the request as it stands."""

    reason = "REJECTED_BY_MODEL"


class UnknownServer(NotFound):
    """No server of that name is known to this router."""

    reason = "UNKNOWN_SERVER"
