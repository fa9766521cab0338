"""What worlds remember: recording events and recalling them."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import (
    NewEvent,
    RecallClues,
    RecalledEvent,
    RecallParameters,
    RecallQuery,
    StoryEvent,
    World,
    with_neighbours,
)
from knowledge_base.domain.memory_reranking import recall_candidates, rerank_memories
from knowledge_base.domain.past_forms import with_past_forms
from knowledge_base.domain.query_clues import (
    name_candidates,
    named_participants,
    named_times,
    without_names,
)
from knowledge_base.domain.requests import Json, fingerprint
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.ports import Embedder, MemoryStore, RequestKey
from knowledge_base.ports_reranker import Reranker
from knowledge_base.reading import read_texts
from servicekit.clock import Clock
from servicekit.errors import Unavailable
from servicekit.paging import Page, decode_page_token, encode_page_token

__all__ = ["WorldMemory"]

log = structlog.get_logger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FORGET_EVERY_SECONDS = 3600.0


class WorldMemory:
    """Worlds, their events, and what they recall.

    Args:
        new_id: makes the ids of worlds and events.
        request_retention: how long a repeated request is recognised.
        reranker: reads the first memories once more; what it keeps of an event is recorded with it.
    """

    def __init__(
        self,
        store: MemoryStore,
        embedder: Embedder,
        clock: Clock,
        ranking: RankingParameters,
        parameters: RecallParameters,
        *,
        request_retention: timedelta,
        reranker: Reranker | None = None,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._clock = clock
        self._reranker = reranker
        self._ranking = ranking
        self._parameters = parameters
        self._request_retention = request_retention
        self._new_id = new_id

    async def create_world(self, request_id: uuid.UUID, name: str, description: str) -> World:
        """Makes a world; the same request again returns the same world.

        Raises WorldNameTaken, RequestIdReused, InvalidText.
        """
        name = normalise_name("name", name)
        check_text("description", description)
        key = self._key(request_id, "CreateWorld", {"name": name, "description": description})
        return await self._store.create_world(key, self._new_id(), name, description)

    async def get_world(self, world_id: uuid.UUID | None, name: str) -> World:
        """Returns a world by its id or else by its name. Raises WorldNotFound, InvalidText."""
        return await self._store.get_world(
            world_id, normalise_name("name", name) if world_id is None else ""
        )

    async def list_worlds(self, page_size: int, page_token: str) -> Page[World]:
        """Returns worlds ordered by name. Raises InvalidPageToken."""
        scope = ("worlds",)
        position = decode_page_token(page_token, scope, (str,)) or [""]
        found = await self._store.list_worlds(str(position[0]), page_size + 1)
        items = tuple(found[:page_size])
        token = encode_page_token(scope, (items[-1].name,)) if len(found) > page_size else ""
        return Page(items, token)

    async def record_events(
        self, request_id: uuid.UUID, world_id: uuid.UUID, events: Sequence[NewEvent]
    ) -> list[StoryEvent]:
        """Appends events to a world, all or none; the same request again returns the same events.

        Raises WorldNotFound, RequestIdReused.
        """
        key = self._key(
            request_id,
            "RecordEvents",
            {"world": str(world_id), "events": [_event_content(event) for event in events]},
        )
        # A repeat costs no embedding, and the embedding holds no transaction open.
        recorded = await self._store.recorded_events(world_id, key)
        if recorded is not None:
            return recorded
        vectors, codes = await read_texts(
            [event.search_text for event in events], self._embedder, self._reranker
        )
        return await self._store.record_events(
            world_id,
            key,
            [(self._new_id(), event) for event in events],
            self._embedder.model,
            vectors,
            codes=codes,
        )

    async def recall(self, world_id: uuid.UUID, query: RecallQuery) -> list[RecalledEvent]:
        """Returns what the world remembers first.

        Names of participants are taken out of what is looked for and count by themselves, and so
        do days and months. The first memories are read once more; see `RecallParameters`.

        Raises WorldNotFound, EmbeddingModelChanged.
        """
        words = name_candidates(query.text)
        names = await self._store.participants_named(world_id, words) if words else []
        named = named_participants(query.text, names)
        text = without_names(query.text, named)
        clues = RecallClues(text, named, named_times(query.text), with_past_forms(text))
        parameters = self._parameters
        if query.weights is not None:
            relevance, recency, importance = query.weights
            parameters = replace(
                parameters,
                relevance_weight=relevance,
                recency_weight=recency,
                importance_weight=importance,
            )
        vector = await self._embedder.embed_query(clues.text)
        found = await self._store.recall(
            world_id,
            recall_candidates(query),
            vector,
            self._ranking,
            parameters,
            model=self._embedder.model,
            clues=clues,
            reranker="" if self._reranker is None else self._reranker.name,
        )
        recalled = rerank_memories(found, await self._met(clues, found), query, parameters)
        if not (query.neighbours and recalled):
            return recalled
        around = await self._store.events_around(
            world_id, [item.event.sequence for item in recalled], query
        )
        return with_neighbours(recalled, around, query.neighbours)

    async def _met(self, clues: RecallClues, found: Sequence[RecalledEvent]) -> list[float | None]:
        """Returns what the reranker gives each memory, None where it cannot; empty without one."""
        if self._reranker is None:
            return []
        known = [item.codes for item in found if item.codes is not None]
        scores = iter(await self._reranker.score(clues.text, known) if known else ())
        return [None if item.codes is None else next(scores) for item in found]

    async def list_events(
        self, world_id: uuid.UUID, page_size: int, page_token: str
    ) -> Page[StoryEvent]:
        """Returns a world's events, the latest in story time first.

        Raises WorldNotFound, InvalidPageToken.
        """
        scope = ("events", str(world_id))
        position = decode_page_token(page_token, scope, (int, int))
        before = None
        if position is not None:
            before = (_EPOCH + int(position[0]) * _MICROSECOND, int(position[1]))
        found = await self._store.list_events(world_id, before, page_size + 1)
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            microseconds = (items[-1].occur_time - _EPOCH) // _MICROSECOND
            token = encode_page_token(scope, (microseconds, items[-1].sequence))
        return Page(items, token)

    async def forget_requests(self) -> None:
        """Forgets old request ids, now and every hour; runs until cancelled."""
        while True:
            try:
                count = await self._store.forget_requests(
                    self._clock.now() - self._request_retention
                )
            except Unavailable:
                log.warning("requests_not_forgotten", reason="database away")
            else:
                log.debug("requests_forgotten", count=count)
            await self._clock.sleep(_FORGET_EVERY_SECONDS)

    def _key(self, request_id: uuid.UUID, method: str, content: dict[str, Json]) -> RequestKey:
        return RequestKey(request_id, fingerprint(method, content), self._clock.now())


def _event_content(event: NewEvent) -> Json:
    return {
        "text": event.text,
        "kind": event.kind,
        "participants": list(event.participants),
        "occur_time": event.occur_time.isoformat() if event.occur_time else None,
        "importance": event.importance,
    }
