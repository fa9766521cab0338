"""The methods for concepts and their ties."""

import uuid
from typing import Any

from gaming.knowledge_base.v1 import concepts_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.concepts import ConceptBook
from knowledge_base.domain.concepts import NewConcept, NewRelationship
from knowledge_base.wire.concepts import (
    change_message,
    concept_message,
    relationship_message,
    version_message,
)
from knowledge_base.wire.layers import as_of_of, layer_of, period_of, point_of
from knowledge_base.wire.times import optional_time

__all__ = ["ConceptMethods"]


class ConceptMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for concepts and their ties."""

    _concepts: ConceptBook

    async def PutConcept(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.PutConceptRequest, context: Any
    ) -> concepts_pb2.PutConceptResponse:
        """Records a version of a concept."""
        concept = await self._concepts.put(
            uuid.UUID(request.request_id),
            layer_of(request),
            NewConcept.of(
                request.name,
                request.kind,
                request.description,
                request.attributes,
                period=period_of(request),
                source=request.source,
            ),
        )
        return concepts_pb2.PutConceptResponse(concept=concept_message(concept))

    async def GetConcept(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.GetConceptRequest, context: Any
    ) -> concepts_pb2.GetConceptResponse:
        """Returns a concept."""
        concept = await self._concepts.get(layer_of(request), request.name, *point_of(request))
        return concepts_pb2.GetConceptResponse(concept=concept_message(concept))

    async def ListConcepts(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.ListConceptsRequest, context: Any
    ) -> concepts_pb2.ListConceptsResponse:
        """Returns the concepts a world sees."""
        page = await self._concepts.list(
            layer_of(request),
            request.kind,
            request.page_size or 100,
            request.page_token,
            as_of_of(request),
        )
        return concepts_pb2.ListConceptsResponse(
            concepts=map(concept_message, page.items), next_page_token=page.next_page_token
        )

    async def ListConceptVersions(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.ListConceptVersionsRequest, context: Any
    ) -> concepts_pb2.ListConceptVersionsResponse:
        """Returns a concept's history."""
        page = await self._concepts.history(
            layer_of(request), request.name, request.page_size or 20, request.page_token
        )
        return concepts_pb2.ListConceptVersionsResponse(
            versions=map(version_message, page.items), next_page_token=page.next_page_token
        )

    async def DiffConcept(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.DiffConceptRequest, context: Any
    ) -> concepts_pb2.DiffConceptResponse:
        """Tells how two states of a concept differ."""
        before, after, changes = await self._concepts.diff(
            layer_of(request),
            request.name,
            point_of(request.before, "before."),
            point_of(request.after, "after."),
        )
        return concepts_pb2.DiffConceptResponse(
            before=concept_message(before),
            after=concept_message(after),
            changes=map(change_message, changes),
        )

    async def EndRelationship(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.EndRelationshipRequest, context: Any
    ) -> concepts_pb2.EndRelationshipResponse:
        """Ends a relationship."""
        remaining = await self._concepts.end_relationship(
            uuid.UUID(request.request_id),
            layer_of(request),
            from_concept=request.from_concept,
            to_concept=request.to_concept,
            kind=request.kind,
            valid_until=optional_time(request, "valid_until"),
        )
        return concepts_pb2.EndRelationshipResponse(
            relationships=map(relationship_message, remaining)
        )

    async def RelateConcepts(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.RelateConceptsRequest, context: Any
    ) -> concepts_pb2.RelateConceptsResponse:
        """Records a relationship."""
        relationship = await self._concepts.relate(
            uuid.UUID(request.request_id),
            layer_of(request),
            NewRelationship.of(
                request.from_concept,
                request.to_concept,
                request.kind,
                request.strength if request.HasField("strength") else None,
                period=period_of(request),
            ),
        )
        return concepts_pb2.RelateConceptsResponse(relationship=relationship_message(relationship))

    async def ListRelationships(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.ListRelationshipsRequest, context: Any
    ) -> concepts_pb2.ListRelationshipsResponse:
        """Returns a concept's relationships."""
        page = await self._concepts.list_relationships(
            layer_of(request),
            request.concept,
            request.page_size or 100,
            request.page_token,
            as_of_of(request),
        )
        return concepts_pb2.ListRelationshipsResponse(
            relationships=map(relationship_message, page.items),
            next_page_token=page.next_page_token,
        )
