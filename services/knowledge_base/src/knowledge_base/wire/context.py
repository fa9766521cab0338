"""Contexts on the wire."""

from typing import Any

from gaming.knowledge_base.v1 import context_pb2
from knowledge_base.context import BuiltContext, Cited, ContextRequest
from knowledge_base.domain.concepts import Concept
from knowledge_base.domain.context import (
    ContextOptions,
    ContextPart,
    ContextSource,
    OmissionReason,
    OmittedPart,
)
from knowledge_base.domain.lore import SearchResult
from knowledge_base.domain.text import SHARED_WORLD, check_texts, parse_world_id
from knowledge_base.wire.lore import citation_message
from knowledge_base.wire.times import stamp

__all__ = ["context_message", "context_request"]

_DEFAULTS = ContextOptions()
_RECENT_EVENTS = 6
# As the messages ContextLimits and ContextWeights name them.
_FIELDS = {
    ContextSource.CONCEPT: "concepts",
    ContextSource.LORE: "lore",
    ContextSource.MEMORY: "memory",
    ContextSource.RECENT: "recent",
}
_SOURCES = {
    ContextSource.CONCEPT: context_pb2.CONTEXT_SOURCE_CONCEPT,
    ContextSource.LORE: context_pb2.CONTEXT_SOURCE_LORE,
    ContextSource.MEMORY: context_pb2.CONTEXT_SOURCE_MEMORY,
    ContextSource.RECENT: context_pb2.CONTEXT_SOURCE_RECENT,
}
_REASONS = {
    OmissionReason.BUDGET: context_pb2.OMISSION_REASON_BUDGET,
    OmissionReason.SOURCE_LIMIT: context_pb2.OMISSION_REASON_SOURCE_LIMIT,
    OmissionReason.DUPLICATE: context_pb2.OMISSION_REASON_DUPLICATE,
    OmissionReason.RELEVANCE: context_pb2.OMISSION_REASON_RELEVANCE,
    OmissionReason.DIVERSITY: context_pb2.OMISSION_REASON_DIVERSITY,
}


def context_request(message: context_pb2.BuildContextRequest) -> ContextRequest:
    """Returns the request with its defaults. Raises InvalidText."""
    options = ContextOptions(
        message.token_budget or _DEFAULTS.token_budget,
        {
            source: _given(message.limits, name, _DEFAULTS.limits[source])
            for source, name in _FIELDS.items()
        },
        {source: _given(message.weights, name, 1.0) for source, name in _FIELDS.items()},
        _given(message, "minimum_relevance", _DEFAULTS.minimum_relevance),
    )
    recent = message.recent_events if message.HasField("recent_events") else _RECENT_EVENTS
    return ContextRequest.of(
        parse_world_id("world_id", message.world_id),
        message.query,
        scene=message.scene,
        characters=message.characters,
        collections=check_texts("collections", message.collections),
        recent_events=recent,
        options=options,
    )


def context_message(built: BuiltContext, token_budget: int) -> context_pb2.BuildContextResponse:
    """Returns a context."""
    context = built.context
    return context_pb2.BuildContextResponse(
        text=context.text,
        parts=[_part_message(part, built.cited[part.candidate.key]) for part in context.parts],
        omitted=map(_omitted_message, context.omitted),
        tokens=context.tokens,
        token_budget=token_budget,
        tokenizer=built.tokenizer,
    )


def _given(message: Any, field: str, default: float) -> float:
    return float(getattr(message, field)) if message.HasField(field) else default


def _part_message(part: ContextPart, origin: Cited) -> context_pb2.ContextPart:
    message = context_pb2.ContextPart(
        label=part.label,
        source=_SOURCES[part.candidate.source],
        text=part.candidate.text,
        rank=part.rank,
        score=part.score,
        tokens=part.tokens,
    )
    if isinstance(origin, SearchResult):
        message.lore.CopyFrom(citation_message(origin.citation))
    elif isinstance(origin, Concept):
        message.concept.name, message.concept.kind = origin.name, origin.kind
        message.concept.version = origin.version
        if origin.world_id != SHARED_WORLD:
            message.concept.world_id = str(origin.world_id)
    else:
        message.event.event_id, message.event.kind = str(origin.event_id), origin.kind
        message.event.participants.extend(origin.participants)
        message.event.occur_time.CopyFrom(stamp(origin.occur_time))
    return message


def _omitted_message(part: OmittedPart) -> context_pb2.OmittedPart:
    return context_pb2.OmittedPart(
        source=_SOURCES[part.candidate.source],
        reference=part.candidate.reference,
        reason=_REASONS[part.reason],
        rank=part.rank,
        score=part.score,
        tokens=part.tokens,
        same_as=part.same_as,
    )
