"""The strict bus in a process of its own, so that a benchmark's CPU time is the client's alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.codec import new_event
from messaging.settings import MessagingSettings
from messaging.testing.strict_aws import StrictAws
from servicekit.settings import load_settings

__all__ = ["BusProcess", "an_event", "bus_process"]


def an_event(number: int) -> GameEvent:
    """Returns a weather event of everyday size."""
    return new_event(
        events_pb2.WEATHER_CHANGED,
        events_pb2.WeatherEvent(old_state="clear", new_state="storm", season="autumn"),
        source="weather-manager",
        event_id=f"00000000-0000-4000-8000-{number:012d}",
        timestamp_milliseconds=1_762_560_000_000 + number,
        metadata={"world_id": "harbour"},
    )


@dataclass(frozen=True, slots=True)
class BusProcess:
    """Where the bus is."""

    endpoint: str
    topic_arn: str
    queue_url: str

    def settings(self) -> MessagingSettings:
        """Returns the product's default settings, for this bus."""
        return load_settings(
            MessagingSettings,
            {
                "AWS_ENDPOINT_URL": self.endpoint,
                "GAMEKEEPER_EVENTS_TOPIC_ARN": self.topic_arn,
                "GAMEKEEPER_EVENTS_QUEUE_URL": self.queue_url,
            },
        )


async def _serve(connection: Connection) -> None:
    async with StrictAws() as aws:
        queue = aws.add_queue("events")
        aws.subscribe(queue)
        connection.send((aws.endpoint, aws.topic_arn, queue.url))
        await asyncio.to_thread(connection.recv)


def _run(connection: Connection) -> None:
    asyncio.run(_serve(connection))


@contextmanager
def bus_process() -> Iterator[BusProcess]:
    """Yields a bus with one topic and one queue subscribed to it."""
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "local")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "local")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    try:
        yield BusProcess(*ours.recv())
        ours.send("stop")
    finally:
        process.join(timeout=5)
        process.kill()
