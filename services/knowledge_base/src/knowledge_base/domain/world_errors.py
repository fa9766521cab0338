"""The errors of work on whole worlds that callers see.

FailedPrecondition
├── WorldArchived         the world is read-only
└── JobNotCancellable     an erasure goes on
NotFound
└── JobNotFound
AlreadyExists
└── WorldIdTaken          an import would keep an id that is in use
InvalidRequest
└── InvalidWorldRecords   what is imported is no whole export
Aborted
└── JobTakenAway          an import was cancelled or taken for broken off
OutOfRange
└── WorldChanged          an export cannot go on where it was
ResourceExhausted
└── TooManyExports
"""

from servicekit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)

__all__ = [
    "InvalidWorldRecords",
    "JobNotCancellable",
    "JobNotFound",
    "JobTakenAway",
    "TooManyExports",
    "WorldArchived",
    "WorldChanged",
    "WorldIdTaken",
]


class WorldArchived(FailedPrecondition):
    """The world is archived: it is read and not written to."""

    reason = "WORLD_ARCHIVED"


class JobNotCancellable(FailedPrecondition):
    """An erasure has begun and goes on."""

    reason = "JOB_NOT_CANCELLABLE"


class JobNotFound(NotFound):
    """There is no job of this id, or it ended long ago."""

    reason = "JOB_NOT_FOUND"


class WorldIdTaken(AlreadyExists):
    """There is a world of the id that an import was to keep."""

    reason = "WORLD_ID_TAKEN"


class InvalidWorldRecords(InvalidRequest):
    """The records of an import are not those of a whole export, or do not fit here."""

    reason = "INVALID_WORLD_RECORDS"


class JobTakenAway(Aborted):
    """An import was cancelled, or was silent for so long that it was taken for broken off."""

    reason = "JOB_TAKEN_AWAY"


class WorldChanged(OutOfRange):
    """The world has changed since the export began, so the export cannot go on after this token."""

    reason = "WORLD_CHANGED"


class TooManyExports(ResourceExhausted):
    """As many exports and imports run as this process takes."""

    reason = "TOO_MANY_EXPORTS"
    default_retry_after_seconds = 5.0
