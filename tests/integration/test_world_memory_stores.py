"""What the simulation's store of worlds promises, PostgreSQL promises too, and the reverse."""

from __future__ import annotations

import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowledge_base.__main__ import connect
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.config import DatabaseSettings
from knowledge_base.domain.errors import RequestIdReused, WorldNotFound
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import NewEvent, RecallParameters, RecallQuery
from knowledge_base.ports import RequestKey
from knowledge_base.testing import SERVICE_ROLE, service_url
from servicekit.settings import load_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))
from memory_of_worlds import WorldEvents

NOW = datetime(2026, 5, 1, tzinfo=UTC)
OWN, OTHER = uuid.UUID(int=11), uuid.UUID(int=12)


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest, knowledge_base_database: str) -> AsyncIterator[Any]:
    """A store with two worlds."""
    if request.param == "memory":
        yield WorldEvents([OWN, OTHER])
        return
    owner = knowledge_base_database
    await migrate_schema(owner, service_url(owner), SERVICE_ROLE)
    settings = load_settings(DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": service_url(owner)})
    async with connect(settings) as database:
        memory = PostgresMemory(database)
        for world_id, name in ((OWN, "own"), (OTHER, "other")):
            await memory.create_world(new_key(), world_id, name, "")
        yield memory


def new_key(content: bytes = b"x") -> RequestKey:
    return RequestKey(uuid.uuid4(), content.ljust(32, b"\0"), NOW)


def event(text: str, minutes: int = 0) -> tuple[uuid.UUID, NewEvent]:
    return uuid.uuid4(), NewEvent.of(text, occur_time=NOW + timedelta(minutes=minutes))


async def record(store: Any, world: uuid.UUID, key: RequestKey, *events: Any) -> list[Any]:
    vectors = np.full((len(events), 384), 384**-0.5, dtype=np.float32)
    recorded: list[Any] = await store.record_events(world, key, events, "model", vectors)
    return recorded


async def recall(store: Any, world: uuid.UUID) -> list[str]:
    vector = np.full(384, 384**-0.5, dtype=np.float32)
    found = await store.recall(
        world, RecallQuery("a lamp"), vector, RankingParameters(), RecallParameters(), model="model"
    )
    return sorted(memory.event.text for memory in found)


async def test_events_are_numbered_and_listed_latest_first(store: Any) -> None:
    first = await record(store, OWN, new_key(), event("a lamp", 5), event("a key", 9))
    second = await record(store, OWN, new_key(), event("a door", 7))
    assert [e.sequence for e in (*first, *second)] == [1, 2, 3]
    listed = await store.list_events(OWN, None, 10)
    assert [e.text for e in listed] == ["a key", "a door", "a lamp"]
    before = (listed[0].occur_time, listed[0].sequence)
    assert [e.text for e in await store.list_events(OWN, before, 1)] == ["a door"]


async def test_a_repeated_request_returns_what_it_recorded(store: Any) -> None:
    key = new_key()
    assert await store.recorded_events(OWN, key) is None
    first = await record(store, OWN, key, event("a lamp"))
    again = await record(store, OWN, key, event("a lamp"))
    assert [e.event_id for e in again] == [e.event_id for e in first]
    assert [e.event_id for e in await store.recorded_events(OWN, key)] == [first[0].event_id]
    assert await recall(store, OWN) == ["a lamp"]


async def test_a_request_id_is_not_for_two_requests(store: Any) -> None:
    key = new_key(b"one")
    await record(store, OWN, key, event("a lamp"))
    other = RequestKey(key.request_id, b"two".ljust(32, b"\0"), NOW)
    with pytest.raises(RequestIdReused):
        await record(store, OWN, other, event("a key"))


async def test_a_world_recalls_its_own_events_only(store: Any) -> None:
    await record(store, OWN, new_key(), event("a lamp of ours"))
    await record(store, OTHER, new_key(), event("a lamp of theirs"))
    assert await recall(store, OWN) == ["a lamp of ours"]
    assert await recall(store, OTHER) == ["a lamp of theirs"]


async def test_a_world_that_is_not_there_is_not_found(store: Any) -> None:
    with pytest.raises(WorldNotFound):
        await record(store, uuid.uuid4(), new_key(), event("a lamp"))
    with pytest.raises(WorldNotFound):
        await recall(store, uuid.uuid4())
