"""The methods for worlds."""

import uuid
from typing import Any

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import worlds_pb2
from knowledge_base.domain.text import parse_world_id
from knowledge_base.memory import WorldMemory
from knowledge_base.wire.worlds import world_message

__all__ = ["WorldMethods"]


class WorldMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for worlds."""

    _memory: WorldMemory

    async def CreateWorld(  # noqa: N802  # named by the proto
        self, request: worlds_pb2.CreateWorldRequest, context: Any
    ) -> worlds_pb2.CreateWorldResponse:
        """Makes a world."""
        world = await self._memory.create_world(
            uuid.UUID(request.request_id), request.name, request.description
        )
        return worlds_pb2.CreateWorldResponse(world=world_message(world))

    async def GetWorld(  # noqa: N802  # named by the proto
        self, request: worlds_pb2.GetWorldRequest, context: Any
    ) -> worlds_pb2.GetWorldResponse:
        """Returns one world."""
        world_id = parse_world_id("world_id", request.world_id) if request.world_id else None
        world = await self._memory.get_world(world_id, request.name)
        return worlds_pb2.GetWorldResponse(world=world_message(world))

    async def ListWorlds(  # noqa: N802  # named by the proto
        self, request: worlds_pb2.ListWorldsRequest, context: Any
    ) -> worlds_pb2.ListWorldsResponse:
        """Returns worlds, ordered by name."""
        page = await self._memory.list_worlds(request.page_size or 100, request.page_token)
        return worlds_pb2.ListWorldsResponse(
            worlds=map(world_message, page.items), next_page_token=page.next_page_token
        )
