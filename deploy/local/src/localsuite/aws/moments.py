"""Times as the service models want them."""

from datetime import UTC, datetime

__all__ = ["moment"]


def moment(unix_seconds: float) -> datetime:
    """Unix seconds as an aware time in UTC."""
    return datetime.fromtimestamp(unix_seconds, tz=UTC)
