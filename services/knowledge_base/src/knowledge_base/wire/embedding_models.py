"""Embedding models on the wire."""

from typing import TypedDict

from gaming.knowledge_base.v1 import embedding_models_pb2 as pb
from knowledge_base.domain.embedding_models import EmbeddingModel, ModelState
from knowledge_base.embedding_change import EmbeddingStatus
from knowledge_base.wire.times import stamp

__all__ = ["StatusMessages", "status_messages"]

_STATES = {
    ModelState.ACTIVE: pb.EMBEDDING_MODEL_STATE_ACTIVE,
    ModelState.FILLING: pb.EMBEDDING_MODEL_STATE_FILLING,
    ModelState.PAUSED: pb.EMBEDDING_MODEL_STATE_PAUSED,
    ModelState.RETIRED: pb.EMBEDDING_MODEL_STATE_RETIRED,
}


class StatusMessages(TypedDict):
    """What every answer about a change holds; None is an unset field."""

    active: pb.EmbeddingModel | None
    change: pb.EmbeddingModel | None


def status_messages(status: EmbeddingStatus) -> StatusMessages:
    """Returns the active model and the one that is changed to."""
    return {"active": _message(status.active), "change": _message(status.change)}


def _message(model: EmbeddingModel | None) -> pb.EmbeddingModel | None:
    if model is None:
        return None
    return pb.EmbeddingModel(
        name=model.name,
        dimensions=model.dimensions,
        state=_STATES[model.state],
        start_time=stamp(model.start_time),
        active_time=None if model.active_time is None else stamp(model.active_time),
        listed=model.listed,
        filled_rows=model.filled_rows,
        remaining_rows=model.remaining_rows,
    )
