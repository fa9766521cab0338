"""What a turn of a story gives: its context, its pieces, and at last the whole of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gamekeeper.story_context import Citation, StoryContext
from gaming.ai_router.v1 import ai_router_pb2

__all__ = ["ContextReady", "Degradation", "StoryPiece", "StoryTurn", "TurnStep"]


class Degradation(Enum):
    """What a turn had to do without; the value says it in words."""

    NO_CONTEXT = "memory and lore could not be asked"
    TOLD_BEFORE = "the turn was recorded before with another text, and that one stands"
    NOT_RECORDED = "the turn is not recorded yet; it is tried again before the next one"
    RECORD_REFUSED = "the memory refused the turn for good; it is not recorded"
    RECORD_LOST = "more turns wait to be recorded than are kept; the oldest was given up"


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
        turn_id: names it; told again under this name by the same storyteller, it is the same turn.
        text: what was told.
        context: what the narrator was told of the past.
        route: where it was generated.
        end: tokens and times.
        recorded: the turn is in the memory.
        event_ids: its events there, the player's first; empty when they are not known.
        degradations: what it had to do without.
    """

    turn_id: str
    text: str
    context: StoryContext
    route: ai_router_pb2.RouteTaken
    end: ai_router_pb2.GenerationEnd
    recorded: bool
    event_ids: tuple[str, ...]
    degradations: tuple[Degradation, ...]

    @property
    def citations(self) -> tuple[Citation, ...]:
        """What the narrator was told of the past, each with its source."""
        return self.context.citations

    @property
    def cited(self) -> tuple[Citation, ...]:
        """The citations that the text names by their labels, like [L1]."""
        return tuple(c for c in self.citations if f"[{c.label}]" in self.text)


TurnStep = ContextReady | StoryPiece | StoryTurn
