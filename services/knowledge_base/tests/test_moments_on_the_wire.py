"""Moments keep their microseconds on the wire, in every year there is."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from knowledge_base.wire.times import stamp


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
@example(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
@example(datetime.min.replace(tzinfo=UTC))
@example(datetime.max.replace(tzinfo=UTC))
def test_a_stamp_is_the_moment(moment: datetime) -> None:
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # its time zone moves it out of the years 1 to 9999
        moment = moment.replace(tzinfo=UTC)
    usual = Timestamp()
    usual.FromDatetime(moment)

    assert stamp(moment) == usual
    assert stamp(moment).ToDatetime(tzinfo=UTC) == moment
