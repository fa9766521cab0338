"""The errors a caller may see; each fixes a status code and a reason.

    ServiceError
    ├── InvalidRequest        INVALID_ARGUMENT     the request cannot be right; do not repeat it
    ├── NotFound              NOT_FOUND            the thing named does not exist
    ├── AlreadyExists         ALREADY_EXISTS       the thing to make is there
    ├── FailedPrecondition    FAILED_PRECONDITION  the state forbids it; change that first
    ├── OutOfRange            OUT_OF_RANGE         a position outside what is kept
    │   └── ResumeTokenTooOld
    ├── Unauthenticated       UNAUTHENTICATED      no identity
    ├── PermissionDenied      PERMISSION_DENIED    an identity that may not
    ├── ResourceExhausted     RESOURCE_EXHAUSTED   too much at once; wait, then repeat
    │   ├── Overloaded
    │   ├── RateLimited
    │   └── SlowSubscriber
    ├── Aborted               ABORTED              lost against somebody else; repeat from the start
    ├── Unavailable           UNAVAILABLE          not now; wait, then repeat
    │   ├── OutOfMemory
    │   └── ShuttingDown
    ├── DeadlineExceeded      DEADLINE_EXCEEDED    time ran out
    └── Internal              INTERNAL             our fault

This module imports nothing but the standard library's pure parts, so domain code may raise from it.
Services subclass these for reasons of their own. Messages are written for callers: they never hold
the text of another exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import ClassVar

__all__ = [
    "Aborted",
    "AlreadyExists",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidRequest",
    "NotFound",
    "OutOfMemory",
    "OutOfRange",
    "Overloaded",
    "PermissionDenied",
    "RateLimited",
    "ResourceExhausted",
    "ResumeTokenTooOld",
    "ServiceError",
    "ShuttingDown",
    "SlowSubscriber",
    "StatusCode",
    "Unauthenticated",
    "Unavailable",
]


class StatusCode(IntEnum):
    """The gRPC status codes errors use, by their numbers on the wire (google.rpc.Code)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong, and what would be right."""

    field: str
    description: str


class ServiceError(Exception):
    """An error that reaches the caller as it is; subclasses fix `code` and `reason`.

    Attributes:
        message: one or two sentences for the caller, saying what to do.
        metadata: facts for programs, sent in `google.rpc.ErrorInfo`.
        retry_after_seconds: when to try again, sent as `google.rpc.RetryInfo`; None sends none.
        field_violations: sent as `google.rpc.BadRequest`.
    """

    code: ClassVar[StatusCode] = StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    default_retry_after_seconds: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        field_violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.retry_after_seconds = (
            self.default_retry_after_seconds if retry_after_seconds is None else retry_after_seconds
        )
        self.field_violations = tuple(field_violations)


class InvalidRequest(ServiceError):
    """The request cannot be right as it stands."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class NotFound(ServiceError):
    """The thing the request names does not exist."""

    code = StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(ServiceError):
    """The thing the request wants to make exists."""

    code = StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(ServiceError):
    """The present state does not allow the request."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class OutOfRange(ServiceError):
    """The request names a position outside what is kept."""

    code = StatusCode.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class ResumeTokenTooOld(OutOfRange):
    """The stream cannot continue after the token given; start again without one."""

    reason = "RESUME_TOKEN_TOO_OLD"


class Unauthenticated(ServiceError):
    """The caller showed no identity."""

    code = StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """The caller's identity may not call the method."""

    code = StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class ResourceExhausted(ServiceError):
    """Too much was asked at once."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"
    default_retry_after_seconds = 1.0


class Overloaded(ResourceExhausted):
    """The server has as many calls as it takes."""

    reason = "OVERLOADED"


class RateLimited(ResourceExhausted):
    """The caller, or the world it asks about, has used up its rate; `metadata` says which."""

    reason = "RATE_LIMITED"


class SlowSubscriber(ResourceExhausted):
    """The subscriber read too slowly and was dropped; it may resume where it was."""

    reason = "SLOW_SUBSCRIBER"


class Aborted(ServiceError):
    """The request lost against another one."""

    code = StatusCode.ABORTED
    reason = "ABORTED"


class Unavailable(ServiceError):
    """Something needed is away for now."""

    code = StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    default_retry_after_seconds = 1.0


class ShuttingDown(Unavailable):
    """This server is about to stop; another one, or its successor, takes the call."""

    reason = "SHUTTING_DOWN"
    default_retry_after_seconds = 0.1


class OutOfMemory(Unavailable):
    """This process has no memory left; another one, or its successor, takes the call."""

    reason = "OUT_OF_MEMORY"


class DeadlineExceeded(ServiceError):
    """The time for the call ran out."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Internal(ServiceError):
    """Something is wrong on our side."""
