"""What a world takes from the game's event bus."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from knowledge_base.domain.text import check_texts

__all__ = ["EventSubscription", "NewSubscription"]


@dataclass(frozen=True, slots=True)
class NewSubscription:
    """What a world shall take: types by their numbers on the bus; no sources means all."""

    event_types: tuple[int, ...]
    sources: tuple[str, ...]

    @classmethod
    def of(cls, event_types: Iterable[int], sources: Iterable[str]) -> "NewSubscription":
        """Returns the subscription in one order, so that the same wish is the same request.

        Raises InvalidText when a source cannot be stored.
        """
        checked = check_texts("subscription.sources", sources)
        return cls(tuple(sorted(set(event_types))), tuple(sorted(set(checked))))


@dataclass(frozen=True, slots=True)
class EventSubscription:
    """What a world takes, and since when."""

    world_id: uuid.UUID
    event_types: tuple[int, ...]
    sources: tuple[str, ...]
    update_time: datetime
