"""Puts turns into the memory, once each and in order, also when the memory was away for a while."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from dataclasses import dataclass

import structlog

from gamekeeper.call_errors import CallFailed
from gamekeeper.story_ports import AlreadyRecorded, MemoryAway, StoryEvent, StoryMemory
from gamekeeper.story_turn import Degradation

__all__ = ["NARRATION_EVENT", "PLAYER_EVENT", "RecordOutcome", "TurnRecorder"]

log = structlog.get_logger(__name__)

PLAYER_EVENT = "player"
NARRATION_EVENT = "narration"

# A story event may have 8,000 characters in the knowledge base.
_LONGEST_EVENT_CHARACTERS = 8000
# Names a turn's record, so that the same turn is recorded once.
_TURN_NAMESPACE = uuid.UUID("0e0b1f0a-3c83-4d36-9b06-5c9f4a1f2d77")


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Whether a turn is in the memory, as which events, and what was lost on the way."""

    recorded: bool
    event_ids: tuple[str, ...] = ()
    losses: frozenset[Degradation] = frozenset()


@dataclass(frozen=True, slots=True)
class _Record:
    request_id: str
    events: tuple[StoryEvent, ...]


class TurnRecorder:
    """Records the turns of one world; keeps at most `pending_limit` while the memory is away."""

    def __init__(
        self, memory: StoryMemory, world_id: str, *, timeout_seconds: float, pending_limit: int
    ) -> None:
        self._memory = memory
        self._world_id = world_id
        self._timeout_seconds = timeout_seconds
        self._pending_limit = pending_limit
        self._pending: deque[_Record] = deque()

    @property
    def pending(self) -> int:
        """Turns that are not recorded yet."""
        return len(self._pending)

    async def record(self, turn_id: str, action: str, player: str, text: str) -> RecordOutcome:
        """Records what the player did and what was told, or keeps it for later."""
        participants = (player,) if player else ()
        events = tuple(
            StoryEvent(text=_shortened(words), kind=kind, participants=participants)
            for words, kind in ((action, PLAYER_EVENT), (text, NARRATION_EVENT))
            if words.strip()
        )
        request_id = str(uuid.uuid5(_TURN_NAMESPACE, f"{self._world_id}\n{turn_id}"))
        record = _Record(request_id, events)
        # Order matters to a story: behind a pending turn this one waits too.
        if not self._pending:
            outcome = await self._try(record)
            if outcome is not None:
                return outcome
        losses = {Degradation.NOT_RECORDED}
        if len(self._pending) >= self._pending_limit:
            self._pending.popleft()
            losses.add(Degradation.RECORD_LOST)
            log.error("turn_given_up", world_id=self._world_id)
        self._pending.append(record)
        return RecordOutcome(recorded=False, losses=frozenset(losses))

    async def flush(self) -> int:
        """Records what is pending, as far as the memory is there; returns how many still are."""
        while self._pending:
            # One that is refused for good is given up, or it would hold up all after it.
            if await self._try(self._pending[0]) is None:
                break
            self._pending.popleft()
        return len(self._pending)

    async def _try(self, record: _Record) -> RecordOutcome | None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                events = await self._memory.record(self._world_id, record.events, record.request_id)
        except AlreadyRecorded:
            return RecordOutcome(recorded=True, losses=frozenset({Degradation.TOLD_BEFORE}))
        except (MemoryAway, TimeoutError):
            return None
        except CallFailed as failure:
            # The text is told already; that it will not be remembered must not take it back.
            log.exception("turn_refused", world_id=self._world_id, reason=failure.reason)
            return RecordOutcome(recorded=False, losses=frozenset({Degradation.RECORD_REFUSED}))
        return RecordOutcome(recorded=True, event_ids=tuple(event.event_id for event in events))


def _shortened(text: str) -> str:
    text = text.replace("\x00", "")  # PostgreSQL has no such character
    if len(text) <= _LONGEST_EVENT_CHARACTERS:
        return text
    cut = text[: _LONGEST_EVENT_CHARACTERS - 1]
    return cut[: cut.rfind(" ")].rstrip() + "…" if " " in cut else cut + "…"
