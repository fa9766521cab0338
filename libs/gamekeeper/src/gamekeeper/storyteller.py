"""One turn of a story: remember, tell, record.

A turn recalls what matters to what the player does, tells what follows through the router, and
records both, so that the next turn, in this process or in one after a restart, knows of it. A turn
is told and recorded once, however often it is sent. When the memory is away the story goes on
without it and says so; what could not be recorded is kept, within bounds, and recorded before the
next turn.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from gamekeeper.story_context import StoryContext
from gamekeeper.story_ports import MemoryAway, Narrator, StoryMemory
from gamekeeper.story_prompt import DEFAULT_INSTRUCTIONS, build_messages
from gamekeeper.story_recorder import TurnRecorder
from gamekeeper.story_turn import ContextReady, Degradation, StoryPiece, StoryTurn, TurnStep
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

# Turns whose telling is kept, so that one sent again is not told anew.
_REMEMBERED_TURNS = 32


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
        recent_events: how many of the latest events are looked at, whatever they are about.
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
    recent_events: int = 8
    memory_seconds: float = 3.0
    turn_seconds: float = 60.0
    pending_turns: int = 100


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
        self._told: OrderedDict[str, StoryTurn] = OrderedDict()
        self._recorder = TurnRecorder(
            memory,
            world_id,
            timeout_seconds=self._policy.memory_seconds,
            pending_limit=self._policy.pending_turns,
        )

    @property
    def pending_turns(self) -> int:
        """Turns that were told but could not be recorded yet."""
        return self._recorder.pending

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
            ValueError: the player does and says nothing.
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
        async with self._turn:
            told = self._told.get(turn_id)
            if told is not None:
                yield ContextReady(told.context)
                yield StoryPiece(told.text)
                yield told
                return
            steps = self._tell_anew(action, player, turn_id or self._make_turn_id())
            async with aclosing(steps):
                async for step in steps:
                    yield step

    async def flush(self) -> int:
        """Tries to record what is pending; returns how many turns still are."""
        async with self._turn:
            return await self._recorder.flush()

    # Telling

    async def _tell_anew(
        self, action: str, player: str, turn_id: str
    ) -> AsyncGenerator[TurnStep, None]:
        losses: set[Degradation] = set()
        await self._recorder.flush()
        context = await self._remember(action, player, losses)
        yield ContextReady(context)
        pieces: list[str] = []
        route = ai_router_pb2.RouteTaken()
        end = ai_router_pb2.GenerationEnd()
        spec = self._spec(action, player, context)
        answer = self._narrator.generate(turn_id, spec, self._policy.turn_seconds)
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
        outcome = await self._recorder.record(turn_id, action, player, text)
        losses |= outcome.losses
        turn = StoryTurn(
            turn_id=turn_id,
            text=text,
            context=context,
            route=route,
            end=end,
            recorded=outcome.recorded,
            event_ids=outcome.event_ids,
            degradations=tuple(loss for loss in Degradation if loss in losses),
        )
        self._told[turn_id] = turn
        if len(self._told) > _REMEMBERED_TURNS:
            self._told.popitem(last=False)
        yield turn

    # Remembering

    async def _remember(self, action: str, player: str, losses: set[Degradation]) -> StoryContext:
        policy = self._policy
        try:
            async with asyncio.timeout(policy.memory_seconds):
                return await self._memory.context(
                    self.world_id,
                    action,
                    characters=(player,) if player else (),
                    token_budget=policy.context_tokens,
                    recent_events=policy.recent_events,
                )
        except (MemoryAway, TimeoutError):
            losses.add(Degradation.NO_CONTEXT)
            log.warning("memory_away", world_id=self.world_id)
            return StoryContext()

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
