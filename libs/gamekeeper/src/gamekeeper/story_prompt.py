"""The words the narrator gets."""

from __future__ import annotations

from gamekeeper.story_context import StoryContext
from gaming.ai_router.v1 import ai_router_pb2

__all__ = ["DEFAULT_INSTRUCTIONS", "build_messages"]

DEFAULT_INSTRUCTIONS = (
    "You are the storyteller of an online game. Tell what follows from the player's action in one "
    "to three short paragraphs, in the second person and the present tense, and leave the next "
    "move to the player. Keep to the lore and to what happened before; where they say nothing, "
    "invent little and contradict nothing. When you use a part of them, name its label in "
    "brackets, like [L1]."
)


def build_messages(
    instructions: str, context: StoryContext, action: str, player: str
) -> list[ai_router_pb2.ChatMessage]:
    """Returns the conversation: what never changes first, then the context, and the action.

    That order lets a server's prefix cache keep as much as possible from turn to turn.
    """
    told = f"{instructions}\n\n{context.text}" if context.text else instructions
    said = f"{player}: {action}" if player else action
    return [
        ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_SYSTEM, content=told),
        ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_USER, content=said),
    ]
