"""gaming.knowledge_base.v1.KnowledgeBaseService on the wire."""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gaming.knowledge_base.v1 import knowledge_base_pb2 as pb
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base import wire
from knowledge_base.concepts import ConceptBook
from knowledge_base.domain.concepts import NewConcept, NewRelationship
from knowledge_base.domain.lore import SearchQuery
from knowledge_base.domain.memory import RecallQuery
from knowledge_base.domain.subscriptions import NewSubscription
from knowledge_base.domain.text import parse_world_id
from knowledge_base.ingest import LoreIngest
from knowledge_base.memory import WorldMemory
from knowledge_base.search import LoreSearch
from knowledge_base.subscriptions import Subscriptions
from servicekit.errors import InvalidRequest
from servicekit.server import ServiceRegistration

__all__ = ["AGE_METADATA_KEY", "KnowledgeBaseServicer"]

# Trailing metadata of an answer that was given again because the database is away.
AGE_METADATA_KEY = "gamekeeper-answer-age-seconds"


class KnowledgeBaseServicer(pb_grpc.KnowledgeBaseServiceServicer):
    """Serves the knowledge base."""

    def __init__(
        self,
        ingest: LoreIngest,
        search: LoreSearch,
        memory: WorldMemory,
        concepts: ConceptBook,
        subscriptions: Subscriptions,
    ) -> None:
        self._ingest = ingest
        self._search = search
        self._memory = memory
        self._concepts = concepts
        self._subscriptions = subscriptions

    def registration(self) -> ServiceRegistration:
        """Returns what a server needs to serve this."""
        return ServiceRegistration.of(
            pb_grpc.add_KnowledgeBaseServiceServicer_to_server,
            self,
            pb.DESCRIPTOR.services_by_name["KnowledgeBaseService"],
        )

    async def IngestDocuments(  # noqa: N802  # named by the proto
        self, request_iterator: AsyncIterator[pb.IngestDocumentsRequest], context: Any
    ) -> AsyncIterator[pb.IngestDocumentsResponse]:
        """Takes documents and streams what became of each."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("step") != "begin":
            raise InvalidRequest("The first message of an ingest must be `begin`.")
        updates = self._ingest.ingest(
            first.begin.collection,
            _documents(requests),
            remove_missing=first.begin.remove_missing,
        )
        # Closed at once when the caller leaves, so that the collection is free again.
        async with aclosing(updates):
            async for update in updates:
                yield wire.ingest_message(update)

    async def ListDocuments(  # noqa: N802  # named by the proto
        self, request: pb.ListDocumentsRequest, context: Any
    ) -> pb.ListDocumentsResponse:
        """Returns documents, ordered by path."""
        page = await self._search.list_documents(
            request.collection, request.page_size or 100, request.page_token
        )
        return pb.ListDocumentsResponse(
            documents=map(wire.document_message, page.items), next_page_token=page.next_page_token
        )

    async def Search(  # noqa: N802  # named by the proto
        self, request: pb.SearchRequest, context: Any
    ) -> pb.SearchResponse:
        """Returns passages, best first."""
        answer = await self._search.search(
            SearchQuery(
                request.query,
                wire.SEARCH_MODES[request.mode],
                request.limit or 10,
                tuple(request.collections),
            )
        )
        if answer.age_seconds:
            context.set_trailing_metadata(((AGE_METADATA_KEY, f"{answer.age_seconds:.0f}"),))
        return pb.SearchResponse(results=map(wire.search_result_message, answer.results))

    async def CreateWorld(  # noqa: N802  # named by the proto
        self, request: pb.CreateWorldRequest, context: Any
    ) -> pb.CreateWorldResponse:
        """Makes a world."""
        world = await self._memory.create_world(
            uuid.UUID(request.request_id), request.name, request.description
        )
        return pb.CreateWorldResponse(world=wire.world_message(world))

    async def GetWorld(  # noqa: N802  # named by the proto
        self, request: pb.GetWorldRequest, context: Any
    ) -> pb.GetWorldResponse:
        """Returns one world."""
        world_id = parse_world_id("world_id", request.world_id) if request.world_id else None
        world = await self._memory.get_world(world_id, request.name)
        return pb.GetWorldResponse(world=wire.world_message(world))

    async def ListWorlds(  # noqa: N802  # named by the proto
        self, request: pb.ListWorldsRequest, context: Any
    ) -> pb.ListWorldsResponse:
        """Returns worlds, ordered by name."""
        page = await self._memory.list_worlds(request.page_size or 100, request.page_token)
        return pb.ListWorldsResponse(
            worlds=map(wire.world_message, page.items), next_page_token=page.next_page_token
        )

    async def RecordEvents(  # noqa: N802  # named by the proto
        self, request: pb.RecordEventsRequest, context: Any
    ) -> pb.RecordEventsResponse:
        """Appends story events, all or none."""
        events = await self._memory.record_events(
            uuid.UUID(request.request_id),
            parse_world_id("world_id", request.world_id),
            [wire.new_event(event, index) for index, event in enumerate(request.events)],
        )
        return pb.RecordEventsResponse(events=map(wire.event_message, events))

    async def Recall(  # noqa: N802  # named by the proto
        self, request: pb.RecallRequest, context: Any
    ) -> pb.RecallResponse:
        """Returns memories, best first."""
        query = RecallQuery.of(
            request.query,
            limit=request.limit or 10,
            start_time=wire.optional_time(request, "start_time"),
            end_time=wire.optional_time(request, "end_time"),
            kinds=tuple(request.kinds),
            participants=tuple(request.participants),
        )
        world_id = parse_world_id("world_id", request.world_id)
        recalled = await self._memory.recall(world_id, query)
        return pb.RecallResponse(events=map(wire.recalled_message, recalled))

    async def ListEvents(  # noqa: N802  # named by the proto
        self, request: pb.ListEventsRequest, context: Any
    ) -> pb.ListEventsResponse:
        """Returns story events, newest first."""
        page = await self._memory.list_events(
            parse_world_id("world_id", request.world_id),
            request.page_size or 50,
            request.page_token,
        )
        return pb.ListEventsResponse(
            events=map(wire.event_message, page.items), next_page_token=page.next_page_token
        )

    async def SetEventSubscription(  # noqa: N802  # named by the proto
        self, request: pb.SetEventSubscriptionRequest, context: Any
    ) -> pb.SetEventSubscriptionResponse:
        """Sets what a world takes from the bus."""
        wanted = request.subscription
        subscription = await self._subscriptions.set(
            uuid.UUID(request.request_id),
            parse_world_id("world_id", request.world_id),
            NewSubscription.of(wanted.event_types, wanted.sources),
        )
        return pb.SetEventSubscriptionResponse(subscription=wire.subscription_message(subscription))

    async def GetEventSubscription(  # noqa: N802  # named by the proto
        self, request: pb.GetEventSubscriptionRequest, context: Any
    ) -> pb.GetEventSubscriptionResponse:
        """Returns what a world takes from the bus."""
        subscription = await self._subscriptions.get(parse_world_id("world_id", request.world_id))
        return pb.GetEventSubscriptionResponse(subscription=wire.subscription_message(subscription))

    async def DeleteEventSubscription(  # noqa: N802  # named by the proto
        self, request: pb.DeleteEventSubscriptionRequest, context: Any
    ) -> pb.DeleteEventSubscriptionResponse:
        """Ends what a world takes from the bus."""
        subscription = await self._subscriptions.delete(
            uuid.UUID(request.request_id), parse_world_id("world_id", request.world_id)
        )
        return pb.DeleteEventSubscriptionResponse(
            subscription=wire.subscription_message(subscription)
        )

    async def PutConcept(  # noqa: N802  # named by the proto
        self, request: pb.PutConceptRequest, context: Any
    ) -> pb.PutConceptResponse:
        """Records a version of a concept."""
        concept = await self._concepts.put(
            uuid.UUID(request.request_id),
            parse_world_id("world_id", request.world_id),
            NewConcept.of(request.name, request.kind, request.description, request.attributes),
        )
        return pb.PutConceptResponse(concept=wire.concept_message(concept))

    async def GetConcept(  # noqa: N802  # named by the proto
        self, request: pb.GetConceptRequest, context: Any
    ) -> pb.GetConceptResponse:
        """Returns a concept."""
        concept = await self._concepts.get(
            parse_world_id("world_id", request.world_id), request.name, request.version
        )
        return pb.GetConceptResponse(concept=wire.concept_message(concept))

    async def ListConcepts(  # noqa: N802  # named by the proto
        self, request: pb.ListConceptsRequest, context: Any
    ) -> pb.ListConceptsResponse:
        """Returns the concepts a world sees."""
        page = await self._concepts.list(
            parse_world_id("world_id", request.world_id),
            request.kind,
            request.page_size or 100,
            request.page_token,
        )
        return pb.ListConceptsResponse(
            concepts=map(wire.concept_message, page.items), next_page_token=page.next_page_token
        )

    async def RelateConcepts(  # noqa: N802  # named by the proto
        self, request: pb.RelateConceptsRequest, context: Any
    ) -> pb.RelateConceptsResponse:
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
        return pb.RelateConceptsResponse(relationship=wire.relationship_message(relationship))

    async def ListRelationships(  # noqa: N802  # named by the proto
        self, request: pb.ListRelationshipsRequest, context: Any
    ) -> pb.ListRelationshipsResponse:
        """Returns a concept's relationships."""
        page = await self._concepts.list_relationships(
            parse_world_id("world_id", request.world_id),
            request.concept,
            request.page_size or 100,
            request.page_token,
        )
        return pb.ListRelationshipsResponse(
            relationships=map(wire.relationship_message, page.items),
            next_page_token=page.next_page_token,
        )


async def _documents(
    requests: AsyncIterator[pb.IngestDocumentsRequest],
) -> AsyncIterator[tuple[str, bytes]]:
    async for request in requests:
        if request.WhichOneof("step") != "document":
            raise InvalidRequest("`begin` comes once, first; then only documents follow.")
        yield request.document.path, request.document.content
