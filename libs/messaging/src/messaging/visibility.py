"""Keeps messages in hand hidden from other readers, and gives them back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import structlog

from messaging.errors import BusRefused, BusUnavailable
from messaging.metric_names import ConsumerInstruments
from messaging.ports import BATCH_ENTRIES, EntryOutcome, Queue, ReceivedMessage
from servicekit.clock import Clock

__all__ = ["VisibilityKeeper"]

log = structlog.get_logger(__name__)

_BEATS_PER_TIMEOUT = 3
"""So that two renewals in a row may fail before others see the message."""


class VisibilityKeeper:
    """Renews the visibility timeout of every message held, until it is let go."""

    def __init__(
        self,
        queue: Queue,
        *,
        visibility_seconds: int,
        clock: Clock,
        instruments: ConsumerInstruments,
    ) -> None:
        self._queue = queue
        self._visibility_seconds = visibility_seconds
        self._clock = clock
        self._instruments = instruments
        self._held: dict[str, ReceivedMessage] = {}

    def hold(self, message: ReceivedMessage) -> None:
        """Starts renewing a message just received."""
        self._held[message.receipt] = message

    def let_go(self, message: ReceivedMessage) -> None:
        """Stops renewing; what is not deleted becomes visible when its timeout ends."""
        self._held.pop(message.receipt, None)

    async def beat(self) -> None:
        """Renews three times a visibility timeout, for ever."""
        while True:
            await self._clock.sleep(self._visibility_seconds / _BEATS_PER_TIMEOUT)
            await self._renew(list(self._held.values()))

    async def _renew(self, messages: list[ReceivedMessage]) -> None:
        for batch in _batches(messages):
            outcomes = await self._change(batch, self._visibility_seconds)
            for message, outcome in zip(batch, outcomes, strict=True):
                # One that was deleted while the call was under way is no loss.
                if outcome.accepted or outcome.retryable or message.receipt not in self._held:
                    continue
                self.let_go(message)
                self._instruments.queue_failed("renew")
                log.warning(
                    "message_hold_lost", message_id=message.message_id, code=outcome.error_code
                )

    async def give_back(self, messages: Iterable[ReceivedMessage], *, delay_seconds: int) -> None:
        """Makes messages visible after `delay_seconds`, as far as the queue can be reached.

        Those it cannot be reached for become visible when their timeout ends.
        """
        messages = list(messages)
        for message in messages:
            self.let_go(message)
        for batch in _batches(messages):
            await self._change(batch, delay_seconds)

    async def _change(self, batch: list[ReceivedMessage], seconds: int) -> list[EntryOutcome]:
        try:
            return await self._queue.extend_visibility(
                [message.receipt for message in batch], seconds=[seconds] * len(batch)
            )
        except (BusUnavailable, BusRefused) as error:
            self._instruments.queue_failed("change_visibility")
            log.warning("visibility_not_changed", messages=len(batch), reason=error.reason)
            return [EntryOutcome(False, error.reason, retryable=True)] * len(batch)


def _batches(messages: list[ReceivedMessage]) -> Iterable[list[ReceivedMessage]]:
    remaining = iter(messages)
    while batch := list(itertools.islice(remaining, BATCH_ENTRIES)):
        yield batch
