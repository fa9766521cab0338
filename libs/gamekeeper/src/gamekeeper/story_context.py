"""What the narrator is told of the past, as the memory chose and wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Citation", "CitationKind", "StoryContext"]


class CitationKind(Enum):
    """Where a part of the context comes from."""

    CONCEPT = "concept"
    LORE = "lore"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """One part of the context: its label in the prompt, its text, and its source for people.

    The source of a memory is its event id, that of lore `path > heading > line`, that of a concept
    its name.
    """

    label: str
    kind: CitationKind
    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryContext:
    """Memory and lore for one turn.

    Attributes:
        text: ready for a prompt: says of itself that it is data and no instruction, and names each
            part by its label; empty when nothing is known.
        citations: the parts, in the order of the text.
        tokens: of the text, as the memory counts them.
    """

    text: str = ""
    citations: tuple[Citation, ...] = ()
    tokens: int = 0

    def of(self, kind: CitationKind) -> tuple[Citation, ...]:
        """Returns the parts that come from there."""
        return tuple(citation for citation in self.citations if citation.kind is kind)
