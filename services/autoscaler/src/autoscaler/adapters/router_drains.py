"""Draining servers through every router task."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc
import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration

from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc

__all__ = ["GrpcRouterDrains"]

log = structlog.get_logger(__name__)

_SHORTEST_LEASE_SECONDS = 1.0
_LONGEST_LEASE_SECONDS = 3600.0


class GrpcRouterDrains:
    """Asks all routers at once; one that does not answer counts as "not known"."""

    def __init__(
        self, channels: Mapping[str, grpc.aio.Channel], *, timeout_seconds: float = 3.0
    ) -> None:
        self._stubs = {
            target: ai_router_pb2_grpc.AiRouterServiceStub(channel)
            for target, channel in channels.items()
        }
        self._timeout_seconds = timeout_seconds

    async def drain(self, server_id: str, lease_seconds: float) -> dict[str, int | None]:
        """Ask every router; return the requests still running per router, None for no answer."""
        bounded = min(max(lease_seconds, _SHORTEST_LEASE_SECONDS), _LONGEST_LEASE_SECONDS)
        lease = Duration()
        lease.FromNanoseconds(round(bounded * 1e9))
        request = ai_router_pb2.DrainServerRequest(server_id=server_id, lease_duration=lease)
        targets = list(self._stubs)
        answers = await asyncio.gather(*(self._drain_one(t, request) for t in targets))
        return dict(zip(targets, answers, strict=True))

    async def resume(self, server_id: str) -> None:
        """Ask every router to use the server again; one that misses it does so by lease expiry."""
        await asyncio.gather(*(self._resume_one(t, server_id) for t in self._stubs))

    async def _drain_one(
        self, target: str, request: ai_router_pb2.DrainServerRequest
    ) -> int | None:
        try:
            response = await self._stubs[target].DrainServer(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return 0  # a router that does not know the server sends it nothing
            log.warning(
                "drain_unanswered",
                router=target,
                server_id=request.server_id,
                code=error.code().name,
            )
            return None
        return response.running_requests

    async def _resume_one(self, target: str, server_id: str) -> None:
        try:
            await self._stubs[target].ResumeServer(
                ai_router_pb2.ResumeServerRequest(server_id=server_id),
                timeout=self._timeout_seconds,
            )
        except grpc.aio.AioRpcError as error:
            log.warning(
                "resume_unanswered", router=target, server_id=server_id, code=error.code().name
            )
