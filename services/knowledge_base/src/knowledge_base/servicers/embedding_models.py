"""The methods that change the embedding model."""

import uuid
from typing import Any

from gaming.knowledge_base.v1 import embedding_models_pb2 as pb
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.embedding_change import EmbeddingChange
from knowledge_base.wire.embedding_models import status_messages

__all__ = ["EmbeddingModelMethods"]


class EmbeddingModelMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods that change the embedding model."""

    _embedding_change: EmbeddingChange

    async def GetEmbeddingChange(  # noqa: N802  # named by the proto
        self, request: pb.GetEmbeddingChangeRequest, context: Any
    ) -> pb.GetEmbeddingChangeResponse:
        """Returns the active model and how far a change of it is."""
        status = await self._embedding_change.status()
        return pb.GetEmbeddingChangeResponse(
            **status_messages(status), offered_models=status.offered
        )

    async def StartEmbeddingChange(  # noqa: N802  # named by the proto
        self, request: pb.StartEmbeddingChangeRequest, context: Any
    ) -> pb.StartEmbeddingChangeResponse:
        """Starts a change to another model."""
        status = await self._embedding_change.start(uuid.UUID(request.request_id), request.model)
        return pb.StartEmbeddingChangeResponse(**status_messages(status))

    async def PauseEmbeddingChange(  # noqa: N802  # named by the proto
        self, request: pb.PauseEmbeddingChangeRequest, context: Any
    ) -> pb.PauseEmbeddingChangeResponse:
        """Pauses the filling of the new vectors."""
        status = await self._embedding_change.pause(uuid.UUID(request.request_id))
        return pb.PauseEmbeddingChangeResponse(**status_messages(status))

    async def ResumeEmbeddingChange(  # noqa: N802  # named by the proto
        self, request: pb.ResumeEmbeddingChangeRequest, context: Any
    ) -> pb.ResumeEmbeddingChangeResponse:
        """Goes on with the filling."""
        status = await self._embedding_change.resume(uuid.UUID(request.request_id))
        return pb.ResumeEmbeddingChangeResponse(**status_messages(status))

    async def FinishEmbeddingChange(  # noqa: N802  # named by the proto
        self, request: pb.FinishEmbeddingChangeRequest, context: Any
    ) -> pb.FinishEmbeddingChangeResponse:
        """Makes the new model the active one and drops the old vectors."""
        status = await self._embedding_change.finish(uuid.UUID(request.request_id))
        return pb.FinishEmbeddingChangeResponse(**status_messages(status))

    async def CancelEmbeddingChange(  # noqa: N802  # named by the proto
        self, request: pb.CancelEmbeddingChangeRequest, context: Any
    ) -> pb.CancelEmbeddingChangeResponse:
        """Gives the change up."""
        status = await self._embedding_change.cancel(uuid.UUID(request.request_id))
        return pb.CancelEmbeddingChangeResponse(**status_messages(status))
