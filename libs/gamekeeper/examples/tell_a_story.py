"""Tells a story that goes on where it stopped, whenever it is started again.

    .venv/bin/python libs/gamekeeper/examples/tell_a_story.py
    .venv/bin/python libs/gamekeeper/examples/tell_a_story.py          # again: it remembers
    .venv/bin/python libs/gamekeeper/examples/tell_a_story.py --world Hollowmere "I light the lamp."

It needs a running suite (`make run`), and finds it by itself. Every turn shows first what the
storyteller recalls of the world and knows of the lore, then its text, then what was recorded. With
simulated model servers the text is invented words; what is recalled and recorded is real.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from gamekeeper.call_errors import CallFailed
from gamekeeper.client import GamekeeperClient
from gamekeeper.story_context import Citation, CitationKind
from gamekeeper.storyteller import ContextReady, StoryPiece, Storyteller, StoryTurn

BEGINNING = (
    "I give my brass lantern to Ysra, who keeps the ferry, and ask her to guard it.",
    "I cross the water before dawn and promise to be back within a month.",
)
CONTINUATION = ("I come back to the ferry. What did I leave with Ysra, and what did I promise?",)


async def main(world_name: str, actions: list[str]) -> int:
    """Tells the turns and returns the exit code."""
    async with GamekeeperClient.open() as gamekeeper:
        try:
            world = await gamekeeper.ensure_world(world_name)
            before = world.event_count
            if before:
                print(f"The world {world.name} remembers {before} events.\n")
            else:
                print(f"The world {world.name} is new and remembers nothing.\n")
            storyteller = gamekeeper.storyteller(world.world_id)
            for action in actions or (CONTINUATION if before else BEGINNING):
                await tell(storyteller, action)
        except CallFailed as failure:
            print(f"{failure.service} says {failure.code.name}: {failure.message}", file=sys.stderr)
            if failure.retry_after_seconds is not None:
                print(f"try again in {failure.retry_after_seconds:g} s", file=sys.stderr)
            return 1
    return 0


async def tell(storyteller: Storyteller, action: str) -> None:
    """Tells one turn and shows it as it grows."""
    print(f"> {action}\n")
    async for step in storyteller.stream(action):
        match step:
            case ContextReady(context):
                for citation in context.citations:
                    print(f"  {describe(citation)}")
                print()
            case StoryPiece(text):
                print(text, end="", flush=True)
            case StoryTurn():
                print("\n")
                where = step.route.server_id or "the cache"
                state = f"recorded as {len(step.event_ids)} events" if step.recorded else "pending"
                print(f"  {step.end.output_tokens} tokens from {where}; {state}")
                for loss in step.degradations:
                    print(f"  without: {loss.value}")
                print()


def describe(citation: Citation) -> str:
    """Returns a line that says what is recalled, and from where."""
    text = " ".join(citation.text.split())
    shown = text if len(text) <= 90 else text[:89] + "…"
    if citation.kind is CitationKind.MEMORY:
        return f"remembers [{citation.label}] {shown}"
    return f"knows [{citation.label}] {shown} ({citation.source})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--world", default="A story across restarts", help="name of the world")
    parser.add_argument("actions", nargs="*", help="what the player does, turn by turn")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.world, arguments.actions)))
