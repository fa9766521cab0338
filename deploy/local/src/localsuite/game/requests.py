"""What players ask the AI for: three kinds of request, one for each tier. Seeded.

    kind       tier    the player waits for                        share    patience
    bark       Gold    a line from a character in the thick of it   70 %       6 s
    dialogue   Silver  the other side of a conversation           29.5 %      20 s
    chronicle  Bronze  an entry in the chronicle of the travels    0.5 %      60 s

When, and how long prompts and answers are, comes from `fleetsim.arrivals`: about 340 tokens in, of
which the 200 of a tier's instructions are the same every time, and 80 out (half of that for an
entry in the chronicle, which the slow tier writes). One bark in ten is a
greeting that every player gets alike; it asks for the most likely words (temperature 0), so the
router may answer it from its cache. The shares are this game's design, not a measurement.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fleetsim.arrivals import ArrivalProcess, TierMix
from fleetsim.players import PlayerCurve
from gaming.ai_router.v1 import ai_router_pb2
from gaming.common.v1 import tier_pb2

__all__ = ["TIER_NAMES", "PlayerRequest", "evening_requests"]

TIER_NAMES: dict[tier_pb2.Tier.ValueType, str] = {
    tier_pb2.TIER_GOLD: "gold",
    tier_pb2.TIER_SILVER: "silver",
    tier_pb2.TIER_BRONZE: "bronze",
}

_MIX = TierMix(tiers=("gold", "silver", "bronze"), shares=(0.70, 0.295, 0.005))
_GREETING_SHARE = 0.10
_CHARACTERS_PER_TOKEN = 4
_DRAW_SECONDS = 10.0

_RULES = (
    "Speak as the character would, in the words of the two worlds, and never of the game itself. "
    "Keep to what the player has seen or could have heard. Names, debts and promises that stand in "
    "the notes below are true; what contradicts them is rumour, and the character says so. No one "
    "crosses a stile alone after dusk, nothing is lent without a witness, and the bell is rung by "
    "none but those who may ring it. Do not decide for the player what the player does. Do not "
    "promise what the character could not give. If the player is rude, the character may be hurt, "
    "amused or silent, but goes on living in the scene. Prefer the small and the concrete: a "
    "smell, a coin, a sleeve. End where the player can answer. "
)
_TASKS = {
    tier_pb2.TIER_GOLD: "Call out one line in the thick of the scene. ",
    tier_pb2.TIER_SILVER: "Hold up the other side of the conversation. ",
    tier_pb2.TIER_BRONZE: "Write the chronicle's next entry from the notes, in past tense. ",
}
_SPEAKERS = ("the ferrywoman", "a toll clerk", "the stile-warden", "a tinker", "the bell founder")
_PLACES = ("at the ford", "under the bridge", "in the market hall", "on the ridge", "by the kiln")
_NOTES = (
    "The river is high and the ferry runs only at dusk.",
    "A borrowed thing must be given back before the second moon.",
    "Nobody in the village has seen the miller since the frost.",
    "The wardens close the stile when the wind comes from the east.",
    "Two coins were left on the sill, and one of them is warm.",
    "The old road is shorter, but it does not always lead the same way.",
    "The bell was cast from what the soldiers left behind.",
    "Those who lend their name go quiet until it is returned.",
    "Someone has drawn a door on the inside of the granary wall.",
    "The tinker's mule refuses the bridge and will not say why.",
)
_GREETINGS = tuple(
    f"Greet a traveller whom {speaker} meets {place}." for speaker in _SPEAKERS for place in _PLACES
)

_PRIORITIES = {
    tier_pb2.TIER_GOLD: ai_router_pb2.PRIORITY_HIGH,
    tier_pb2.TIER_SILVER: ai_router_pb2.PRIORITY_NORMAL,
    tier_pb2.TIER_BRONZE: ai_router_pb2.PRIORITY_LOW,
}
_PATIENCE_SECONDS = {
    tier_pb2.TIER_GOLD: 6.0,
    tier_pb2.TIER_SILVER: 20.0,
    tier_pb2.TIER_BRONZE: 60.0,
}


@dataclass(frozen=True, slots=True)
class PlayerRequest:
    """One request as the game sends it, `at_seconds` after the evening's beginning."""

    at_seconds: float
    tier: tier_pb2.Tier.ValueType
    patience_seconds: float
    message: ai_router_pb2.GenerateRequest


def evening_requests(
    curve: PlayerCurve, *, requests_per_player_second: float, seed: int
) -> Iterator[PlayerRequest]:
    """Yields the evening's requests in order of time; the same seed, the same requests."""
    process = ArrivalProcess(
        curve, requests_per_player_per_second=requests_per_player_second, mix=_MIX
    )
    generator = np.random.default_rng(seed)
    words = random.Random(seed)  # noqa: S311  # a game, not a secret
    tiers = [tier_pb2.Tier.Value(f"TIER_{name.upper()}") for name in _MIX.tiers]
    number = 0
    for start in np.arange(0.0, curve.duration_seconds, _DRAW_SECONDS):
        end = min(float(start) + _DRAW_SECONDS, curve.duration_seconds)
        batch = process.draw(generator, float(start), end)
        for at, tier_index, prompt_tokens, output_tokens in zip(
            batch.times.tolist(),
            batch.tier_index.tolist(),
            batch.prompt_tokens.tolist(),
            batch.output_tokens.tolist(),
            strict=True,
        ):
            number += 1
            tier = tiers[tier_index]
            player = words.randrange(max(1, round(float(curve.players_at(at)))))
            yield PlayerRequest(
                at,
                tier,
                _PATIENCE_SECONDS[tier],
                ai_router_pb2.GenerateRequest(
                    request_id=f"game-{seed}-{number}",
                    spec=_spec(words, tier, player, prompt_tokens, output_tokens),
                ),
            )


def _spec(
    words: random.Random,
    tier: tier_pb2.Tier.ValueType,
    player: int,
    prompt_tokens: int,
    output_tokens: int,
) -> ai_router_pb2.GenerationSpec:
    instructions = _RULES + _TASKS[tier]
    if tier == tier_pb2.TIER_GOLD and words.random() < _GREETING_SHARE:
        prompt, temperature, output_tokens = words.choice(_GREETINGS), 0.0, 24
    else:
        if tier == tier_pb2.TIER_BRONZE:
            output_tokens = max(1, output_tokens // 2)
        room = prompt_tokens * _CHARACTERS_PER_TOKEN - len(instructions)
        prompt, temperature = _scene(words, room), None
    return ai_router_pb2.GenerationSpec(
        messages=[
            ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_SYSTEM, content=instructions),
            ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_USER, content=prompt),
        ],
        tier=tier,
        priority=_PRIORITIES[tier],
        max_output_tokens=output_tokens,
        temperature=temperature,
        affinity_key=f"player-{player}",
    )


def _scene(words: random.Random, characters: int) -> str:
    """A scene and its notes of about as many characters, at least one sentence."""
    parts = [f"You are {words.choice(_SPEAKERS)}, {words.choice(_PLACES)}."]
    length = len(parts[0])
    while length < characters:
        parts.append(words.choice(_NOTES))
        length += len(parts[-1]) + 1
    return " ".join(parts)
