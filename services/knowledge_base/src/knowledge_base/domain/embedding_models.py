"""The models that embed texts, the change from one to another, and what goes wrong with them.

Aborted
├── EmbeddingModelChanged          a vector of a model that is no longer the active one
└── EmbeddingTablesBusy            a long statement holds the tables to be altered
FailedPrecondition
├── EmbeddingChangeInProgress      a change is under way already
├── EmbeddingChangeNotReady        rows still lack the new vector
├── EmbeddingModelActive           the model is the active one already
├── EmbeddingRefused               the model refuses the call
├── NoEmbeddingChange              no change is under way
└── StoredVectorsDiffer            the stored vectors cannot be the configured model's
InvalidRequest
└── UnknownEmbeddingModel          no model of this name is offered
Unavailable
└── EmbeddingUnavailable           the model cannot be reached, or is not configured here
"""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from servicekit.errors import Aborted, FailedPrecondition, InvalidRequest, Unavailable

__all__ = [
    "LOCAL_DIMENSIONS",
    "LOCAL_MODEL",
    "TITAN",
    "EmbeddingChangeInProgress",
    "EmbeddingChangeNotReady",
    "EmbeddingModel",
    "EmbeddingModelActive",
    "EmbeddingModelChanged",
    "EmbeddingRefused",
    "EmbeddingTablesBusy",
    "EmbeddingUnavailable",
    "ModelState",
    "NoEmbeddingChange",
    "StoredVectorsDiffer",
    "UnknownEmbeddingModel",
    "titan_name",
]

LOCAL_MODEL = "all-MiniLM-L6-v2"
LOCAL_DIMENSIONS = 384
TITAN = "amazon.titan-embed-text-v2:0"


def titan_name(dimensions: int) -> str:
    """Returns Titan's name here: with its dimensions, for those of others cannot be compared."""
    return f"{TITAN}/{dimensions}"


class EmbeddingModelChanged(Aborted):
    """A vector was made by a model that is no longer the active one."""

    reason = "EMBEDDING_MODEL_CHANGED"
    default_retry_after_seconds = 0.1


class EmbeddingTablesBusy(Aborted):
    """A long statement holds a table that must be altered for a moment."""

    reason = "EMBEDDING_TABLES_BUSY"
    default_retry_after_seconds = 1.0


class EmbeddingChangeInProgress(FailedPrecondition):
    """A change of the embedding model is under way."""

    reason = "EMBEDDING_CHANGE_IN_PROGRESS"


class EmbeddingChangeNotReady(FailedPrecondition):
    """Rows still lack the vector of the model that is changed to."""

    reason = "EMBEDDING_CHANGE_NOT_READY"


class EmbeddingModelActive(FailedPrecondition):
    """The model that shall be changed to is the active one."""

    reason = "EMBEDDING_MODEL_ACTIVE"


class EmbeddingRefused(FailedPrecondition):
    """The embedding model refuses the call, and would refuse it again."""

    reason = "EMBEDDING_REFUSED"


class NoEmbeddingChange(FailedPrecondition):
    """No change of the embedding model is under way."""

    reason = "NO_EMBEDDING_CHANGE"


class StoredVectorsDiffer(FailedPrecondition):
    """The stored vectors cannot be those of the configured model."""

    reason = "STORED_VECTORS_DIFFER"


class UnknownEmbeddingModel(InvalidRequest):
    """The service offers no embedding model of this name."""

    reason = "UNKNOWN_EMBEDDING_MODEL"


class EmbeddingUnavailable(Unavailable):
    """The embedding model cannot be reached, takes no more calls now, or is not configured here."""

    reason = "EMBEDDING_UNAVAILABLE"


class ModelState(Enum):
    """What a model is to the stored vectors."""

    ACTIVE = "active"
    FILLING = "filling"
    PAUSED = "paused"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model whose vectors are, were or will be stored.

    Attributes:
        name: as the embedder says it.
        dimensions: the length of its vectors.
        state: what it is now.
        start_time: when the change to it began, or when it was first used.
        active_time: when its vectors became those that answer; None before.
        listed: whether all rows to be filled are known.
        filled_rows: how many rows have got their vector in this change.
        remaining_rows: how many are known to lack it.
    """

    name: str
    dimensions: int
    state: ModelState
    start_time: datetime
    active_time: datetime | None
    listed: bool
    filled_rows: int
    remaining_rows: int
