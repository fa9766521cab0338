"""Long work on whole worlds, and what is told of their changes."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

__all__ = ["ForkOrder", "Job", "JobKind", "JobState", "WorldChange", "WorldLog"]


class JobKind(StrEnum):
    """What a job does."""

    FORK = "fork"
    ERASE = "erase"
    IMPORT = "import"


class JobState(StrEnum):
    """How far a job is; see `Job` in the contract."""

    RUNNING = "running"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Job:
    """Long work on a world.

    Attributes:
        source_id: the world forked or erased.
        target_id: the world made.
        purging: whether all that is left to do is to clean the tables after an erasure.
        rows_gone_time: of an erasure: when no row of the world was left.
        storage_gone_time: of an erasure: when dead rows were gone from the tables too.
    """

    job_id: uuid.UUID
    kind: JobKind
    state: JobState
    source_id: uuid.UUID | None
    target_id: uuid.UUID | None
    done_rows: int
    total_rows: int
    create_time: datetime
    update_time: datetime
    end_time: datetime | None
    failure_reason: str
    purging: bool
    rewrite_tables: bool
    rows_gone_time: datetime | None
    storage_gone_time: datetime | None

    def backups_gone_time(self, now: datetime, retention: timedelta) -> datetime:
        """Returns when the youngest backup that can hold the erased world is past its retention."""
        return (self.rows_gone_time or now) + retention


@dataclass(frozen=True, slots=True)
class ForkOrder:
    """What a copy of a world is to be; `end_time` None means all that happened."""

    source_id: uuid.UUID
    name: str
    description: str
    end_time: datetime | None
    with_subscription: bool


@dataclass(frozen=True, slots=True)
class WorldChange:
    """One change of a world; `number` counts its changes in the order of their commits."""

    number: int
    kind: str
    subject_id: uuid.UUID | None
    record_time: datetime


@dataclass(frozen=True, slots=True)
class WorldLog:
    """What is kept of a world's changes: numbers `oldest` to `newest`, none when oldest > newest.

    `incarnation` tells a world from an earlier one of the same id.
    """

    incarnation: uuid.UUID
    oldest: int
    newest: int

    def token(self, number: int) -> str:
        """Returns the resume token after a change."""
        return f"{self.incarnation.hex}.{number}"

    def position(self, token: str) -> int | None:
        """Returns the number of the change after which a token resumes.

        None when it is of another world or incarnation, or changes after it are forgotten.
        """
        incarnation, _, digits = token.partition(".")
        if incarnation != self.incarnation.hex or not (digits.isascii() and digits.isdigit()):
            return None
        number = int(digits) if len(digits) < 19 else -1  # more is no number of a change
        return number if self.oldest - 1 <= number <= self.newest else None
