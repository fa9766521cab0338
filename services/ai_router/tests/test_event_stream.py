"""Byte streams cut into events, wherever they break."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_router.adapters.event_stream import EventStreamDecoder, EventTooLarge

PAYLOADS = st.lists(
    st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=30),
    max_size=20,
)


@given(PAYLOADS, st.lists(st.integers(1, 9)), st.sampled_from(["\n", "\r\n"]))
def test_events_come_out_whole_however_they_come_in(
    payloads: list[str], sizes: list[int], newline: str
) -> None:
    texts = [payload.strip() for payload in payloads]
    stream = "".join(
        f": comment{newline}data: {text}{newline}id: 7{newline}{newline}" for text in texts
    ).encode()
    decoder = EventStreamDecoder()
    found: list[bytes] = []
    position = 0
    for size in [*sizes, len(stream) or 1]:
        found += decoder.feed(stream[position : position + size])
        position += size
    assert [event.decode() for event in found] == [text.encode().strip().decode() for text in texts]


def test_a_line_without_end_is_refused() -> None:
    decoder = EventStreamDecoder()
    decoder.feed(b"data: " + b"x" * 1_000_000)
    with pytest.raises(EventTooLarge):
        decoder.feed(b"x" * 100_000)
