"""Streams that can be resumed: bounded history, bounded subscribers, heartbeats, explicit gaps."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from servicekit.clock import Clock
from servicekit.errors import ResumeTokenTooOld, ShuttingDown, SlowSubscriber

__all__ = ["ResumableLog", "StreamItem"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StreamItem(Generic[T]):
    """One step of a subscription; `item` is None in a heartbeat.

    Attributes:
        token: where to resume after this step.
        item: what was published.
    """

    token: str
    item: T | None


class ResumableLog(Generic[T]):
    """Keeps the last `history` items and hands them to any number of subscribers in order.

    A resume token names the log's epoch and a position in it, so a token of a former run of the
    process is recognised and refused instead of being misread. Memory is bounded by `history` items
    and `subscriber_queue` references per subscriber. Not thread-safe: one event loop only.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        epoch: str,
        history: int = 1024,
        subscriber_queue: int = 256,
        heartbeat_seconds: float = 5.0,
    ) -> None:
        if not epoch or "." in epoch:
            raise ValueError("an epoch is a non-empty text without dots")
        self._clock = clock
        self._epoch = epoch
        self._history: deque[T] = deque(maxlen=history)
        self._last_sequence = 0
        self._subscriber_queue = subscriber_queue
        self._heartbeat_seconds = heartbeat_seconds
        self._subscribers: set[_Subscriber[T]] = set()
        self._closed = False

    @property
    def latest_token(self) -> str:
        """The token after the last item published."""
        return f"{self._epoch}.{self._last_sequence}"

    @property
    def subscriber_count(self) -> int:
        """Subscribers at present."""
        return len(self._subscribers)

    def publish(self, item: T) -> str:
        """Appends `item`, wakes the subscribers and returns the token after it."""
        self._last_sequence += 1
        self._history.append(item)
        step = StreamItem(self.latest_token, item)
        for subscriber in self._subscribers:
            subscriber.offer(step)
        return step.token

    async def subscribe(self, resume_token: str = "") -> AsyncIterator[StreamItem[T]]:
        """Yields every item after `resume_token`, or from now on, and heartbeats between them.

        Raises:
            ResumeTokenTooOld: the token is of another run, or older than the history.
            SlowSubscriber: the subscriber fell a whole queue behind; its last token still works
                while the history lasts.
            ShuttingDown: the log was closed.
        """
        position = self._position(resume_token)
        subscriber: _Subscriber[T] = _Subscriber(self._subscriber_queue)
        oldest = self._last_sequence - len(self._history)
        backlog = [
            StreamItem(f"{self._epoch}.{oldest + index + 1}", item)
            for index, item in enumerate(self._history)
            if oldest + index + 1 > position
        ]
        self._subscribers.add(subscriber)
        token = f"{self._epoch}.{position}"
        try:
            for step in backlog:
                token = step.token
                yield step
            while True:
                if self._closed:
                    raise ShuttingDown("The stream ends here; resume it.")
                if subscriber.overflowed:
                    raise SlowSubscriber(
                        f"The subscriber fell {self._subscriber_queue} messages behind; resume "
                        "from the last token and read faster.",
                        metadata={"resume_token": token},
                    )
                received = await self._next(subscriber)
                if received is not None:
                    token = received.token
                    yield received
                elif not self._closed and not subscriber.overflowed:
                    yield StreamItem(token, None)
        finally:
            self._subscribers.discard(subscriber)

    def close(self) -> None:
        """Ends all subscriptions with ShuttingDown."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.wake()

    def _position(self, resume_token: str) -> int:
        if not resume_token:
            return self._last_sequence
        epoch, _, digits = resume_token.rpartition(".")
        position = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1
        oldest = self._last_sequence - len(self._history)
        if epoch != self._epoch or not oldest <= position <= self._last_sequence:
            raise ResumeTokenTooOld(
                "The stream cannot be resumed after this token; read the present state, then "
                "subscribe without a token."
            )
        return position

    async def _next(self, subscriber: _Subscriber[T]) -> StreamItem[T] | None:
        """Returns the next item, or None when it is time for a heartbeat or something changed."""
        if subscriber.ready():
            return subscriber.take()
        sleeper = asyncio.ensure_future(self._clock.sleep(self._heartbeat_seconds))
        waiter = asyncio.ensure_future(subscriber.wait())
        try:
            await asyncio.wait({sleeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in (sleeper, waiter):
                future.cancel()
            await asyncio.gather(sleeper, waiter, return_exceptions=True)
        return subscriber.take()


class _Subscriber(Generic[T]):
    """A bounded queue that remembers that it overflowed instead of growing or blocking."""

    def __init__(self, limit: int) -> None:
        self._items: deque[StreamItem[T]] = deque()
        self._limit = limit
        self._changed = asyncio.Event()
        self.overflowed = False

    def offer(self, item: StreamItem[T]) -> None:
        if len(self._items) >= self._limit:
            self.overflowed = True
            self._items.clear()
        if not self.overflowed:
            self._items.append(item)
        self._changed.set()

    def wake(self) -> None:
        self._changed.set()

    def ready(self) -> bool:
        return bool(self._items)

    def take(self) -> StreamItem[T] | None:
        self._changed.clear()
        return self._items.popleft() if self._items else None

    async def wait(self) -> None:
        await self._changed.wait()
