"""Each call is answered with one embedding model, also while the model is being changed."""

from functools import partial
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from knowledge_base.embedding_models import EmbeddingModels

__all__ = ["OneModelPerCall"]


class OneModelPerCall:
    """A servicer whose calls run again when the embedding model was changed under them.

    A call that failed for this changed nothing. Only calls with one request and one answer run
    again; a stream's handler sees to it itself, request by request.
    """

    def __init__(
        self, servicer: Any, models: EmbeddingModels, descriptor: ServiceDescriptor
    ) -> None:
        self._servicer = servicer
        self._models = models
        self._unary = {
            method.name
            for method in descriptor.methods
            if not (method.client_streaming or method.server_streaming)
        }

    def __getattr__(self, name: str) -> Any:
        handler = getattr(self._servicer, name)
        return partial(self._call, handler) if name in self._unary else handler

    async def _call(self, handler: Any, request: Any, context: Any) -> Any:
        return await self._models.with_one_model(partial(handler, request, context))
