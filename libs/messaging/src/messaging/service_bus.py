"""The event bus as a service has it beside its main work: from settings, and never in its way.

    say_what_is_joined(settings.messaging)
    if settings.messaging.publishes:
        publisher = await stack.enter_async_context(open_publisher(settings.messaging, clock=clock))

Nothing is called before the first event, so a service starts while the bus is away.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import structlog

from messaging.consumer import EventConsumer, Handler
from messaging.publisher import EventPublisher
from messaging.settings import MessagingSettings
from messaging.waiting import set_within
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["keep_running", "open_consumer", "open_publisher", "say_what_is_joined"]

log = structlog.get_logger(__name__)

_RESTART_SECONDS = 5.0


def say_what_is_joined(settings: MessagingSettings) -> None:
    """Logs whether this process publishes events and reads them, or which variable is missing."""
    for direction, name, variable in (
        ("out", settings.topic_arn, "GAMEKEEPER_EVENTS_TOPIC_ARN"),
        ("in", settings.queue_url, "GAMEKEEPER_EVENTS_QUEUE_URL"),
    ):
        if name:
            log.info("event_bus_joined", direction=direction, name=name)
        else:
            log.info("event_bus_not_joined", direction=direction, because=f"{variable} is empty")


@asynccontextmanager
async def open_publisher(
    settings: MessagingSettings,
    *,
    clock: Clock,
    telemetry: Telemetry | None = None,
    random: Random | None = None,
) -> AsyncIterator[EventPublisher]:
    """Yields a publisher to the topic of the settings."""
    await _load_sdk()
    from messaging.adapters.s3_claim_store import open_s3_claim_store  # noqa: PLC0415  # see above
    from messaging.adapters.sns_topic import open_sns_topic  # noqa: PLC0415  # see above

    async with (
        open_sns_topic(settings) as topic,
        open_s3_claim_store(settings) as claims,
        EventPublisher(
            topic,
            settings=settings,
            clock=clock,
            claims=claims,
            telemetry=telemetry,
            random=random,
        ) as publisher,
    ):
        yield publisher


@asynccontextmanager
async def open_consumer(
    settings: MessagingSettings,
    handler: Handler,
    *,
    clock: Clock,
    telemetry: Telemetry | None = None,
    random: Random | None = None,
) -> AsyncIterator[EventConsumer]:
    """Yields a consumer of the queue of the settings."""
    await _load_sdk()
    from messaging.adapters.s3_claim_store import open_s3_claim_store  # noqa: PLC0415  # see above
    from messaging.adapters.sqs_queue import open_sqs_queue  # noqa: PLC0415  # see above

    async with (
        open_sqs_queue(settings) as queue,
        open_s3_claim_store(settings) as claims,
    ):
        yield EventConsumer(
            queue,
            handler,
            settings=settings,
            clock=clock,
            claims=claims,
            telemetry=telemetry,
            random=random,
        )


async def _load_sdk() -> None:
    """Loads the AWS SDK in a thread: half a second of CPU, in which the service goes on answering.

    A service without the bus does without it.
    """
    await asyncio.to_thread(importlib.import_module, "messaging.adapters.aws_calls")


async def keep_running(
    name: str,
    run: Callable[[asyncio.Event], Awaitable[None]],
    stopping: asyncio.Event,
    clock: Clock,
) -> None:
    """Runs a part of the bus until `stopping` is set, anew after a pause should it ever fail.

    The parts bear an absent bus by themselves; this is for what nobody thought of, which shall not
    end the service beside which they run.
    """
    while not stopping.is_set():
        try:
            await run(stopping)
        except Exception:
            log.exception("event_bus_part_failed", part=name, again_seconds=_RESTART_SECONDS)
        await set_within(stopping, _RESTART_SECONDS, clock)
