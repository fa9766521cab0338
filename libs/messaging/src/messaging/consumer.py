"""Reads events from a queue: each is deleted only after its handler has committed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from random import Random

import structlog

from gaming.events.events_pb2 import GameEvent
from messaging.batch_sender import BatchSender, backoff_seconds
from messaging.claim_check import is_claim, redeemed
from messaging.codec import decode_event
from messaging.dead_letters import dead_letter
from messaging.errors import BusRefused, BusUnavailable, PoisonEvent, PublisherClosed
from messaging.metric_names import ConsumerInstruments
from messaging.ports import BATCH_ENTRIES, ClaimStore, EntryOutcome, Queue, ReceivedMessage
from messaging.settings import MessagingSettings
from messaging.visibility import VisibilityKeeper
from servicekit.clock import Clock
from servicekit.errors import ServiceError, Unavailable
from servicekit.telemetry import Telemetry

__all__ = ["EventConsumer", "Handler"]

log = structlog.get_logger(__name__)

Handler = Callable[[GameEvent], Awaitable[None]]

_DELETE_LINGER_SECONDS = 0.02
_DELETE_CALLS_AT_ONCE = 2
_DELETIONS_PENDING = 100
_MAXIMUM_RECEIVE_BACKOFF_SECONDS = 30.0
_MAXIMUM_PAUSE_SECONDS = 30.0


class EventConsumer:
    """Hands the events of one queue to `handler`, several at once, in no promised order.

    At least once: an event comes again when its handler failed, when this process died before the
    message was deleted, and whenever the queue likes. Handlers that must not act twice ask
    `messaging.inbox` in the transaction in which they act.

    Args:
        queue: where messages come from.
        handler: has committed what the event changes when it returns. An exception has the event
            delivered again, later each time; `PoisonEvent` sends it to the dead letters.
        settings: limits and times.
        clock: the time.
        claims: where events too large for a message are read from.
        telemetry: counters.
        random: jitter.
    """

    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        *,
        settings: MessagingSettings,
        clock: Clock,
        claims: ClaimStore | None = None,
        telemetry: Telemetry | None = None,
        random: Random | None = None,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._settings = settings
        self._clock = clock
        self._claims = claims
        self._random = random or Random()  # noqa: S311  # jitter, no secret
        self._instruments = ConsumerInstruments(telemetry or Telemetry("messaging"))
        self._visibility = VisibilityKeeper(
            queue,
            visibility_seconds=settings.visibility_seconds,
            clock=clock,
            instruments=self._instruments,
        )
        # A batch a long poll more than is handled at once, so that handlers need not wait for it.
        self._places = asyncio.Semaphore(
            settings.handlers_at_once + BATCH_ENTRIES * settings.receive_calls_at_once
        )
        self._taking_places = asyncio.Lock()
        self._handlers = asyncio.Semaphore(settings.handlers_at_once)
        self._deletion_places = asyncio.Semaphore(_DELETIONS_PENDING)
        self._waiting: dict[asyncio.Task[None], ReceivedMessage] = {}
        self._working: dict[asyncio.Task[None], ReceivedMessage] = {}
        self._paused_until = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        """Reads until `stopping` is set, then lets handlers finish and gives the rest back.

        An unreachable queue is tried again for ever. Cancelled, it ends at once; what was in hand
        becomes visible to others when its visibility timeout ends.
        """
        deletions = BatchSender[str](
            "deletions",
            self._queue.delete_batch,
            linger_seconds=_DELETE_LINGER_SECONDS,
            calls_at_once=_DELETE_CALLS_AT_ONCE,
            close_timeout_seconds=self._settings.call_timeout_seconds,
            clock=self._clock,
            random=self._random,
        )
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._visibility.beat(), name="visibility")
            async with deletions, asyncio.TaskGroup() as messages:
                receivers = [
                    group.create_task(self._receive(messages, deletions), name=f"receive-{number}")
                    for number in range(self._settings.receive_calls_at_once)
                ]
                await stopping.wait()
                for receiver in receivers:
                    receiver.cancel()
                await self._give_back(self._waiting)
                if self._working:
                    await asyncio.wait(self._working, timeout=self._settings.stop_timeout_seconds)
                await self._give_back(self._working)
            beating.cancel()

    async def _give_back(self, tasks: dict[asyncio.Task[None], ReceivedMessage]) -> None:
        """Cancels the tasks and returns their messages to the queue at once."""
        messages = list(tasks.values())
        for task in tasks:
            task.cancel()
        if messages:
            await asyncio.wait(list(tasks), timeout=self._settings.call_timeout_seconds)
            self._instruments.returned(len(messages))
            log.info("messages_given_back", messages=len(messages))
            await self._visibility.give_back(messages, delay_seconds=0)

    async def _receive(self, messages: asyncio.TaskGroup, deletions: BatchSender[str]) -> None:
        failures = 0
        while True:
            await self._take_places()
            received: list[ReceivedMessage] = []
            try:
                if (pause_seconds := self._paused_until - self._clock.monotonic()) > 0:
                    await self._clock.sleep(pause_seconds)
                received = await self._queue.receive(
                    BATCH_ENTRIES, wait_seconds=self._settings.receive_wait_seconds
                )
                failures = 0
            except (BusUnavailable, BusRefused) as error:
                failures += 1
                self._instruments.queue_failed("receive")
                log.warning("receive_failed", reason=error.reason, failures=failures)
            finally:
                for _ in range(BATCH_ENTRIES - len(received)):
                    self._places.release()
            for message in received:
                self._visibility.hold(message)
                task = messages.create_task(self._take_care(message, deletions))
                self._waiting[task] = message
                task.add_done_callback(self._forget)
            if failures:
                await self._clock.sleep(
                    backoff_seconds(
                        failures,
                        self._random,
                        maximum_seconds=_MAXIMUM_RECEIVE_BACKOFF_SECONDS,
                    )
                )

    async def _take_places(self) -> None:
        """Waits for a whole batch's places: calls for one message cost as much as for ten."""
        async with self._taking_places:
            for _ in range(BATCH_ENTRIES):
                await self._places.acquire()

    def _forget(self, task: asyncio.Task[None]) -> None:
        message = self._waiting.pop(task, None) or self._working.pop(task, None)
        if message is not None:
            self._visibility.let_go(message)

    async def _take_care(self, message: ReceivedMessage, deletions: BatchSender[str]) -> None:
        task, finished = asyncio.current_task(), False
        try:
            async with self._handlers:
                if task is not None:
                    self._working[task] = self._waiting.pop(task)
                finished = await self._finished_with(message)
            if finished:
                await self._deletion_places.acquire()
        finally:
            self._places.release()
        if finished:
            await self._delete(message, deletions)

    async def _delete(self, message: ReceivedMessage, deletions: BatchSender[str]) -> None:
        try:
            await deletions.send(message.receipt)
        except (BusUnavailable, BusRefused, PublisherClosed) as error:
            # It will come again; the handler's inbox knows it then.
            self._instruments.queue_failed("delete")
            log.warning("message_not_deleted", message_id=message.message_id, reason=error.reason)
        finally:
            self._deletion_places.release()

    async def _finished_with(self, message: ReceivedMessage) -> bool:
        """Handles one message and returns whether it may be deleted."""
        started = self._clock.monotonic()
        try:
            event = decode_event(message.body, message.attributes)
            if is_claim(event):
                event = await redeemed(event, self._claim_store())
            async with asyncio.timeout(self._settings.handler_timeout_seconds):
                await self._handler(event)
        except PoisonEvent as poison:
            return await self._buried(message, poison)
        except ServiceError as error:
            if isinstance(error, Unavailable):
                self._pause(error.retry_after_seconds or 0.0)
            await self._deliver_again(message, error.reason)
            return False
        except TimeoutError:
            await self._deliver_again(message, "HANDLER_TIMEOUT")
            return False
        except Exception:  # whatever one event does to its handler, others go on
            log.exception("handler_failed", message_id=message.message_id)
            await self._deliver_again(message, "INTERNAL")
            return False
        self._instruments.handled(event.event_type, self._clock.monotonic() - started)
        return True

    def _claim_store(self) -> ClaimStore:
        if self._claims is None:
            raise BusRefused("the event is in a claim store, and none is configured")
        return self._claims

    def _pause(self, seconds: float) -> None:
        """Receives nothing for a while: each delivery counts towards the dead letters.

        While what handlers need is away, messages are better off waiting in the queue.
        """
        until = self._clock.monotonic() + min(seconds, _MAXIMUM_PAUSE_SECONDS)
        self._paused_until = max(self._paused_until, until)

    async def _deliver_again(self, message: ReceivedMessage, reason: str) -> None:
        delay_seconds = backoff_seconds(
            message.receive_count,
            self._random,
            first_seconds=self._settings.retry_delay_seconds,
            maximum_seconds=self._settings.maximum_retry_delay_seconds,
        )
        self._instruments.failed(reason)
        log.warning(
            "event_failed",
            message_id=message.message_id,
            reason=reason,
            receive_count=message.receive_count,
            delay_seconds=round(delay_seconds, 1),
        )
        await self._visibility.give_back([message], delay_seconds=math.ceil(delay_seconds))

    async def _buried(self, message: ReceivedMessage, poison: PoisonEvent) -> bool:
        """Sends the message to the dead letters and returns whether they have it."""
        reason = poison.poison_reason.value
        log.warning("poison_message", message_id=message.message_id, poison_reason=reason)
        if self._queue.has_dead_letters:
            try:
                outcome, *_ = await self._queue.send_to_dead_letters([dead_letter(message, reason)])
            except (BusUnavailable, BusRefused) as error:
                outcome = EntryOutcome(accepted=False, error_code=error.reason)
            if outcome.accepted:
                self._instruments.poison(reason)
                return True
            self._instruments.queue_failed("dead_letter")
            log.warning("dead_letter_not_sent", code=outcome.error_code)
        # Without dead letters of ours, the queue's own redrive policy takes it in the end.
        await self._deliver_again(message, f"POISON_{reason.upper()}")
        return False
