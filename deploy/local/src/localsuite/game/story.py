"""A storyteller's evening: one player's tale, told through the SDK, remembered by the suite.

The later turns come back to what the earlier ones did, so what the storyteller recalls can be seen
to be right. The world is kept: the next evening remembers this one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from gamekeeper.addresses import Addresses
from gamekeeper.call_errors import CallFailed
from gamekeeper.client import GamekeeperClient
from gamekeeper.story_context import Citation, CitationKind, StoryContext
from gamekeeper.storyteller import ContextReady, Storyteller, StorytellerPolicy
from gamekeeper.storyteller import StoryTurn as ToldTurn
from gaming.common.v1 import tier_pb2
from localsuite.game.feed import StoryTurn
from localsuite.game.world_events import SUBSCRIBED_TYPES

__all__ = ["PLAYER", "WORLD_NAME", "tell_story"]

log = structlog.get_logger(__name__)

WORLD_NAME = "An evening at Middlestile"
PLAYER = "Ansa"
_PLAYER_WORDS = ("I ", "My ", "Before ", "Who ")

# What the player does, in order; later lines ask for what earlier ones left behind.
_FIRST_EVENING = (
    "I leave my grandmother's brass thimble on the sill and step across with the dawn hinge.",
    "I ask the stile-keeper who sweeps the sill, and give my name as Ansa.",
    "I lend the warmth of my lantern to the other side until the next dusk.",
    "I promise Oreld the cooper that I will bring back his empty cask before the nine is over.",
    "My hands are cold. What have I lent, and when does it come home?",
    "I search my pockets: what did I leave on the sill this morning?",
    "I meet the cooper again. What had I promised him?",
    "Before I sleep I tell my brother everything that happened today.",
)
# Told in a world that has a past: the questions are about evenings before this process began.
_LATER_EVENING = (
    "I wake at Middlestile. What happened when I was last here?",
    "I go to the sill and look for what I once left there.",
    "I lend the colour of my scarf to the other side until the second dusk.",
    "I ask the cooper whether he still waits for something of mine.",
    "My scarf is grey. What have I lent this time, and until when?",
    "I tell the stile-keeper that my brother will cross with tomorrow's dusk hinge.",
    "Who did I say will cross, and when?",
    "Before I sleep I count what I owe, and to whom.",
)
# The evening's share that has passed when the first and the last turn begin.
_FIRST_SHARE, _LAST_SHARE = 0.06, 0.86
_TURNS = len(_FIRST_EVENING)
_TURN_SECONDS = 20.0
_SHOWN_CHARACTERS = 240


async def tell_story(
    addresses: Addresses,
    *,
    duration_seconds: float,
    started: float,
    hear: Callable[[StoryTurn], None],
) -> None:
    """Tells the evening's turns at their times; a turn that fails is told as such and passed over.

    `started` is the evening's beginning on the monotonic clock.
    """
    policy = StorytellerPolicy(
        tier=tier_pb2.TIER_SILVER,
        max_output_tokens=90,
        context_tokens=700,
        turn_seconds=_TURN_SECONDS,
    )
    async with GamekeeperClient.open(addresses, environ={}) as client:
        storyteller: Storyteller | None = None
        ours: set[str] = set()
        actions = _FIRST_EVENING
        for number in range(_TURNS):
            share = _FIRST_SHARE + (_LAST_SHARE - _FIRST_SHARE) * number / (_TURNS - 1)
            begins = started + share * duration_seconds
            await asyncio.sleep(max(0.0, begins - time.monotonic()))
            try:
                if storyteller is None:
                    world = await client.ensure_world(
                        WORLD_NAME, "What befell Ansa, as the local suite tells it."
                    )
                    await client.subscribe_to_events(world.world_id, SUBSCRIBED_TYPES)
                    storyteller = client.storyteller(world.world_id, policy)
                    actions = _LATER_EVENING if world.event_count else _FIRST_EVENING
                hear(await _turn(storyteller, number + 1, actions[number], ours))
            except CallFailed as error:
                log.warning("story_turn_failed", turn=number + 1, reason=str(error))
                hear(_failed(number + 1, actions[number], str(error)))


async def _turn(storyteller: Storyteller, number: int, action: str, ours: set[str]) -> StoryTurn:
    began = time.monotonic()
    context = StoryContext()
    told: ToldTurn | None = None
    async for step in storyteller.stream(action, player=PLAYER):
        if isinstance(step, ContextReady):
            context = step.context
        elif isinstance(step, ToldTurn):
            told = step
    if told is None:
        return _failed(number, action, "the narrator ended without an end")
    # The simulated narrator's words mean little; what the player did is what a reader can judge.
    remembered = sorted(
        context.of(CitationKind.MEMORY),
        key=lambda citation: not citation.text.startswith(_PLAYER_WORDS),
    )
    from_this_evening = sum(citation.source in ours for citation in remembered)
    ours.update(told.event_ids)
    return StoryTurn(
        turn=number,
        player=action,
        recalled=tuple(_shown(citation) for citation in remembered),
        recalled_from_this_evening=from_this_evening,
        recalled_from_before=len(remembered) - from_this_evening,
        citations=tuple(citation.source for citation in context.of(CitationKind.LORE)),
        told=_short(told.text),
        seconds=round(time.monotonic() - began, 3),
        error="; ".join(loss.value for loss in told.degradations),
    )


def _failed(number: int, action: str, error: str) -> StoryTurn:
    return StoryTurn(number, action, (), 0, 0, (), "", 0.0, error)


def _shown(citation: Citation) -> str:
    return _short(citation.text)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    if len(flat) <= _SHOWN_CHARACTERS:
        return flat
    return flat[:_SHOWN_CHARACTERS].rsplit(" ", 1)[0] + " ..."
