"""The method that builds a storyteller's context."""

from typing import Any

from gaming.knowledge_base.v1 import context_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.context import ContextBuilder
from knowledge_base.wire.context import context_message, context_request

__all__ = ["ContextMethods"]


class ContextMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The method that builds a storyteller's context."""

    _context: ContextBuilder

    async def BuildContext(  # noqa: N802  # named by the proto
        self, request: context_pb2.BuildContextRequest, context: Any
    ) -> context_pb2.BuildContextResponse:
        """Chooses memory and lore for a prompt, within a budget."""
        wanted = context_request(request)
        built = await self._context.build(wanted)
        return context_message(built, wanted.options.token_budget)
