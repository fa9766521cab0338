"""Concepts and relationships on the wire."""

from gaming.knowledge_base.v1 import concepts_pb2
from knowledge_base.domain.concepts import Concept, Relationship
from knowledge_base.wire.times import stamp
from knowledge_base.wire.worlds import world_id_text

__all__ = ["concept_message", "relationship_message"]


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
    )


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
    )
