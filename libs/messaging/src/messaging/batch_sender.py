"""Gathers single entries into batch calls and tells each entry's sender what became of it.

The publisher, the deletions and the dead letters all need the same: up to ten entries a call,
limited bytes, a short wait for company, failed entries sent again one by one with their backoff,
and an end within a known time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog

from messaging.errors import BusRefused, BusUnavailable, PublisherClosed
from messaging.ports import BATCH_ENTRIES, EntryOutcome
from messaging.waiting import set_within
from servicekit.clock import Clock
from servicekit.errors import ServiceError

__all__ = ["BatchSender", "backoff_seconds"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ATTEMPTS = 8
_FIRST_BACKOFF_SECONDS = 0.1
_MAXIMUM_BACKOFF_SECONDS = 5.0


def backoff_seconds(
    attempt: int,
    random: Random,
    *,
    first_seconds: float = _FIRST_BACKOFF_SECONDS,
    maximum_seconds: float = _MAXIMUM_BACKOFF_SECONDS,
) -> float:
    """Returns how long to wait after failure number `attempt`, 1 at first.

    It doubles up to the maximum, and half of it is random so that senders drift apart.
    """
    # Beyond 2**30 every first delay has long met its maximum.
    longest = min(maximum_seconds, first_seconds * 2.0 ** min(attempt - 1, 30))
    return longest * random.uniform(0.5, 1.0)


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    item: T
    size_bytes: int
    accepted: asyncio.Future[None]


class BatchSender(Generic[T]):
    """Sends items in batches through `call`; an async context manager that flushes at its end.

    Args:
        name: what is sent, for the log.
        call: takes 1 to 10 items and returns their outcomes in order; raises BusUnavailable or
            BusRefused when it fails as a whole.
        size_of: bytes of an item that count against `batch_bytes`.
        batch_bytes: what a batch may hold together; None: no limit.
        linger_seconds: how long an item waits for others to share its call.
        calls_at_once: batches in flight at once.
        close_timeout_seconds: how long the end may take to send what is held.
        clock: the time of linger and backoff.
        random: jitter.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Sequence[T]], Awaitable[list[EntryOutcome]]],
        *,
        size_of: Callable[[T], int] = lambda item: 0,
        batch_bytes: int | None = None,
        linger_seconds: float,
        calls_at_once: int,
        close_timeout_seconds: float,
        clock: Clock,
        random: Random,
    ) -> None:
        self._name = name
        self._call = call
        self._size_of = size_of
        self._batch_bytes = batch_bytes
        self._linger_seconds = linger_seconds
        self._calls_at_once = calls_at_once
        self._close_timeout_seconds = close_timeout_seconds
        self._clock = clock
        self._random = random
        self._waiting: deque[_Entry[T]] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._batch_is_ready = asyncio.Event()
        self._gathering = asyncio.Lock()
        self._in_flight: set[_Entry[T]] = set()
        self._group = asyncio.TaskGroup()
        self._workers: list[asyncio.Task[None]] = []
        self._closed = True

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._closed = False
        self._workers = [
            self._group.create_task(self._work(), name=f"{self._name}-{number}")
            for number in range(self._calls_at_once)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        self._arrived.set()
        self._batch_is_ready.set()
        try:
            await asyncio.wait(self._workers, timeout=self._close_timeout_seconds)
        finally:
            for worker in self._workers:
                worker.cancel()
            unsent = [*self._waiting, *self._in_flight]
            self._waiting.clear()
            for entry in unsent:
                _fail(entry, PublisherClosed("closed before this was sent; send it again"))
            if unsent:
                log.warning("batches_unsent", name=self._name, entries=len(unsent))
            await self._group.__aexit__(None, None, None)

    @property
    def is_closed(self) -> bool:
        """Whether items are refused, before it is entered and from its end on."""
        return self._closed

    async def send(self, item: T) -> None:
        """Returns once `item` was accepted. A sender that is cancelled may find it sent or not.

        Raises:
            PublisherClosed: closed before it could be sent.
            BusUnavailable: not accepted after several tries.
            BusRefused: this item is not acceptable.
        """
        if self._closed:
            raise PublisherClosed("closed; nothing more is sent")
        entry = _Entry(item, self._size_of(item), asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._waiting_bytes += entry.size_bytes
        self._arrived.set()
        if self._has_full_batch():
            self._batch_is_ready.set()
        await entry.accepted

    def _has_full_batch(self) -> bool:
        return len(self._waiting) >= BATCH_ENTRIES or (
            self._batch_bytes is not None and self._waiting_bytes >= self._batch_bytes
        )

    async def _work(self) -> None:
        while batch := await self._next_batch():
            self._in_flight.update(batch)
            try:
                await self._send(batch)
            finally:
                self._in_flight.difference_update(batch)

    async def _next_batch(self) -> list[_Entry[T]]:
        """Returns the next batch; an empty one when closed and everything is sent."""
        async with self._gathering:
            while True:
                while not self._waiting:
                    if self._closed:
                        return []
                    self._arrived.clear()
                    await self._arrived.wait()
                await set_within(self._batch_is_ready, self._linger_seconds, self._clock)
                batch = self._take()
                if not (self._closed or self._has_full_batch()):
                    self._batch_is_ready.clear()
                # Empty when every sender has gone away meanwhile.
                if batch:
                    return batch

    def _take(self) -> list[_Entry[T]]:
        batch: list[_Entry[T]] = []
        batch_bytes = 0
        while self._waiting and len(batch) < BATCH_ENTRIES:
            entry = self._waiting[0]
            full_at = self._batch_bytes
            if batch and full_at is not None and batch_bytes + entry.size_bytes > full_at:
                break
            self._waiting.popleft()
            self._waiting_bytes -= entry.size_bytes
            if not entry.accepted.done():
                batch.append(entry)
                batch_bytes += entry.size_bytes
        return batch

    async def _send(self, batch: list[_Entry[T]]) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            outcomes = await self._outcomes(batch)
            again: list[_Entry[T]] = []
            for entry, outcome in zip(batch, outcomes, strict=True):
                if outcome.accepted:
                    _succeed(entry)
                elif outcome.retryable:
                    again.append(entry)
                else:
                    _fail(entry, _refusal(outcome))
            # Whoever waited for the others may have given up meanwhile.
            batch = [entry for entry in again if not entry.accepted.done()]
            if not batch:
                return
            if attempt < _ATTEMPTS:
                await self._clock.sleep(backoff_seconds(attempt, self._random))
                batch = [entry for entry in batch if not entry.accepted.done()]
        for entry in batch:
            _fail(entry, BusUnavailable("not accepted after several tries; try again later"))

    async def _outcomes(self, batch: list[_Entry[T]]) -> list[EntryOutcome]:
        """Calls once; a call that fails as a whole becomes an outcome for each entry."""
        try:
            return await self._call([entry.item for entry in batch])
        except BusUnavailable as error:
            outcome = EntryOutcome(accepted=False, error_code=error.reason, retryable=True)
        except BusRefused as error:
            if len(batch) > 1:
                # One bad entry can fail a whole call; alone, only itself.
                return [outcome for entry in batch for outcome in await self._outcomes([entry])]
            code = error.metadata.get("error_code", error.reason)
            outcome = EntryOutcome(accepted=False, error_code=code)
        except Exception as error:  # a fault of the adapter fails its batch, not all to come
            log.exception("batch_failed", name=self._name, error=type(error).__name__)
            outcome = EntryOutcome(accepted=False, error_code="INTERNAL", retryable=True)
        return [outcome] * len(batch)


def _refusal(outcome: EntryOutcome) -> ServiceError:
    return BusRefused(
        "AWS does not accept it", metadata={"error_code": outcome.error_code or "UNKNOWN"}
    )


def _succeed(entry: _Entry[T]) -> None:
    if not entry.accepted.done():
        entry.accepted.set_result(None)


def _fail(entry: _Entry[T], error: ServiceError) -> None:
    if not entry.accepted.done():
        entry.accepted.set_exception(error)
