"""The two times of what the story knows, and from where it is looked at.

Valid time is when something holds in the story, recorded time is when the knowledge base believed
so. Periods are half-open: their beginning belongs to them, their end does not. The terms are those
of Snodgrass 2000, "Developing Time-Oriented Database Applications in SQL".
"""

import uuid
from dataclasses import dataclass
from datetime import datetime

from knowledge_base.domain.text import SHARED_WORLD, check_text
from servicekit.errors import FieldViolation, InvalidRequest

__all__ = ["ALWAYS", "NOW", "AsOf", "BelievedPeriod", "Layer", "Period"]


@dataclass(frozen=True, slots=True)
class Period:
    """A time of the story; None at an end that is open."""

    valid_from: datetime | None = None
    valid_until: datetime | None = None

    @classmethod
    def of(
        cls, valid_from: datetime | None, valid_until: datetime | None, path: str = ""
    ) -> "Period":
        """Returns the period. Raises InvalidRequest when it holds no moment."""
        if valid_from is not None and valid_until is not None and valid_from >= valid_until:
            description = "must be later than valid_from, to the microsecond"
            raise InvalidRequest(
                f"{path}valid_until {description}.",
                field_violations=[FieldViolation(f"{path}valid_until", description)],
            )
        return cls(valid_from, valid_until)


ALWAYS = Period()


@dataclass(frozen=True, slots=True)
class BelievedPeriod:
    """A time of the story and when it was believed; `superseded_time` is None while it is."""

    valid: Period
    record_time: datetime
    superseded_time: datetime | None


@dataclass(frozen=True, slots=True)
class AsOf:
    """A moment in each of the two times; None means the latest of all."""

    valid: datetime | None = None
    recorded: datetime | None = None


NOW = AsOf()


@dataclass(frozen=True, slots=True)
class Layer:
    """Where something is said: for a player of a world, in a world, or for all worlds.

    Seen from a layer, what it says overrides what the wider ones say. An empty `player_id` means
    everybody.
    """

    world_id: uuid.UUID
    player_id: str = ""

    @classmethod
    def of(cls, world_id: uuid.UUID, player_id: str) -> "Layer":
        """Returns the layer.

        Raises InvalidText, and InvalidRequest when a player is named but no world.
        """
        if player_id and world_id == SHARED_WORLD:
            description = "needs a world_id: what is so for a player is so in a world"
            raise InvalidRequest(
                f"player_id {description}.",
                field_violations=[FieldViolation("player_id", description)],
            )
        return cls(world_id, check_text("player_id", player_id))
