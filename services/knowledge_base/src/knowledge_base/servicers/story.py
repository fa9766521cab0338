"""The methods for what happened in a world."""

import uuid
from typing import Any

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import story_pb2
from knowledge_base.domain.answerability import answer_probability
from knowledge_base.domain.memory import RecallQuery
from knowledge_base.domain.text import parse_world_id
from knowledge_base.memory import WorldMemory
from knowledge_base.wire.story import event_message, new_event, recall_weights, recalled_message
from knowledge_base.wire.times import optional_time

__all__ = ["StoryMethods"]


class StoryMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for what happened in a world."""

    _memory: WorldMemory

    async def RecordEvents(  # noqa: N802  # named by the proto
        self, request: story_pb2.RecordEventsRequest, context: Any
    ) -> story_pb2.RecordEventsResponse:
        """Appends story events, all or none."""
        events = await self._memory.record_events(
            uuid.UUID(request.request_id),
            parse_world_id("world_id", request.world_id),
            [new_event(event, index) for index, event in enumerate(request.events)],
        )
        return story_pb2.RecordEventsResponse(events=map(event_message, events))

    async def Recall(  # noqa: N802  # named by the proto
        self, request: story_pb2.RecallRequest, context: Any
    ) -> story_pb2.RecallResponse:
        """Returns memories, best first."""
        query = RecallQuery.of(
            request.query,
            limit=request.limit or 10,
            start_time=optional_time(request, "start_time"),
            end_time=optional_time(request, "end_time"),
            kinds=tuple(request.kinds),
            participants=tuple(request.participants),
            as_of_time=optional_time(request, "as_of_time"),
            as_of_record_time=optional_time(request, "as_of_record_time"),
            weights=recall_weights(request),
            neighbours=request.neighbours,
        )
        world_id = parse_world_id("world_id", request.world_id)
        recalled = await self._memory.recall(world_id, query)
        probability = answer_probability([item.cosine for item in recalled])
        if probability < request.minimum_answer_probability:
            recalled = []
        return story_pb2.RecallResponse(
            events=map(recalled_message, recalled), answer_probability=probability
        )

    async def ListEvents(  # noqa: N802  # named by the proto
        self, request: story_pb2.ListEventsRequest, context: Any
    ) -> story_pb2.ListEventsResponse:
        """Returns story events, newest first."""
        page = await self._memory.list_events(
            parse_world_id("world_id", request.world_id),
            request.page_size or 50,
            request.page_token,
        )
        return story_pb2.ListEventsResponse(
            events=map(event_message, page.items), next_page_token=page.next_page_token
        )
