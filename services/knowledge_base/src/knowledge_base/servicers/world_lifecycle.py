"""The methods for worlds as wholes: archiving, forking, erasing, exporting, importing, watching."""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import (
    world_changes_pb2,
    world_jobs_pb2,
    world_records_pb2,
    worlds_pb2,
)
from knowledge_base.domain.text import parse_world_id
from knowledge_base.domain.worlds import ForkOrder, Job
from knowledge_base.memory import WorldMemory
from knowledge_base.wire.times import optional_time
from knowledge_base.wire.world_changes import watch_message
from knowledge_base.wire.world_jobs import job_message
from knowledge_base.wire.world_records import export_message, record_of
from knowledge_base.wire.worlds import world_message
from knowledge_base.world_jobs import WorldJobs
from knowledge_base.world_records import ImportOrder, Record, WorldRecords
from knowledge_base.world_watch import WorldWatch
from servicekit.errors import InvalidRequest

__all__ = ["WorldLifecycleMethods"]


class WorldLifecycleMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for worlds as wholes."""

    _memory: WorldMemory
    _jobs: WorldJobs
    _records: WorldRecords
    _watch: WorldWatch

    async def ArchiveWorld(  # noqa: N802  # named by the proto
        self, request: worlds_pb2.ArchiveWorldRequest, context: Any
    ) -> worlds_pb2.ArchiveWorldResponse:
        """Makes a world read-only."""
        world = await self._jobs.set_archived(
            uuid.UUID(request.request_id), _world_id(request), archived=True
        )
        return worlds_pb2.ArchiveWorldResponse(world=world_message(world))

    async def UnarchiveWorld(  # noqa: N802  # named by the proto
        self, request: worlds_pb2.UnarchiveWorldRequest, context: Any
    ) -> worlds_pb2.UnarchiveWorldResponse:
        """Lets an archived world be written to again."""
        world = await self._jobs.set_archived(
            uuid.UUID(request.request_id), _world_id(request), archived=False
        )
        return worlds_pb2.UnarchiveWorldResponse(world=world_message(world))

    async def ForkWorld(  # noqa: N802  # named by the proto
        self, request: world_jobs_pb2.ForkWorldRequest, context: Any
    ) -> world_jobs_pb2.ForkWorldResponse:
        """Begins to copy a world."""
        order = ForkOrder(
            _world_id(request),
            request.name,
            request.description,
            optional_time(request, "end_time"),
            request.with_subscription,
        )
        job = await self._jobs.fork(uuid.UUID(request.request_id), order)
        return world_jobs_pb2.ForkWorldResponse(job=self._job(job))

    async def EraseWorld(  # noqa: N802  # named by the proto
        self, request: world_jobs_pb2.EraseWorldRequest, context: Any
    ) -> world_jobs_pb2.EraseWorldResponse:
        """Hides a world and begins to remove it."""
        job = await self._jobs.erase(
            uuid.UUID(request.request_id),
            _world_id(request),
            rewrite_tables=request.rewrite_tables,
        )
        return world_jobs_pb2.EraseWorldResponse(job=self._job(job))

    async def GetJob(  # noqa: N802  # named by the proto
        self, request: world_jobs_pb2.GetJobRequest, context: Any
    ) -> world_jobs_pb2.GetJobResponse:
        """Returns a job."""
        job = await self._jobs.get_job(uuid.UUID(request.job_id))
        return world_jobs_pb2.GetJobResponse(job=self._job(job))

    async def ListJobs(  # noqa: N802  # named by the proto
        self, request: world_jobs_pb2.ListJobsRequest, context: Any
    ) -> world_jobs_pb2.ListJobsResponse:
        """Returns jobs, newest first."""
        page = await self._jobs.list_jobs(
            request.page_size or 50, request.page_token, unfinished_only=request.unfinished_only
        )
        return world_jobs_pb2.ListJobsResponse(
            jobs=map(self._job, page.items), next_page_token=page.next_page_token
        )

    async def CancelJob(  # noqa: N802  # named by the proto
        self, request: world_jobs_pb2.CancelJobRequest, context: Any
    ) -> world_jobs_pb2.CancelJobResponse:
        """Ends a fork or an import."""
        job = await self._jobs.cancel_job(uuid.UUID(request.job_id))
        return world_jobs_pb2.CancelJobResponse(job=self._job(job))

    async def ExportWorld(  # noqa: N802  # named by the proto
        self, request: world_records_pb2.ExportWorldRequest, context: Any
    ) -> AsyncIterator[world_records_pb2.ExportWorldResponse]:
        """Streams everything a world holds."""
        steps = self._records.export(_world_id(request), request.resume_token)
        async with aclosing(steps):
            async for step in steps:
                yield export_message(step)

    async def ImportWorld(  # noqa: N802  # named by the proto
        self,
        request_iterator: AsyncIterator[world_records_pb2.ImportWorldRequest],
        context: Any,
    ) -> world_records_pb2.ImportWorldResponse:
        """Takes in a world that was exported."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("step") != "begin":
            raise InvalidRequest("The first message of an import must be `begin`.")
        imported = await self._records.import_world(
            uuid.UUID(first.begin.request_id),
            ImportOrder(first.begin.name, first.begin.keep_world_id),
            _imported(requests),
        )
        world = await self._memory.get_world(imported.world_id, "")
        return world_records_pb2.ImportWorldResponse(
            world=world_message(world),
            imported_rows=imported.imported_rows,
            embedded_texts=imported.embedded_texts,
            job_id=str(imported.job_id),
        )

    async def WatchWorld(  # noqa: N802  # named by the proto
        self, request: world_changes_pb2.WatchWorldRequest, context: Any
    ) -> AsyncIterator[world_changes_pb2.WatchWorldResponse]:
        """Streams what changes in a world."""
        steps = self._watch.watch(_world_id(request), request.resume_token)
        async with aclosing(steps):
            async for step in steps:
                yield watch_message(step)

    def _job(self, job: Job) -> world_jobs_pb2.Job:
        return job_message(job, self._jobs.backups_gone_time(job))


def _world_id(request: Any) -> uuid.UUID:
    return parse_world_id("world_id", request.world_id)


async def _imported(
    requests: AsyncIterator[world_records_pb2.ImportWorldRequest],
) -> AsyncIterator[Record]:
    async for request in requests:
        if request.WhichOneof("step") != "record":
            raise InvalidRequest("`begin` comes once, first; then only records follow.")
        yield record_of(request.record)
