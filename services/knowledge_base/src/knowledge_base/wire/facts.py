"""Facts and contradictions on the wire."""

from gaming.knowledge_base.v1 import facts_pb2
from knowledge_base.domain.facts import (
    Contradiction,
    ContradictionKind,
    ContradictionSide,
    Fact,
    KnowledgeLayer,
    NewFact,
)
from knowledge_base.wire.layers import period_fields, period_of, uuid_of
from knowledge_base.wire.times import stamp
from knowledge_base.wire.worlds import world_id_text

__all__ = ["contradiction_message", "fact_message", "new_fact"]

_KINDS = {
    ContradictionKind.FACT: facts_pb2.CONTRADICTION_KIND_FACT,
    ContradictionKind.ATTRIBUTE: facts_pb2.CONTRADICTION_KIND_ATTRIBUTE,
    ContradictionKind.CANON: facts_pb2.CONTRADICTION_KIND_CANON,
}
_LAYERS = {
    KnowledgeLayer.SHARED: facts_pb2.KNOWLEDGE_LAYER_SHARED,
    KnowledgeLayer.WORLD: facts_pb2.KNOWLEDGE_LAYER_WORLD,
    KnowledgeLayer.PLAYER: facts_pb2.KNOWLEDGE_LAYER_PLAYER,
}


def new_fact(message: facts_pb2.Fact, path: str) -> NewFact:
    """Returns the fact a caller tells; `path` goes before a field's name in errors.

    Raises InvalidText, InvalidIdentifier, InvalidRequest.
    """
    is_concept = message.WhichOneof("object") == "object_concept"
    event_id = message.source_event_id
    return NewFact.of(
        message.subject,
        message.predicate,
        message.object_concept if is_concept else message.text,
        object_is_concept=is_concept,
        single_valued=message.single_valued,
        period=period_of(message, path),
        source=message.source,
        source_event_id=uuid_of(f"{path}source_event_id", event_id) if event_id else None,
        path=path,
    )


def fact_message(fact: Fact) -> facts_pb2.Fact:
    """Returns a fact in one period."""
    superseded = fact.superseded_time
    return facts_pb2.Fact(
        fact_id=str(fact.fact_id),
        world_id=world_id_text(fact.world_id),
        player_id=fact.player_id,
        subject=fact.subject,
        predicate=fact.predicate,
        text=None if fact.object_is_concept else fact.object,
        object_concept=fact.object if fact.object_is_concept else None,
        single_valued=fact.single_valued,
        source=fact.source,
        source_event_id="" if fact.source_event_id is None else str(fact.source_event_id),
        record_time=stamp(fact.record_time),
        superseded_time=None if superseded is None else stamp(superseded),
        **period_fields(fact.period),
    )


def contradiction_message(contradiction: Contradiction) -> facts_pb2.Contradiction:
    """Returns a contradiction."""
    resolved = contradiction.resolve_time
    return facts_pb2.Contradiction(
        contradiction_id=str(contradiction.contradiction_id),
        world_id=world_id_text(contradiction.world_id),
        player_id=contradiction.player_id,
        kind=_KINDS[contradiction.kind],
        subject=contradiction.subject,
        predicate=contradiction.predicate,
        earlier=_side(contradiction.earlier),
        later=_side(contradiction.later),
        record_time=stamp(contradiction.record_time),
        state=(
            facts_pb2.CONTRADICTION_STATE_OPEN
            if resolved is None
            else facts_pb2.CONTRADICTION_STATE_RESOLVED
        ),
        resolve_time=None if resolved is None else stamp(resolved),
        reason=contradiction.resolution,
        **period_fields(contradiction.period),
    )


def _side(side: ContradictionSide) -> facts_pb2.ContradictionSide:
    return facts_pb2.ContradictionSide(
        layer=_LAYERS[side.layer],
        id=str(side.id),
        version=side.version or 0,
        value=side.value,
        source=side.source,
    )
