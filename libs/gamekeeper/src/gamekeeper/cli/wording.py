"""How tables word durations, moments and enum values."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["age", "enum_words", "milliseconds", "moment", "optional_number"]


def age(duration: Duration, *, known: bool) -> str:
    """`1.2 s` for a duration that is set, `never` for one that is not."""
    return f"{duration.ToTimedelta().total_seconds():.1f} s" if known else "never"


def milliseconds(duration: Duration, *, known: bool) -> str:
    """`213 ms` for a duration that is set, `-` for one that is not."""
    if not known:
        return "-"
    value = duration.ToTimedelta().total_seconds() * 1000
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def moment(timestamp: Timestamp) -> str:
    """Local date and time to the second."""
    return timestamp.ToDatetime().astimezone().strftime("%Y-%m-%d %H:%M:%S")


def enum_words(name: str, prefix: str) -> str:
    """`scale out demand` for DECISION_RULE_SCALE_OUT_DEMAND and its prefix."""
    return name.removeprefix(prefix).replace("_", " ").lower()


def optional_number(value: float, *, known: bool, unit: str = "") -> str:
    """The number with its unit, or `-` for a reading that is missing."""
    return f"{value:,.0f}{unit}" if known else "-"
