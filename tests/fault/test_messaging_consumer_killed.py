"""A reader killed after its handler committed and before it deleted: the event comes again."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import pytest

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.adapters.sqs_queue import open_sqs_queue
from messaging.codec import encode_event
from messaging.consumer import EventConsumer
from messaging.ports import OutgoingMessage
from messaging.settings import MessagingSettings
from messaging.testing.strict_aws import StrictAws
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

_SOON_SECONDS = 60.0

# Says what it handled; its deletions never come to an end.
READER = textwrap.dedent("""
    import asyncio, os
    from messaging.adapters.sqs_queue import open_sqs_queue
    from messaging.consumer import EventConsumer
    from messaging.settings import MessagingSettings
    from servicekit.clock import SystemClock
    from servicekit.settings import load_settings

    async def handle(event):
        print("handled", event.event_id, flush=True)

    async def before_deleting(receipts):
        print("deleting", len(receipts), flush=True)
        await asyncio.Event().wait()

    async def main():
        settings = load_settings(MessagingSettings, os.environ)
        async with open_sqs_queue(settings) as queue:
            queue.delete_batch = before_deleting
            consumer = EventConsumer(queue, handle, settings=settings, clock=SystemClock())
            await consumer.run(asyncio.Event())

    asyncio.run(main())
""")


async def lines_of(process: asyncio.subprocess.Process, count: int) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(_SOON_SECONDS):
        return [(await process.stdout.readline()).decode().strip() for _ in range(count)]


async def test_an_event_handled_by_a_killed_reader_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    event = GameEvent(event_id="event-1", event_type=events_pb2.TIME_UPDATED, source="time-manager")
    async with StrictAws() as aws:
        queue = aws.add_queue("events")
        queue.state.add(OutgoingMessage(encode_event(event)))
        environment = {
            "AWS_ENDPOINT_URL": aws.endpoint,
            "GAMEKEEPER_EVENTS_QUEUE_URL": queue.url,
            "GAMEKEEPER_EVENTS_VISIBILITY_SECONDS": "2",
        }
        killed = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            READER,
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert await lines_of(killed, 2) == ["handled event-1", "deleting 1"]
        finally:
            killed.kill()
            await killed.wait()
        assert len(queue.state) == 1
        again = await handled_by_the_next_reader(environment)
        assert again == ["event-1"]
        assert len(queue.state) == 0


async def handled_by_the_next_reader(environment: dict[str, str]) -> Sequence[str]:
    """Returns what an undisturbed reader in this process handles until it stops."""
    settings, stopping = load_settings(MessagingSettings, environment), asyncio.Event()
    handled: list[str] = []

    async def handle(event: Any) -> None:
        handled.append(event.event_id)
        stopping.set()

    async with open_sqs_queue(settings) as queue, asyncio.timeout(_SOON_SECONDS):
        await EventConsumer(queue, handle, settings=settings, clock=SystemClock()).run(stopping)
    return handled
