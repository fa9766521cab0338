"""Streams that can be resumed: bounded history, bounded subscribers, heartbeats, explicit gaps."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, Self, TypeVar
from weakref import WeakSet

from servicekit.clock import Clock
from servicekit.errors import ResumeTokenTooOld, ShuttingDown, SlowSubscriber

__all__ = ["ResumableLog", "StreamItem"]

T = TypeVar("T")

# Heartbeats that fall due close together go out together, so that a thousand subscribers do not
# wake the ticker a thousand times; a heartbeat is late by at most this share of its interval.
_TICK_SHARE = 0.1


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
    process is recognised and refused instead of being misread. A subscriber is a position in the
    shared history, so memory is bounded by the history whatever the subscribers do. Not
    thread-safe: one event loop only.

    Args:
        clock: times the heartbeats.
        epoch: names this run of the process; new at every start.
        history: items that can be resumed over.
        subscriber_queue: how many items a subscriber that has caught up may fall behind.
        heartbeat_seconds: longest silence of a subscription.
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
        self._history = history
        self._items: deque[T] = deque(maxlen=max(history, subscriber_queue))
        self._last = 0
        self._subscriber_queue = subscriber_queue
        self._heartbeat_seconds = heartbeat_seconds
        self._subscriptions: WeakSet[_Subscription[T]] = WeakSet()
        self._waiting: dict[_Subscription[T], asyncio.Future[None]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def latest_token(self) -> str:
        """The token after the last item published."""
        return self._token(self._last)

    @property
    def subscriber_count(self) -> int:
        """Subscriptions at present."""
        return len(self._subscriptions)

    def publish(self, item: T) -> str:
        """Appends `item`, wakes the subscribers and returns the token after it."""
        self._last += 1
        self._items.append(item)
        self._wake_all()
        return self.latest_token

    def subscribe(self, resume_token: str = "") -> AsyncIterator[StreamItem[T]]:
        """Returns every item after `resume_token`, or from now on, and heartbeats between them.

        "Now" is this call, not the first item asked for. The iterator has `aclose()`, and needs it
        no more than a list does: an abandoned one is forgotten.

        Raises:
            ResumeTokenTooOld: here; the token is of another run, or older than the history.
            SlowSubscriber: while iterating; the subscriber fell a whole queue behind. Its last
                token still works while the history lasts.
            ShuttingDown: while iterating; the log was closed and everything in it was delivered.
        """
        subscription = _Subscription(self, self._position(resume_token))
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """Ends all subscriptions with ShuttingDown once they have read what is there."""
        self._closed = True
        self._wake_all()
        if self._ticker is not None:
            self._ticker.cancel()

    def _token(self, position: int) -> str:
        return f"{self._epoch}.{position}"

    def _position(self, resume_token: str) -> int:
        if not resume_token:
            return self._last
        epoch, _, digits = resume_token.rpartition(".")
        position = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1
        oldest = max(0, self._last - self._history)
        if epoch != self._epoch or not oldest <= position <= self._last:
            raise ResumeTokenTooOld(
                "The stream cannot be resumed after this token; read the present state, then "
                "subscribe without a token."
            )
        return position

    def _after(self, position: int, *, caught_up: bool) -> StreamItem[T] | None:
        """Returns the item after `position`, or None when there is none yet."""
        behind = self._last - position
        if behind == 0:
            return None
        if behind > (self._subscriber_queue if caught_up else len(self._items)):
            raise SlowSubscriber(
                f"The subscriber fell {behind} messages behind, more than the "
                f"{self._subscriber_queue} kept for it; resume from the last token and read "
                "faster.",
                metadata={"resume_token": self._token(position)},
            )
        return StreamItem(self._token(position + 1), self._items[-behind])

    async def _changed(self, subscription: _Subscription[T]) -> None:
        """Returns after something was published or closed, or a heartbeat fell due."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting[subscription] = future
        if self._ticker is None or self._ticker.done():
            # Not in a task group: the log has no scope to own one. It ends with its last waiter.
            self._ticker = loop.create_task(self._tick(), name="resumable_log_heartbeats")
        try:
            await future
        finally:
            self._waiting.pop(subscription, None)

    async def _tick(self) -> None:
        """Wakes each waiting subscription when its heartbeat is due; ends when nobody waits."""
        while self._waiting:
            now = self._clock.monotonic()
            due = min(subscription.heartbeat_due for subscription in self._waiting)
            if due > now:
                await self._clock.sleep(max(due - now, self._heartbeat_seconds * _TICK_SHARE))
                now = self._clock.monotonic()
            for subscription, future in list(self._waiting.items()):
                if subscription.heartbeat_due <= now:
                    del self._waiting[subscription]
                    _wake(future)

    def _wake_all(self) -> None:
        for future in self._waiting.values():
            _wake(future)
        self._waiting.clear()


class _Subscription(Generic[T]):
    """A position in a log."""

    __slots__ = ("__weakref__", "_caught_up", "_ended", "_log", "_position", "heartbeat_due")

    def __init__(self, resumable_log: ResumableLog[T], position: int) -> None:
        self._log = resumable_log
        self._position = position
        self._caught_up = False
        self._ended = False
        self.heartbeat_due = 0.0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem[T]:
        resumable_log = self._log
        self.heartbeat_due = resumable_log._clock.monotonic() + resumable_log._heartbeat_seconds  # noqa: SLF001  # one mechanism, same module
        while not self._ended:
            step = resumable_log._after(self._position, caught_up=self._caught_up)  # noqa: SLF001  # as above
            if step is not None:
                self._position += 1
                self._caught_up = self._caught_up or self._position == resumable_log._last  # noqa: SLF001  # as above
                return step
            self._caught_up = True
            if resumable_log._closed:  # noqa: SLF001  # as above
                raise ShuttingDown("The stream ends here; resume it.")
            if resumable_log._clock.monotonic() >= self.heartbeat_due:  # noqa: SLF001  # as above
                return StreamItem(resumable_log._token(self._position), None)  # noqa: SLF001  # as above
            await resumable_log._changed(self)  # noqa: SLF001  # as above
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the iteration."""
        self._ended = True
        self._log._subscriptions.discard(self)  # noqa: SLF001  # one mechanism, same module


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
