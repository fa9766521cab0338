"""The SQLSTATEs of work on whole worlds (see migration 0030) as the domain's errors."""

from knowledge_base.domain.world_errors import (
    JobNotCancellable,
    JobNotFound,
    JobTakenAway,
    WorldArchived,
    WorldIdTaken,
)
from servicekit.errors import ServiceError

__all__ = ["world_error"]


def world_error(sqlstate: str | None) -> ServiceError | None:
    """Returns the error a SQLSTATE stands for, None when it is none of these."""
    match sqlstate:
        case "KB030":
            return WorldArchived("The world is archived and read-only; see UnarchiveWorld.")
        case "KB031":
            return JobNotFound("There is no job with this job_id; see ListJobs.")
        case "KB032":
            return JobNotCancellable("An erasure that has begun goes on to its end.")
        case "KB033":
            return WorldIdTaken(
                "There is a world of the id the export has, or it is being made or erased; import "
                "without keep_world_id, or erase that world first."
            )
        case "KB035":
            return JobTakenAway("The job was cancelled, has ended, or was silent for too long.")
    return None
