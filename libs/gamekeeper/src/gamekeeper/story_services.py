"""The storyteller's memory and narrator in this suite: the knowledge base and the router."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC

from gamekeeper.call_errors import CallFailed, calls_to
from gamekeeper.story_context import Citation, CitationKind, StoryContext
from gamekeeper.story_ports import AlreadyRecorded, MemoryAway, StoryEvent
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.knowledge_base.v1 import context_pb2, knowledge_base_pb2_grpc, story_pb2

__all__ = ["KnowledgeBaseMemory", "RouterNarrator"]

_LONGEST_QUERY_CHARACTERS = 2000
_REQUEST_ID_REUSED = "REQUEST_ID_REUSED"


class KnowledgeBaseMemory:
    """Remembers in the knowledge base. A player waits, so calls are short."""

    def __init__(
        self,
        stub: knowledge_base_pb2_grpc.KnowledgeBaseServiceAsyncStub,
        *,
        timeout_seconds: float = 3.0,
    ) -> None:
        self._stub = stub
        self._timeout_seconds = timeout_seconds

    async def context(
        self,
        world_id: str,
        query: str,
        *,
        characters: Sequence[str],
        token_budget: int,
        recent_events: int,
    ) -> StoryContext:
        """Returns what a narrator should know of the world and its lore, each thing once."""
        request = context_pb2.BuildContextRequest(
            world_id=world_id,
            query=query[:_LONGEST_QUERY_CHARACTERS],
            characters=characters,
            token_budget=token_budget,
            recent_events=recent_events,
        )
        with _memory_calls():
            built = await self._stub.BuildContext(request, timeout=self._timeout_seconds)
        return StoryContext(
            text=built.text,
            citations=tuple(_citation(part) for part in built.parts),
            tokens=built.tokens,
        )

    async def record(
        self, world_id: str, events: Sequence[StoryEvent], request_id: str
    ) -> Sequence[StoryEvent]:
        """Appends events and returns them as they are remembered; a repeat appends nothing."""
        request = story_pb2.RecordEventsRequest(
            world_id=world_id,
            request_id=request_id,
            events=[
                story_pb2.StoryEvent(
                    text=event.text, kind=event.kind, participants=event.participants
                )
                for event in events
            ],
        )
        try:
            with _memory_calls():
                response = await self._stub.RecordEvents(request, timeout=self._timeout_seconds)
        except CallFailed as failure:
            if failure.reason == _REQUEST_ID_REUSED:
                raise AlreadyRecorded from failure
            raise
        return [_event(event) for event in response.events]


class RouterNarrator:
    """Generates through the router."""

    def __init__(self, stub: ai_router_pb2_grpc.AiRouterServiceAsyncStub) -> None:
        self._stub = stub

    async def generate(
        self, request_id: str, spec: ai_router_pb2.GenerationSpec, timeout_seconds: float
    ) -> AsyncGenerator[ai_router_pb2.GenerateResponse, None]:
        """Yields the route, the text piece by piece, and the end; closing it early cancels."""
        request = ai_router_pb2.GenerateRequest(request_id=request_id, spec=spec)
        call = self._stub.Generate(request, timeout=timeout_seconds)
        try:
            with calls_to("ai_router"):
                async for response in call:
                    yield response
        finally:
            call.cancel()


@contextmanager
def _memory_calls() -> Iterator[None]:
    try:
        with calls_to("knowledge_base"):
            yield
    except CallFailed as failure:
        if failure.is_away:
            raise MemoryAway(failure.message) from failure
        raise


def _citation(part: context_pb2.ContextPart) -> Citation:
    match part.WhichOneof("cited"):
        case "lore":
            kind = CitationKind.LORE
            lore = part.lore
            source = " > ".join((lore.path, *lore.heading_path, str(lore.start_line)))
        case "concept":
            kind, source = CitationKind.CONCEPT, part.concept.name
        case _:
            kind, source = CitationKind.MEMORY, part.event.event_id
    return Citation(label=part.label, kind=kind, text=part.text, source=source)


def _event(event: story_pb2.StoryEvent) -> StoryEvent:
    occurred = event.occur_time if event.HasField("occur_time") else event.record_time
    return StoryEvent(
        text=event.text,
        kind=event.kind,
        participants=tuple(event.participants),
        event_id=event.event_id,
        occur_time=occurred.ToDatetime(tzinfo=UTC),
    )
