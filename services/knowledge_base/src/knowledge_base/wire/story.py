"""Story events on the wire."""

from gaming.knowledge_base.v1 import story_pb2
from knowledge_base.domain.memory import NewEvent, RecalledEvent, StoryEvent
from knowledge_base.wire.times import optional_time, stamp

__all__ = ["event_message", "new_event", "recall_weights", "recalled_message"]


def new_event(message: story_pb2.StoryEvent, index: int) -> NewEvent:
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


def recall_weights(request: story_pb2.RecallRequest) -> tuple[float, float, float] | None:
    """Returns the weights of relevance, recency and importance, None when none are given."""
    if not request.HasField("weights"):
        return None
    weights = request.weights
    return weights.relevance, weights.recency, weights.importance


def event_message(event: StoryEvent) -> story_pb2.StoryEvent:
    """Returns a recorded event."""
    return story_pb2.StoryEvent(
        event_id=str(event.event_id),
        text=event.text,
        kind=event.kind,
        participants=event.participants,
        occur_time=stamp(event.occur_time),
        importance=event.importance,
        record_time=stamp(event.record_time),
    )


def recalled_message(recalled: RecalledEvent) -> story_pb2.RecalledEvent:
    """Returns a memory with its scores."""
    return story_pb2.RecalledEvent(
        event=event_message(recalled.event),
        score=recalled.score,
        relevance=recalled.relevance,
        recency=recalled.recency,
        before=map(event_message, recalled.before),
        after=map(event_message, recalled.after),
        reranker_score=recalled.reranker_score,
    )
