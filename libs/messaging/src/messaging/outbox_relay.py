"""Publishes what services put into their outboxes.

Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import asyncpg
import structlog
from google.protobuf.message import DecodeError

from gaming.events.events_pb2 import GameEvent
from messaging.errors import InvalidEvent
from messaging.outbox_rules import Verdict, judge
from messaging.outbox_settings import StoreSettings
from messaging.store_metric_names import OUTBOX_EVENTS, OUTBOX_OLDEST_WAIT, OUTBOX_PARKED
from messaging.store_schema import outbox_queries
from messaging.waiting import set_within
from servicekit.clock import Clock
from servicekit.errors import DeadlineExceeded, Internal, ServiceError, Unavailable
from servicekit.postgres import DatabaseAway, database_errors
from servicekit.telemetry import Telemetry

__all__ = ["OutboxRelay", "Publisher", "RelayCounts", "TopicAway"]

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.05
_BACKLOG_SECONDS = 10.0
# A batch that was published late still has this long to be written down.
_BOOKKEEPING_SECONDS = 15.0


class TopicAway(Unavailable):
    """The topic accepts no events at present."""

    reason = "TOPIC_UNAVAILABLE"


class Publisher(Protocol):
    """Takes events to the topic."""

    async def publish(self, event: GameEvent) -> None:
        """Returns once the topic has accepted the event; raises a ServiceError otherwise."""
        ...


@dataclass(slots=True)
class RelayCounts:
    """What a relay has done since it was made."""

    published: int = 0
    deferred: int = 0
    parked: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    position: int
    event: bytes
    attempts: int


class OutboxRelay:
    """Publishes committed events at least once each; several relays side by side share the work.

    A batch is one transaction: the oldest free rows are locked, published all at once, and each is
    deleted that the topic accepted. A relay that dies in between has deleted nothing, its locks end
    with its connection, and another one publishes the rows again with the same `event_id`s, which
    the readers' inboxes recognise. Rows leave in the order of enqueueing as far as one batch
    follows another; the bus itself keeps no order.

    An event the topic will never accept is parked with the reason. One it refuses while it accepts
    others is tried again with growing pauses and parked in the end. Neither holds others up. While
    the topic or the database is away, the relay tries again with bounded pauses, and for ever.

    In memory are one batch's rows, bounded in number and bytes. One connection of the pool is in
    use while a batch is under way.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        publisher: Publisher,
        *,
        schema: str,
        settings: StoreSettings,
        clock: Clock,
        rng: random.Random,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._pool = pool
        self._publisher = publisher
        self._queries = outbox_queries(schema)
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._backlog_time: float | None = None
        self._oldest_wait_seconds = 0.0
        self._parked_rows = 0
        self._failures_in_a_row = 0
        self.counts = RelayCounts()
        telemetry = telemetry or Telemetry("messaging")
        self._events = telemetry.counter(
            OUTBOX_EVENTS, unit="{event}", description="Events the relay was done with, by outcome"
        )
        telemetry.gauge(
            OUTBOX_OLDEST_WAIT,
            lambda: [(self._oldest_wait_seconds, {})],
            unit="s",
            description="How long the oldest waiting event has waited",
        )
        telemetry.gauge(
            OUTBOX_PARKED,
            lambda: [(float(self._parked_rows), {})],
            unit="{event}",
            description="Events that will not be published unless somebody acts",
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Publishes until `stopping` is set, then ends with the batch in hand.

        Cancelling ends it at once; what was under way is published again later.
        """
        while not stopping.is_set():
            pause = await self._one_round()
            await set_within(stopping, pause, self._clock)

    async def relay_batch(self) -> int:
        """Publishes one batch and returns how many rows it had in hand.

        Raises:
            DatabaseAway: nothing was changed; some events may have been published.
            TopicAway: the topic accepted none of them.
        """
        with database_errors():
            taken, verdict = await self._batch()
        self._count(verdict)
        if verdict.topic_away:
            raise TopicAway("The topic accepts no events at present.")
        return taken

    async def _one_round(self) -> float:
        """Returns how long to pause."""
        try:
            await self._measure_backlog()  # first: it grows while the topic is away
            taken = await self.relay_batch()
        except (DatabaseAway, TopicAway) as error:
            return self._back_off(error.reason)
        except asyncpg.PostgresError as error:
            # No schema yet, no grant, a lost lock: others than this loop put it right.
            return self._back_off(type(error).__name__)
        if self._failures_in_a_row:
            log.info("outbox_relay_recovered", failures=self._failures_in_a_row)
            self._failures_in_a_row = 0
        return 0.0 if taken >= self._settings.batch_events else self._settings.poll_seconds

    def _back_off(self, cause: str) -> float:
        if self._failures_in_a_row == 0:
            log.warning("outbox_relay_waits", cause=cause)
        doubled = _FIRST_BACKOFF_SECONDS * 2.0 ** min(self._failures_in_a_row, 30)
        self._failures_in_a_row += 1
        return min(self._settings.maximum_backoff_seconds, doubled) * self._rng.uniform(0.5, 1.0)

    async def _batch(self) -> tuple[int, Verdict]:
        """Returns rows taken, at least `batch_events` where more may wait, and their fates."""
        settings = self._settings
        frozen_after = settings.publish_timeout_seconds + _BOOKKEEPING_SECONDS
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchval(
                self._queries.bound_transaction, str(round(frozen_after * 1000))
            )
            rows = [
                _Row(*record)
                for record in await connection.fetch(
                    self._queries.take_events, settings.batch_events, settings.batch_bytes
                )
            ]
            failures = await self._publish(rows)
            tried = [(row.position, row.attempts) for row in rows]
            verdict = judge(tried, failures, settings.retry_policy)
            await self._write_down(connection, verdict, rows)
        full = sum(len(row.event) for row in rows) >= settings.batch_bytes
        return (settings.batch_events if full else len(rows)), verdict

    async def _publish(self, rows: Sequence[_Row]) -> dict[int, ServiceError]:
        """Returns why rows were not accepted, by position."""
        late = DeadlineExceeded("The topic did not answer in time.")
        failures: dict[int, ServiceError] = dict.fromkeys((row.position for row in rows), late)

        async def publish(row: _Row) -> None:
            error = await self._publish_one(row)
            if error is None:
                del failures[row.position]
            else:
                failures[row.position] = error

        try:
            async with (
                asyncio.timeout(self._settings.publish_timeout_seconds),
                asyncio.TaskGroup() as group,
            ):
                for row in rows:
                    group.create_task(publish(row))
        except TimeoutError:
            log.warning("outbox_batch_timed_out", events=len(rows), unanswered=len(failures))
        return failures

    async def _publish_one(self, row: _Row) -> ServiceError | None:
        try:
            event = GameEvent.FromString(row.event)
        except DecodeError:
            return InvalidEvent("The row holds no event.")
        try:
            await self._publisher.publish(event)
        except ServiceError as error:
            return error
        except Exception:  # a fault on one event must not stop the others
            log.exception("outbox_publish_failed", event_id=event.event_id)
            return Internal("Publishing failed by a fault of ours; see the log.")
        return None

    async def _write_down(self, connection: Any, verdict: Verdict, rows: Sequence[_Row]) -> None:
        if verdict.parked:
            event_ids = {row.position: _event_id(row.event) for row in rows}
            await connection.execute(
                self._queries.park_events,
                *_columns((p.position, event_ids[p.position], p.reason) for p in verdict.parked),
            )
        if verdict.deferred:
            await connection.execute(
                self._queries.defer_events,
                *_columns((d.position, d.delay_seconds) for d in verdict.deferred),
            )
        if verdict.accepted:
            await connection.execute(self._queries.delete_events, verdict.accepted)

    def _count(self, verdict: Verdict) -> None:
        self.counts.published += len(verdict.accepted)
        self.counts.deferred += len(verdict.deferred)
        self.counts.parked += len(verdict.parked)
        outcomes = {
            "published": len(verdict.accepted),
            "deferred": len(verdict.deferred),
            "parked": len(verdict.parked),
        }
        for outcome, count in outcomes.items():
            if count:
                self._events.add(count, {"outcome": outcome})
        for parked in verdict.parked:
            log.error("outbox_event_parked", position=parked.position, reason=parked.reason)

    async def _measure_backlog(self) -> None:
        now = self._clock.monotonic()
        if self._backlog_time is not None and now < self._backlog_time + _BACKLOG_SECONDS:
            return
        with database_errors():
            row = await self._pool.fetchrow(self._queries.backlog)
        self._oldest_wait_seconds = row["oldest_wait_seconds"]
        self._parked_rows = row["parked"]
        self._backlog_time = now


def _event_id(event: bytes) -> str:
    try:
        return GameEvent.FromString(event).event_id.replace("\0", "")
    except DecodeError:
        return ""


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
