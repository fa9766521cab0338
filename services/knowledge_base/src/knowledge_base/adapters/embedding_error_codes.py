"""The SQLSTATEs that the change of the embedding model raises, as errors (migration 0015)."""

from knowledge_base.domain.embedding_models import (
    EmbeddingChangeInProgress,
    EmbeddingChangeNotReady,
    EmbeddingModelActive,
    EmbeddingModelChanged,
    NoEmbeddingChange,
    StoredVectorsDiffer,
)
from servicekit.errors import ServiceError

__all__ = ["embedding_error"]

_CHANGED = (EmbeddingModelChanged, "The embedding model has just changed; repeat the call.")
_ERRORS: dict[str | None, tuple[type[ServiceError], str]] = {
    "KB010": _CHANGED,
    # pgvector's own: a vector of another length than the column's, so of another model.
    "22000": _CHANGED,
    "KB011": (
        EmbeddingChangeInProgress,
        "The embedding model is being changed; finish or cancel that change first.",
    ),
    "KB012": (NoEmbeddingChange, "The embedding model is not being changed."),
    "KB013": (
        EmbeddingChangeNotReady,
        "Some rows still lack the new model's vector; see GetEmbeddingChange.",
    ),
    "KB014": (EmbeddingModelActive, "This embedding model is the active one already."),
    "KB015": (
        StoredVectorsDiffer,
        (
            "The stored vectors have another number of dimensions than the embedding model of the "
            "settings, and no model is on record for them."
        ),
    ),
}


def embedding_error(sqlstate: str | None) -> ServiceError | None:
    """Returns the error of a SQLSTATE, None when it is not one of the change's."""
    found = _ERRORS.get(sqlstate)
    return found[0](found[1]) if found else None
