"""What passes over the event bus, heard with a queue of its own, and what could not be read."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from gaming.events.events_pb2 import GameEvent
from messaging.adapters.aws_calls import aws_call, open_client
from messaging.event_types import text_of
from messaging.service_bus import open_consumer
from messaging.settings import MessagingSettings
from servicekit.clock import SystemClock
from servicekit.errors import ServiceError

__all__ = ["BusPicture", "watch_bus"]

_DEAD_LETTERS_SECONDS = 2.0
_FIRST_TYPE_OF_THE_SUITE = 100


@dataclass(slots=True)
class BusPicture:
    """Events by type since the beginning, and the dead letters there are now."""

    from_game: Counter[str] = field(default_factory=Counter)
    from_suite: Counter[str] = field(default_factory=Counter)
    dead_letters: int = 0

    def hear(self, event: GameEvent) -> None:
        """Counts an event."""
        heard = self.from_suite if event.event_type >= _FIRST_TYPE_OF_THE_SUITE else self.from_game
        heard[text_of(event.event_type) or "other"] += 1

    @property
    def short(self) -> str:
        """The bus in a few words: events from the game, from the suite, and dead letters."""
        dead = f", {self.dead_letters:,} dead" if self.dead_letters else ""
        return f"{self.from_game.total():,} in, {self.from_suite.total():,} out{dead}"

    @property
    def words(self) -> str:
        """The bus in a line for people."""
        return (
            f"{self.from_game.total():,} events from the game{_by_type(self.from_game)}, "
            f"{self.from_suite.total():,} from the suite{_by_type(self.from_suite)}, "
            f"{self.dead_letters:,} dead letters"
        )


@contextlib.asynccontextmanager
async def watch_bus(
    picture: BusPicture, settings: MessagingSettings, dead_letter_urls: Sequence[str]
) -> AsyncIterator[None]:
    """Keeps `picture` current while the body runs; a bus that is away is tried again."""

    async def hear(event: GameEvent) -> None:
        picture.hear(event)

    stopping = asyncio.Event()
    async with (
        open_consumer(settings, hear, clock=SystemClock()) as consumer,
        asyncio.TaskGroup() as group,
    ):
        reading = group.create_task(consumer.run(stopping))
        counting = group.create_task(_count_dead_letters(picture, settings, dead_letter_urls))
        try:
            yield
        finally:
            counting.cancel()
            reading.cancel()


async def _count_dead_letters(
    picture: BusPicture, settings: MessagingSettings, queue_urls: Sequence[str]
) -> None:
    name = "ApproximateNumberOfMessages"
    async with open_client("sqs", settings, connections=2) as sqs:
        while True:
            with contextlib.suppress(ServiceError):
                count = 0
                for url in queue_urls:
                    async with aws_call(settings.call_timeout_seconds):
                        answer = await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[name])
                    count += int(answer["Attributes"][name])
                picture.dead_letters = count
            await asyncio.sleep(_DEAD_LETTERS_SECONDS)


def _by_type(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    return f" ({', '.join(f'{name} {count:,}' for name, count in sorted(counts.items()))})"
