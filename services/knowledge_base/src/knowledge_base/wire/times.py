"""Moments on the wire."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from servicekit.errors import FieldViolation, InvalidRequest

__all__ = ["optional_stamp", "optional_time", "stamp"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_PER_DAY = 86_400


def optional_time(message: Any, field: str, path: str = "") -> datetime | None:
    """Returns the moment in a message's Timestamp field, None when it is unset.

    Raises InvalidRequest when it is outside the years 1 to 9999.
    """
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        description = "must lie in the years 1 to 9999, with nanos from 0 to 999,999,999"
        raise InvalidRequest(
            f"{path or field} {description}.",
            field_violations=[FieldViolation(path or field, description)],
        ) from None


def stamp(moment: datetime) -> Timestamp:
    """Returns a moment.

    By hand, since an answer has dozens and `FromDatetime` goes by way of the calendar.
    """
    since = moment - _EPOCH
    return Timestamp(
        seconds=since.days * _SECONDS_PER_DAY + since.seconds, nanos=since.microseconds * 1_000
    )


def optional_stamp(moment: datetime | None) -> Timestamp | None:
    """Returns a moment; None, so an unset field, when there is none."""
    return None if moment is None else stamp(moment)
