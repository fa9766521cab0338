"""Points in time as the protocol has them."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["moment", "timestamp"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(time: datetime) -> Timestamp:
    """Return an aware moment as a Timestamp."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def moment(message: Timestamp) -> datetime:
    """Return a Timestamp as an aware moment, in UTC."""
    return _EPOCH + timedelta(0, message.seconds, message.nanos // 1000)
