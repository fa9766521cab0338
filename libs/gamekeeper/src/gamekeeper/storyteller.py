"""One turn of a story: remember, tell, record.

A turn recalls what matters to what the player does, tells what follows through the router, and
records both, so that the next turn, in this process or in one after a restart, knows of it. A turn
is recorded once, however often it is sent. When the memory is away the story goes on without it and
says so; what could not be recorded is kept, within bounds, and recorded before the next turn.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import structlog

from gamekeeper.call_errors import CallFailed
from gamekeeper.story_context import Citation, ContextShares, StoryContext, gather_context
from gamekeeper.story_ports import MemoryAway, Narrator, StoryEvent, StoryMemory
from gamekeeper.story_prompt import DEFAULT_INSTRUCTIONS, build_messages
from gaming.ai_router.v1 import ai_router_pb2
from gaming.common.v1 import tier_pb2

__all__ = [
    "ContextReady",
    "Degradation",
    "StoryPiece",
    "StoryTurn",
    "Storyteller",
    "StorytellerPolicy",
    "TurnStep",
]

log = structlog.get_logger(__name__)

T = TypeVar("T")

PLAYER_EVENT = "player"
NARRATION_EVENT = "narration"

# A story event may have 8,000 characters in the knowledge base.
_LONGEST_EVENT_CHARACTERS = 8000
# Names a turn's record, so that the same turn is recorded once.
_TURN_NAMESPACE = uuid.UUID("0e0b1f0a-3c83-4d36-9b06-5c9f4a1f2d77")


class Degradation(Enum):
    """What a turn had to do without."""

    NO_RECENT = "the latest events could not be read"
    NO_RECALL = "memories could not be recalled"
    NO_LORE = "the lore could not be searched"
    NOT_RECORDED = "the turn is not recorded yet; it is tried again before the next one"
    RECORD_LOST = "more turns wait to be recorded than are kept; the oldest was given up"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorytellerPolicy:
    """How a story is told.

    Attributes:
        instructions: what the narrator is and how it tells.
        tier: the tier wanted; unset lets the router choose.
        priority: how urgent turns are.
        max_output_tokens: most tokens of a turn's text.
        temperature: sampling temperature.
        context_tokens: most tokens of memories and lore in the prompt.
        shares: how that budget is shared out.
        recent_events: how many of the latest events are looked at.
        recalled_events: how many memories are asked for.
        lore_passages: how many passages of lore are asked for.
        memory_seconds: longest wait for the memory; a story without it beats a silent one.
        turn_seconds: longest wait for the text.
        pending_turns: most turns kept while the memory is away.
    """

    instructions: str = DEFAULT_INSTRUCTIONS
    tier: tier_pb2.Tier.ValueType = tier_pb2.TIER_UNSPECIFIED
    priority: ai_router_pb2.Priority.ValueType = ai_router_pb2.PRIORITY_NORMAL
    max_output_tokens: int = 300
    temperature: float = 0.8
    context_tokens: int = 1500
    shares: ContextShares = field(default_factory=ContextShares)
    recent_events: int = 8
    recalled_events: int = 8
    lore_passages: int = 6
    memory_seconds: float = 3.0
    turn_seconds: float = 60.0
    pending_turns: int = 100


@dataclass(frozen=True, slots=True)
class ContextReady:
    """The narrator is about to begin; this is what it is told of the past."""

    context: StoryContext


@dataclass(frozen=True, slots=True)
class StoryPiece:
    """The next piece of the text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryTurn:
    """A whole turn.

    Attributes:
        turn_id: names it; telling it again under this name records nothing more.
        text: what was told.
        remembered_text: the telling that the memory has; it differs from `text` when the turn was
            recorded before under the same name, and then it is the one that stands.
        citations: what the narrator was told of the past, each with its source.
        cited: those of them that the text names by their labels.
        route: where it was generated.
        end: tokens and times.
        recorded: the turn is in the memory.
        event_ids: its events there, the player's first; empty while it is not recorded.
        degradations: what it had to do without.
    """

    turn_id: str
    text: str
    remembered_text: str
    citations: tuple[Citation, ...]
    cited: tuple[Citation, ...]
    route: ai_router_pb2.RouteTaken
    end: ai_router_pb2.GenerationEnd
    recorded: bool
    event_ids: tuple[str, ...]
    degradations: tuple[Degradation, ...]


TurnStep = ContextReady | StoryPiece | StoryTurn


@dataclass(frozen=True, slots=True)
class _Record:
    request_id: str
    events: tuple[StoryEvent, ...]


class Storyteller:
    """Tells the story of one world. One turn at a time; a second one waits for the first."""

    def __init__(
        self,
        world_id: str,
        *,
        memory: StoryMemory,
        narrator: Narrator,
        policy: StorytellerPolicy | None = None,
        make_turn_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self.world_id = world_id
        self._memory = memory
        self._narrator = narrator
        self._policy = policy or StorytellerPolicy()
        self._make_turn_id = make_turn_id
        self._turn = asyncio.Lock()
        self._pending: deque[_Record] = deque()

    @property
    def pending_turns(self) -> int:
        """Turns that were told but could not be recorded yet."""
        return len(self._pending)

    async def tell(
        self,
        action: str,
        *,
        player: str = "",
        turn_id: str = "",
        on_text: Callable[[str], None] | None = None,
    ) -> StoryTurn:
        """Returns the turn that follows what the player does or says; `on_text` hears it grow.

        Args:
            action: what the player does or says.
            player: the player's name in the story; empty leaves it open.
            turn_id: names the turn; give the same to repeat a turn whose outcome you do not know.
            on_text: called with each piece of the text.

        Raises:
            CallFailed: the router has no answer (its `reason` says why), or the knowledge base
                refuses, for example because the world does not exist.
        """
        turn: StoryTurn | None = None
        async with aclosing(self.stream(action, player=player, turn_id=turn_id)) as steps:
            async for step in steps:
                if isinstance(step, StoryPiece) and on_text is not None:
                    on_text(step.text)
                elif isinstance(step, StoryTurn):
                    turn = step
        if turn is None:
            raise RuntimeError("the narrator ended without an end")
        return turn

    async def stream(
        self, action: str, *, player: str = "", turn_id: str = ""
    ) -> AsyncGenerator[TurnStep, None]:
        """Yields the context, the text piece by piece, and the whole turn once it is recorded.

        Closing the generator early ends the generation and records nothing. Raises as `tell` does.
        """
        if not action.strip():
            raise ValueError("a turn needs something that the player does or says")
        turn_id = turn_id or self._make_turn_id()
        async with self._turn:
            missing: set[Degradation] = set()
            await self._record_pending()
            context = await self._remember(action, missing)
            yield ContextReady(context)
            pieces: list[str] = []
            route = ai_router_pb2.RouteTaken()
            end = ai_router_pb2.GenerationEnd()
            answer = self._narrator.generate(
                turn_id, self._spec(action, player, context), self._policy.turn_seconds
            )
            async with aclosing(answer) as responses:
                async for response in responses:
                    match response.WhichOneof("event"):
                        case "route":
                            route = response.route
                        case "delta":
                            pieces.append(response.delta.text)
                            yield StoryPiece(response.delta.text)
                        case "end":
                            end = response.end
            text = "".join(pieces)
            recorded = await self._record(turn_id, action, player, text, missing)
            yield StoryTurn(
                turn_id=turn_id,
                text=text,
                remembered_text=_telling(recorded, text),
                citations=context.citations,
                cited=tuple(c for c in context.citations if f"[{c.label}]" in text),
                route=route,
                end=end,
                recorded=bool(recorded),
                event_ids=tuple(event.event_id for event in recorded),
                degradations=tuple(sorted(missing, key=list(Degradation).index)),
            )

    async def flush(self) -> int:
        """Tries to record what is pending; returns how many turns still are."""
        async with self._turn:
            await self._record_pending()
            return len(self._pending)

    # Remembering

    async def _remember(self, action: str, missing: set[Degradation]) -> StoryContext:
        policy, memory = self._policy, self._memory
        refusals: list[CallFailed] = []
        async with asyncio.TaskGroup() as group:
            recent = group.create_task(
                self._or_without(
                    memory.recent(self.world_id, policy.recent_events),
                    Degradation.NO_RECENT,
                    missing,
                    refusals,
                )
            )
            recalled = group.create_task(
                self._or_without(
                    memory.recall(self.world_id, action, policy.recalled_events),
                    Degradation.NO_RECALL,
                    missing,
                    refusals,
                )
            )
            lore = group.create_task(
                self._or_without(
                    memory.search(action, policy.lore_passages),
                    Degradation.NO_LORE,
                    missing,
                    refusals,
                )
            )
        if refusals:
            raise refusals[0]
        return gather_context(
            recent=recent.result(),
            recalled=recalled.result(),
            lore=lore.result(),
            token_budget=policy.context_tokens,
            shares=policy.shares,
        )

    async def _or_without(
        self,
        asked: Awaitable[Sequence[T]],
        loss: Degradation,
        missing: set[Degradation],
        refusals: list[CallFailed],
    ) -> Sequence[T]:
        try:
            async with asyncio.timeout(self._policy.memory_seconds):
                return await asked
        except (MemoryAway, TimeoutError):
            missing.add(loss)
            log.warning("memory_away", world_id=self.world_id, loss=loss.name)
        except CallFailed as failure:
            refusals.append(failure)
        return ()

    # Telling

    def _spec(
        self, action: str, player: str, context: StoryContext
    ) -> ai_router_pb2.GenerationSpec:
        policy = self._policy
        return ai_router_pb2.GenerationSpec(
            messages=build_messages(policy.instructions, context, action, player),
            tier=policy.tier,
            priority=policy.priority,
            max_output_tokens=policy.max_output_tokens,
            temperature=policy.temperature,
            # Turns of one world begin with the same text, which its server may still have at hand.
            affinity_key=f"world:{self.world_id}",
        )

    # Recording

    async def _record(
        self, turn_id: str, action: str, player: str, text: str, missing: set[Degradation]
    ) -> Sequence[StoryEvent]:
        participants = (player,) if player else ()
        said = [(action, PLAYER_EVENT), (text, NARRATION_EVENT)]
        events = tuple(
            StoryEvent(text=_shortened(words), kind=kind, participants=participants)
            for words, kind in said
            if words.strip()
        )
        request_id = str(uuid.uuid5(_TURN_NAMESPACE, f"{self.world_id}\n{turn_id}"))
        record = _Record(request_id, events)
        if not self._pending:
            recorded = await self._try_record(record)
            if recorded is not None:
                return recorded
        # Order matters to a story: behind a pending turn this one waits too.
        missing.add(Degradation.NOT_RECORDED)
        if len(self._pending) >= self._policy.pending_turns:
            self._pending.popleft()
            missing.add(Degradation.RECORD_LOST)
            log.error("turn_given_up", world_id=self.world_id)
        self._pending.append(record)
        return ()

    async def _record_pending(self) -> None:
        while self._pending:
            try:
                if await self._try_record(self._pending[0]) is None:
                    return
            except CallFailed as failure:
                # It would be refused for ever and hold up all turns after it.
                log.exception("turn_refused", world_id=self.world_id, reason=failure.reason)
            self._pending.popleft()

    async def _try_record(self, record: _Record) -> Sequence[StoryEvent] | None:
        try:
            async with asyncio.timeout(self._policy.memory_seconds):
                return await self._memory.record(self.world_id, record.events, record.request_id)
        except (MemoryAway, TimeoutError):
            return None


def _telling(recorded: Sequence[StoryEvent], text: str) -> str:
    """Returns the narration the memory has; `text` itself where only its length differs."""
    remembered = next((event.text for event in recorded if event.kind == NARRATION_EVENT), text)
    return text if remembered == _shortened(text) else remembered


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_EVENT_CHARACTERS:
        return text
    cut = text[: _LONGEST_EVENT_CHARACTERS - 1]
    return cut[: cut.rfind(" ")].rstrip() + "…" if " " in cut else cut + "…"
