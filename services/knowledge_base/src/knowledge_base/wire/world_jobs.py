"""Jobs on worlds on the wire."""

from datetime import datetime

from gaming.knowledge_base.v1 import world_jobs_pb2 as pb
from knowledge_base.domain.worlds import Job, JobKind, JobState
from knowledge_base.wire.times import optional_stamp, stamp

__all__ = ["job_message"]

_KINDS = {
    JobKind.FORK: pb.JOB_KIND_FORK,
    JobKind.ERASE: pb.JOB_KIND_ERASE,
    JobKind.IMPORT: pb.JOB_KIND_IMPORT,
}
_STATES = {
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.UNDOING: pb.JOB_STATE_UNDOING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}


def job_message(job: Job, backups_gone_time: datetime) -> pb.Job:
    """Returns a job; `backups_gone_time` is told of an erasure only."""
    erasure = None
    if job.kind is JobKind.ERASE:
        erasure = pb.ErasureReport(
            rows_gone_time=optional_stamp(job.rows_gone_time),
            storage_gone_time=optional_stamp(job.storage_gone_time),
            backups_gone_time=stamp(backups_gone_time),
        )
    world_id = job.target_id if job.kind is JobKind.IMPORT else job.source_id
    return pb.Job(
        job_id=str(job.job_id),
        kind=_KINDS[job.kind],
        state=_STATES[job.state],
        world_id=str(world_id),
        result_world_id=str(job.target_id) if job.target_id else "",
        done_rows=job.done_rows,
        total_rows=job.total_rows,
        create_time=stamp(job.create_time),
        update_time=stamp(job.update_time),
        end_time=optional_stamp(job.end_time),
        failure_reason=job.failure_reason if job.state is JobState.FAILED else "",
        erasure=erasure,
    )
