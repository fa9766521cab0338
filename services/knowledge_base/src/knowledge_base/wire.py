"""Between messages and the domain; nothing is decided here."""

import uuid
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import knowledge_base_pb2 as pb
from knowledge_base.domain.concepts import Concept, Relationship
from knowledge_base.domain.lore import (
    Document,
    IngestedDocument,
    IngestState,
    IngestSummary,
    SearchMode,
    SearchResult,
)
from knowledge_base.domain.memory import NewEvent, RecalledEvent, StoryEvent, World
from knowledge_base.domain.subscriptions import EventSubscription
from knowledge_base.domain.text import SHARED_WORLD
from servicekit.errors import FieldViolation, InvalidRequest

__all__ = [
    "SEARCH_MODES",
    "concept_message",
    "document_message",
    "event_message",
    "ingest_message",
    "new_event",
    "optional_time",
    "recalled_message",
    "relationship_message",
    "search_result_message",
    "subscription_message",
    "world_message",
]

SEARCH_MODES = {
    pb.SEARCH_MODE_UNSPECIFIED: SearchMode.HYBRID,
    pb.SEARCH_MODE_HYBRID: SearchMode.HYBRID,
    pb.SEARCH_MODE_VECTOR: SearchMode.VECTOR,
    pb.SEARCH_MODE_KEYWORD: SearchMode.KEYWORD,
}

_INGEST_STATES = {
    IngestState.UNCHANGED: pb.INGEST_STATE_UNCHANGED,
    IngestState.STORED: pb.INGEST_STATE_STORED,
    IngestState.REMOVED: pb.INGEST_STATE_REMOVED,
}


def optional_time(message: Any, field: str, path: str = "") -> datetime | None:
    """Returns the moment in a message's Timestamp field, None when it is unset.

    Raises InvalidRequest when it is outside the years 1 to 9999.
    """
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        description = "must lie in the years 1 to 9999, with nanos from 0 to 999,999,999"
        raise InvalidRequest(
            f"{path or field} {description}.",
            field_violations=[FieldViolation(path or field, description)],
        ) from None


def new_event(message: pb.StoryEvent, index: int) -> NewEvent:
    """Returns the event a caller tells; ids and times set by the knowledge base are ignored."""
    field = f"events[{index}]"
    return NewEvent.of(
        message.text,
        kind=message.kind,
        participants=tuple(message.participants),
        occur_time=optional_time(message, "occur_time", f"{field}.occur_time"),
        importance=message.importance if message.HasField("importance") else None,
        field=field,
    )


def event_message(event: StoryEvent) -> pb.StoryEvent:
    """Returns a recorded event."""
    return pb.StoryEvent(
        event_id=str(event.event_id),
        text=event.text,
        kind=event.kind,
        participants=event.participants,
        occur_time=_stamp(event.occur_time),
        importance=event.importance,
        record_time=_stamp(event.record_time),
    )


def recalled_message(recalled: RecalledEvent) -> pb.RecalledEvent:
    """Returns a memory with its scores."""
    return pb.RecalledEvent(
        event=event_message(recalled.event),
        score=recalled.score,
        relevance=recalled.relevance,
        recency=recalled.recency,
    )


def world_message(world: World) -> pb.World:
    """Returns a world."""
    return pb.World(
        world_id=str(world.world_id),
        name=world.name,
        description=world.description,
        create_time=_stamp(world.create_time),
        event_count=world.event_count,
    )


def document_message(document: Document) -> pb.Document:
    """Returns a document."""
    return pb.Document(
        collection=document.collection,
        path=document.path,
        title=document.title,
        chunks=document.chunks,
        ingest_time=_stamp(document.ingest_time),
        content_sha256=document.content_sha256.hex(),
    )


def ingest_message(update: IngestedDocument | IngestSummary) -> pb.IngestDocumentsResponse:
    """Returns a step of an ingest's progress."""
    if isinstance(update, IngestedDocument):
        document = pb.IngestedDocument(
            path=update.path,
            state=_INGEST_STATES[update.state],
            chunks=update.chunks,
            embedded_chunks=update.embedded_chunks,
        )
        return pb.IngestDocumentsResponse(document=document)
    summary = pb.IngestSummary(
        stored_documents=update.stored_documents,
        unchanged_documents=update.unchanged_documents,
        removed_documents=update.removed_documents,
        chunks=update.chunks,
        embedded_chunks=update.embedded_chunks,
    )
    return pb.IngestDocumentsResponse(summary=summary)


def search_result_message(result: SearchResult) -> pb.SearchResult:
    """Returns a passage with its citation."""
    citation = result.citation
    return pb.SearchResult(
        text=result.text,
        citation=pb.Citation(
            collection=citation.collection,
            path=citation.path,
            heading_path=citation.heading_path,
            start_line=citation.start_line,
            end_line=citation.end_line,
        ),
        score=result.score,
        vector_score=result.vector_score,
        keyword_score=result.keyword_score,
    )


def subscription_message(subscription: EventSubscription | None) -> pb.EventSubscription | None:
    """Returns what a world takes from the bus; None, so an unset field, when nothing."""
    if subscription is None:
        return None
    return pb.EventSubscription(
        world_id=str(subscription.world_id),
        event_types=subscription.event_types,  # type: ignore[arg-type]  # validated when it was set
        sources=subscription.sources,
        update_time=_stamp(subscription.update_time),
    )


def concept_message(concept: Concept) -> pb.Concept:
    """Returns a concept in its version."""
    return pb.Concept(
        concept_id=str(concept.concept_id),
        world_id=_world_id_text(concept.world_id),
        name=concept.name,
        kind=concept.kind,
        version=concept.version,
        description=concept.description,
        attributes=dict(concept.attributes),
        record_time=_stamp(concept.record_time),
    )


def relationship_message(relationship: Relationship) -> pb.Relationship:
    """Returns a relationship."""
    return pb.Relationship(
        relationship_id=str(relationship.relationship_id),
        world_id=_world_id_text(relationship.world_id),
        from_concept=relationship.from_concept,
        to_concept=relationship.to_concept,
        kind=relationship.kind,
        strength=relationship.strength,
        record_time=_stamp(relationship.record_time),
    )


def _world_id_text(world_id: uuid.UUID) -> str:
    return "" if world_id == SHARED_WORLD else str(world_id)


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
