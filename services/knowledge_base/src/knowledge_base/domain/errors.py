"""The errors of the knowledge base that callers see.

InvalidRequest
├── InvalidText           a character that cannot be stored
├── InvalidDocument       a document that cannot be ingested
├── InvalidIdentifier     not a UUID
└── RequestIdReused       one request id for two requests
NotFound
├── DocumentNotFound
├── WorldNotFound
├── ConceptNotFound
├── FactNotFound
├── RelationshipNotFound
├── ContradictionNotFound
└── EventNotFound
AlreadyExists
└── WorldNameTaken
Aborted
└── IngestInProgress      another ingest of the collection takes too long
ResourceExhausted
└── TooManyIngests
"""

from servicekit.errors import (
    Aborted,
    AlreadyExists,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
)

__all__ = [
    "ConceptNotFound",
    "ContradictionNotFound",
    "DocumentNotFound",
    "EventNotFound",
    "FactNotFound",
    "IngestInProgress",
    "InvalidDocument",
    "InvalidIdentifier",
    "InvalidText",
    "RelationshipNotFound",
    "RequestIdReused",
    "TooManyIngests",
    "WorldNameTaken",
    "WorldNotFound",
]


class InvalidText(InvalidRequest):
    """A text holds a character that cannot be stored."""

    reason = "INVALID_TEXT"


class InvalidDocument(InvalidRequest):
    """A document cannot be ingested."""

    reason = "INVALID_DOCUMENT"


class InvalidIdentifier(InvalidRequest):
    """An identifier is not a UUID."""

    reason = "INVALID_IDENTIFIER"


class RequestIdReused(InvalidRequest):
    """A request id was used before, with another method or another content."""

    reason = "REQUEST_ID_REUSED"


class DocumentNotFound(NotFound):
    """The collection has no document of this path."""

    reason = "DOCUMENT_NOT_FOUND"


class WorldNotFound(NotFound):
    """The world does not exist."""

    reason = "WORLD_NOT_FOUND"


class ConceptNotFound(NotFound):
    """The concept does not exist as the world sees it."""

    reason = "CONCEPT_NOT_FOUND"


class FactNotFound(NotFound):
    """The fact does not exist in this world and for this player."""

    reason = "FACT_NOT_FOUND"


class RelationshipNotFound(NotFound):
    """The relationship does not exist in this world and for this player."""

    reason = "RELATIONSHIP_NOT_FOUND"


class ContradictionNotFound(NotFound):
    """The contradiction does not exist in this world and for this player."""

    reason = "CONTRADICTION_NOT_FOUND"


class EventNotFound(NotFound):
    """The world has no such story event."""

    reason = "EVENT_NOT_FOUND"


class WorldNameTaken(AlreadyExists):
    """Another world has the name."""

    reason = "WORLD_NAME_TAKEN"


class IngestInProgress(Aborted):
    """Another ingest of the collection is running and does not end in time."""

    reason = "INGEST_IN_PROGRESS"


class TooManyIngests(ResourceExhausted):
    """As many ingests run as this process takes."""

    reason = "TOO_MANY_INGESTS"
    default_retry_after_seconds = 5.0
