"""Layers, moments and periods on the wire."""

import uuid
from typing import Any

from knowledge_base.domain.errors import InvalidIdentifier
from knowledge_base.domain.story_time import AsOf, Layer, Period
from knowledge_base.domain.text import parse_world_id
from knowledge_base.wire.times import optional_time, stamp
from servicekit.errors import FieldViolation, InvalidRequest

__all__ = ["as_of_of", "layer_of", "period_fields", "period_of", "point_of", "uuid_of"]


def layer_of(request: Any) -> Layer:
    """Returns the layer of a request with `world_id` and `player_id`.

    Raises InvalidIdentifier, InvalidText, InvalidRequest.
    """
    return Layer.of(parse_world_id("world_id", request.world_id), request.player_id)


def as_of_of(request: Any, path: str = "") -> AsOf:
    """Returns the moments of a message with `as_of_valid` and `as_of_recorded`.

    Raises InvalidRequest.
    """
    return AsOf(
        optional_time(request, "as_of_valid", f"{path}as_of_valid"),
        optional_time(request, "as_of_recorded", f"{path}as_of_recorded"),
    )


def point_of(message: Any, path: str = "") -> tuple[int, AsOf]:
    """Returns a version and moments, of which one is asked for.

    Raises InvalidRequest when both are.
    """
    as_of = as_of_of(message, path)
    if message.version and (as_of.valid is not None or as_of.recorded is not None):
        description = "must be 0 where as_of_valid or as_of_recorded is set"
        raise InvalidRequest(
            f"{path}version {description}.",
            field_violations=[FieldViolation(f"{path}version", description)],
        )
    return message.version, as_of


def period_of(message: Any, path: str = "") -> Period:
    """Returns the period of a message with `valid_from` and `valid_until`.

    Raises InvalidRequest.
    """
    return Period.of(
        optional_time(message, "valid_from", f"{path}valid_from"),
        optional_time(message, "valid_until", f"{path}valid_until"),
        path,
    )


def period_fields(period: Period) -> dict[str, Any]:
    """Returns a message's fields of a period; an open end has none."""
    fields = {"valid_from": period.valid_from, "valid_until": period.valid_until}
    return {name: stamp(moment) for name, moment in fields.items() if moment is not None}


def uuid_of(field: str, text: str) -> uuid.UUID:
    """Returns an id. Raises InvalidIdentifier."""
    try:
        return uuid.UUID(text)
    except ValueError:
        description = "must be a UUID such as 3f2b8c1e-8f5e-4d0a-9a57-0f2f3f4b5c6d"
        raise InvalidIdentifier(
            f"{field} {description}.",
            metadata={"field": field},
            field_violations=[FieldViolation(field, description)],
        ) from None
