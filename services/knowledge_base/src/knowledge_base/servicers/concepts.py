"""The methods for concepts and their ties."""

import uuid
from typing import Any

from gaming.knowledge_base.v1 import concepts_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.concepts import ConceptBook
from knowledge_base.domain.concepts import NewConcept, NewRelationship
from knowledge_base.domain.text import parse_world_id
from knowledge_base.wire.concepts import concept_message, relationship_message

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
            parse_world_id("world_id", request.world_id),
            NewConcept.of(request.name, request.kind, request.description, request.attributes),
        )
        return concepts_pb2.PutConceptResponse(concept=concept_message(concept))

    async def GetConcept(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.GetConceptRequest, context: Any
    ) -> concepts_pb2.GetConceptResponse:
        """Returns a concept."""
        concept = await self._concepts.get(
            parse_world_id("world_id", request.world_id), request.name, request.version
        )
        return concepts_pb2.GetConceptResponse(concept=concept_message(concept))

    async def ListConcepts(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.ListConceptsRequest, context: Any
    ) -> concepts_pb2.ListConceptsResponse:
        """Returns the concepts a world sees."""
        page = await self._concepts.list(
            parse_world_id("world_id", request.world_id),
            request.kind,
            request.page_size or 100,
            request.page_token,
        )
        return concepts_pb2.ListConceptsResponse(
            concepts=map(concept_message, page.items), next_page_token=page.next_page_token
        )

    async def RelateConcepts(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.RelateConceptsRequest, context: Any
    ) -> concepts_pb2.RelateConceptsResponse:
        """Records a relationship."""
        relationship = await self._concepts.relate(
            uuid.UUID(request.request_id),
            parse_world_id("world_id", request.world_id),
            NewRelationship.of(
                request.from_concept,
                request.to_concept,
                request.kind,
                request.strength if request.HasField("strength") else None,
            ),
        )
        return concepts_pb2.RelateConceptsResponse(relationship=relationship_message(relationship))

    async def ListRelationships(  # noqa: N802  # named by the proto
        self, request: concepts_pb2.ListRelationshipsRequest, context: Any
    ) -> concepts_pb2.ListRelationshipsResponse:
        """Returns a concept's relationships."""
        page = await self._concepts.list_relationships(
            parse_world_id("world_id", request.world_id),
            request.concept,
            request.page_size or 100,
            request.page_token,
        )
        return concepts_pb2.ListRelationshipsResponse(
            relationships=map(relationship_message, page.items),
            next_page_token=page.next_page_token,
        )
