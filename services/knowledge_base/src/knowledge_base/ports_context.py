"""What building a context needs from outside."""

import uuid
from collections.abc import Sequence
from typing import Protocol

from knowledge_base.domain.concepts import Concept

__all__ = ["ContextConcepts", "TokenCounter"]


class TokenCounter(Protocol):
    """Counts tokens; of lines put together never more than of the lines one by one."""

    @property
    def name(self) -> str:
        """Names the way of counting to callers."""
        ...

    def count(self, text: str) -> int:
        """Returns the tokens of a text, rather too many than too few."""
        ...


class ContextConcepts(Protocol):
    """Finds concepts by what is spoken of. Raises Unavailable when the store is away."""

    async def concepts_named(
        self, world_id: uuid.UUID, names: Sequence[str], text: str, limit: int
    ) -> list[Concept]:
        """Returns the concepts of these names, and those whose name's letters stand in the text.

        As the world sees them now, by name, in one round trip. Raises WorldNotFound.
        """
        ...
