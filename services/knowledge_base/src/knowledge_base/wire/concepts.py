"""Concepts, their versions and relationships on the wire."""

from gaming.knowledge_base.v1 import concepts_pb2
from knowledge_base.domain.concepts import Concept, ConceptVersion, FieldChange, Relationship
from knowledge_base.domain.story_time import BelievedPeriod
from knowledge_base.wire.layers import period_fields
from knowledge_base.wire.times import stamp
from knowledge_base.wire.worlds import world_id_text

__all__ = ["change_message", "concept_message", "relationship_message", "version_message"]


def concept_message(concept: Concept) -> concepts_pb2.Concept:
    """Returns a concept in its version."""
    return concepts_pb2.Concept(
        concept_id=str(concept.concept_id),
        world_id=world_id_text(concept.world_id),
        name=concept.name,
        kind=concept.kind,
        version=concept.version,
        description=concept.description,
        attributes=dict(concept.attributes),
        record_time=stamp(concept.record_time),
        player_id=concept.player_id,
        source=concept.source,
        **period_fields(concept.period),
    )


def version_message(version: ConceptVersion) -> concepts_pb2.ConceptVersion:
    """Returns a version with the periods in which it was believed."""
    return concepts_pb2.ConceptVersion(
        concept=concept_message(version.concept), periods=map(_period_message, version.periods)
    )


def change_message(change: FieldChange) -> concepts_pb2.FieldChange:
    """Returns a field in which two states differ."""
    return concepts_pb2.FieldChange(field=change.field, before=change.before, after=change.after)


def relationship_message(relationship: Relationship) -> concepts_pb2.Relationship:
    """Returns a relationship."""
    return concepts_pb2.Relationship(
        relationship_id=str(relationship.relationship_id),
        world_id=world_id_text(relationship.world_id),
        from_concept=relationship.from_concept,
        to_concept=relationship.to_concept,
        kind=relationship.kind,
        strength=relationship.strength,
        record_time=stamp(relationship.record_time),
        player_id=relationship.player_id,
        **period_fields(relationship.period),
    )


def _period_message(period: BelievedPeriod) -> concepts_pb2.BelievedPeriod:
    superseded = period.superseded_time
    return concepts_pb2.BelievedPeriod(
        record_time=stamp(period.record_time),
        superseded_time=None if superseded is None else stamp(superseded),
        **period_fields(period.valid),
    )
