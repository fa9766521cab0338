"""The event feed: numbered, bounded, honest about what a reader missed."""

import threading

from localsuite.aws.event_feed import EventFeed


def test_readers_get_what_follows_their_position() -> None:
    feed = EventFeed()
    for number in range(5):
        feed.append({"kind": str(number)})
    page = feed.read(2, timeout_seconds=0)
    assert [event["kind"] for event in page.events] == ["2", "3", "4"]
    assert (page.next_sequence, page.complete) == (5, True)


def test_pages_are_limited_and_chain() -> None:
    feed = EventFeed()
    for _ in range(5):
        feed.append({})
    first = feed.read(0, timeout_seconds=0, limit=2)
    second = feed.read(first.next_sequence, timeout_seconds=0, limit=2)
    assert [e["sequence"] for e in (*first.events, *second.events)] == [1, 2, 3, 4]


def test_a_reader_that_fell_behind_is_told() -> None:
    feed = EventFeed(capacity=3)
    for _ in range(10):
        feed.append({})
    assert not feed.read(2, timeout_seconds=0).complete
    assert feed.read(7, timeout_seconds=0).complete


def test_a_position_of_another_run_is_told_and_gets_everything() -> None:
    feed = EventFeed()
    feed.append({})
    page = feed.read(40, timeout_seconds=5)
    assert not page.complete
    assert len(page.events) == 1


def test_a_waiting_reader_gets_the_event_when_it_comes() -> None:
    feed = EventFeed()
    pages = []
    reader = threading.Thread(target=lambda: pages.append(feed.read(0, timeout_seconds=10)))
    reader.start()
    feed.append({"kind": "late"})
    reader.join(timeout=10)
    assert [event["kind"] for event in pages[0].events] == ["late"]


def test_closing_lets_waiting_readers_go() -> None:
    feed = EventFeed()
    pages = []
    reader = threading.Thread(target=lambda: pages.append(feed.read(0, timeout_seconds=60)))
    reader.start()
    feed.close()
    reader.join(timeout=10)
    assert pages[0].events == ()
