"""One turn of a story: remember, tell, record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import grpc
import grpc.aio
import pytest

from gamekeeper.call_errors import CallFailed
from gamekeeper.story_context import StoryContext
from gamekeeper.story_ports import StoryEvent
from gamekeeper.story_testing import InMemoryStoryMemory, LorePassage, ScriptedNarrator
from gamekeeper.storyteller import (
    ContextReady,
    Degradation,
    StoryPiece,
    Storyteller,
    StorytellerPolicy,
    StoryTurn,
)

WORLD = "w1"
LAMP_LORE = LorePassage(
    text="The lamp of Harrowmere is lit by the ferryman.",
    source="places.md > Places > Harrowmere > 12",
)


def failed_call(code: grpc.StatusCode) -> CallFailed:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no")
    return CallFailed("ai_router", error)


def storyteller(
    memory: InMemoryStoryMemory, narrator: ScriptedNarrator | None = None, **policy: object
) -> Storyteller:
    numbers = iter(range(1000))
    return Storyteller(
        WORLD,
        memory=memory,
        narrator=narrator or ScriptedNarrator(),
        policy=StorytellerPolicy(**policy),  # type: ignore[arg-type]  # fields of the policy
        make_turn_id=lambda: f"turn-{next(numbers)}",
    )


def told(memory: InMemoryStoryMemory) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in memory.events.get(WORLD, [])]


async def test_a_turn_is_told_and_recorded_with_its_citations() -> None:
    memory = InMemoryStoryMemory(lore=[LAMP_LORE])
    narrator = ScriptedNarrator(pieces=("By the lamp ", "[L1] you see."))
    heard: list[str] = []
    turn = await storyteller(memory, narrator).tell(
        "I look for the lamp", player="Ysra", on_text=heard.append
    )
    assert turn.text == "By the lamp [L1] you see."
    assert heard == ["By the lamp ", "[L1] you see."]
    assert turn.recorded
    assert turn.degradations == ()
    assert [c.source for c in turn.cited] == ["places.md > Places > Harrowmere > 12"]
    assert told(memory) == [
        ("player", "I look for the lamp"),
        ("narration", "By the lamp [L1] you see."),
    ]
    assert memory.events[WORLD][0].participants == ("Ysra",)
    assert turn.event_ids == tuple(event.event_id for event in memory.events[WORLD])
    assert turn.route.server_id == "scripted"
    assert narrator.specs[0].affinity_key == f"world:{WORLD}"


async def test_another_storyteller_goes_on_where_the_first_stopped() -> None:
    memory, narrator = InMemoryStoryMemory(), ScriptedNarrator()
    await storyteller(memory).tell("I give the lantern to Oren")
    await storyteller(memory, narrator).tell("What did I give to Oren")
    prompt = narrator.specs[0].messages[0].content
    assert "I give the lantern to Oren" in prompt
    assert prompt.count("I give the lantern to Oren") == 1


async def test_the_player_is_there_and_the_budget_is_the_policys() -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    class Listening(InMemoryStoryMemory):
        async def context(self, world_id: str, query: str, **options: object) -> StoryContext:
            asked.append((query, options))
            return StoryContext()

    teller = storyteller(Listening(), context_tokens=70, recent_events=3)
    await teller.tell("I wave", player="Ysra")
    await teller.tell("I wave back")
    limits = {"token_budget": 70, "recent_events": 3}
    assert asked == [
        ("I wave", {"characters": ("Ysra",), **limits}),
        ("I wave back", {"characters": (), **limits}),
    ]


async def test_another_worlds_past_is_never_told() -> None:
    memory, narrator = InMemoryStoryMemory(), ScriptedNarrator()
    await memory.record("w2", [StoryEvent(text="I give the lantern to Oren")], "r")
    await storyteller(memory, narrator).tell("What did I give to Oren")
    assert "lantern" not in narrator.specs[0].messages[0].content


async def test_the_same_turn_sent_again_is_neither_told_nor_recorded_anew() -> None:
    memory, narrator = InMemoryStoryMemory(), ScriptedNarrator()
    teller = storyteller(memory, narrator)
    first = await teller.tell("I wave", turn_id="t")
    heard: list[str] = []
    assert await teller.tell("I wave", turn_id="t", on_text=heard.append) is first
    assert heard == [first.text]
    assert len(narrator.specs) == 1
    assert len(memory.events[WORLD]) == 2


async def test_after_a_restart_the_first_telling_of_a_turn_stands_and_that_is_told() -> None:
    memory = InMemoryStoryMemory()
    first = await storyteller(memory).tell("I wave", turn_id="t")
    narrator = ScriptedNarrator(pieces=("Another text.",))
    again = await storyteller(memory, narrator).tell("I wave", turn_id="t")
    assert again.recorded
    assert again.degradations == (Degradation.TOLD_BEFORE,)
    assert told(memory) == [("player", "I wave"), ("narration", first.text)]


@pytest.mark.parametrize("how", ["away", "silent"])
async def test_without_its_memory_the_story_goes_on_and_says_so(how: str) -> None:
    memory = InMemoryStoryMemory(lore=[LAMP_LORE])
    teller = storyteller(memory, memory_seconds=0.01)
    setattr(memory, how, True)
    turn = await teller.tell("I look for the lamp")
    assert turn.text == "The lamp burns."
    assert turn.citations == ()
    assert not turn.recorded
    assert turn.degradations == (
        Degradation.NO_CONTEXT,
        Degradation.NOT_RECORDED,
    )
    assert teller.pending_turns == 1


async def test_what_could_not_be_recorded_is_recorded_in_order_before_the_next_turn() -> None:
    memory = InMemoryStoryMemory()
    teller = storyteller(memory)
    memory.away = True
    for action in ("one", "two"):
        await teller.tell(action)
    memory.away = False
    turn = await teller.tell("three")
    assert turn.recorded
    assert teller.pending_turns == 0
    assert [text for kind, text in told(memory) if kind == "player"] == ["one", "two", "three"]


async def test_pending_turns_are_bounded_and_a_loss_is_told() -> None:
    memory = InMemoryStoryMemory(away=True)
    teller = storyteller(memory, pending_turns=2)
    turns = [await teller.tell(action) for action in ("one", "two", "three")]
    assert Degradation.RECORD_LOST in turns[-1].degradations
    assert teller.pending_turns == 2
    memory.away = False
    assert await teller.flush() == 0
    assert [text for kind, text in told(memory) if kind == "player"] == ["two", "three"]


async def test_an_answer_that_breaks_off_is_not_recorded() -> None:
    memory = InMemoryStoryMemory()
    narrator = ScriptedNarrator(failure=failed_call(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(CallFailed) as caught:
        await storyteller(memory, narrator).tell("I wave")
    assert caught.value.is_away
    assert told(memory) == []


async def test_a_listener_that_leaves_ends_the_generation_and_records_nothing() -> None:
    memory, narrator = InMemoryStoryMemory(), ScriptedNarrator()
    teller = storyteller(memory, narrator)
    async with aclosing(teller.stream("I wave")) as steps:
        async for step in steps:
            if isinstance(step, StoryPiece):
                break
    assert narrator.closed_early == 1
    assert told(memory) == []
    assert (await teller.tell("I wave again")).recorded, "the next turn is not blocked"


async def test_steps_come_in_order() -> None:
    steps = [step async for step in storyteller(InMemoryStoryMemory()).stream("I wave")]
    assert [type(step) for step in steps] == [ContextReady, StoryPiece, StoryPiece, StoryTurn]


async def test_two_turns_at_once_are_told_one_after_the_other() -> None:
    memory = InMemoryStoryMemory()
    teller = storyteller(memory)
    await asyncio.gather(teller.tell("one"), teller.tell("two"))
    assert [kind for kind, _ in told(memory)] == ["player", "narration"] * 2


async def test_a_turn_without_an_action_is_refused() -> None:
    with pytest.raises(ValueError, match="something"):
        await storyteller(InMemoryStoryMemory()).tell("  ")


async def test_texts_longer_than_an_event_are_shortened_in_memory_only() -> None:
    memory = InMemoryStoryMemory()
    long = "word " * 3000
    turn = await storyteller(memory, ScriptedNarrator(pieces=(long,))).tell("I wave")
    assert turn.text == long
    remembered = told(memory)[1][1]
    assert len(remembered) <= 8000
    assert remembered.endswith("word…")


class RefusingMemory(InMemoryStoryMemory):
    async def context(self, world_id: str, query: str, **options: object) -> StoryContext:
        raise failed_call(grpc.StatusCode.NOT_FOUND)


class ForgetfulMemory(InMemoryStoryMemory):
    async def record(
        self, world_id: str, events: Sequence[StoryEvent], request_id: str
    ) -> Sequence[StoryEvent]:
        if "unspeakable" in events[0].text and not self.away:
            raise failed_call(grpc.StatusCode.INVALID_ARGUMENT)
        return await super().record(world_id, events, request_id)


async def test_a_turn_that_the_memory_refuses_is_told_all_the_same() -> None:
    memory = ForgetfulMemory()
    teller = storyteller(memory)
    turn = await teller.tell("I say the unspeakable")
    assert turn.text == "The lamp burns."
    assert not turn.recorded
    assert turn.degradations == (Degradation.RECORD_REFUSED,)
    assert (await teller.tell("I wave")).recorded


async def test_a_refused_turn_does_not_hold_up_those_that_wait_behind_it() -> None:
    memory = ForgetfulMemory(away=True)
    teller = storyteller(memory)
    for action in ("I say the unspeakable", "I wave"):
        await teller.tell(action)
    memory.away = False
    assert await teller.flush() == 0
    assert [text for kind, text in told(memory) if kind == "player"] == ["I wave"]


async def test_a_world_that_does_not_exist_is_an_error_not_a_degradation() -> None:
    with pytest.raises(CallFailed) as caught:
        await storyteller(RefusingMemory()).tell("I wave")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert not caught.value.is_away
