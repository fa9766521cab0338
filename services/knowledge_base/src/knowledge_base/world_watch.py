"""Streams what changes in worlds, whichever replica it was changed through."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

import structlog

from knowledge_base.domain.errors import WorldNotFound
from knowledge_base.domain.worlds import WorldChange, WorldLog
from knowledge_base.ports_worlds import WorldJobStore
from servicekit.clock import Clock
from servicekit.errors import ResumeTokenTooOld, ShuttingDown, SlowSubscriber, Unavailable

__all__ = ["ERASED", "WatchStep", "WorldWatch"]

log = structlog.get_logger(__name__)

# What a watcher holds in memory at most; the rest waits in the database's log.
_CHANGES_AT_ONCE = 256
_LISTEN_AGAIN_SECONDS = 1.0
ERASED = "erased"


@dataclass(frozen=True, slots=True)
class WatchStep:
    """One step of a watch; `change` is None in a heartbeat. `token` resumes after it."""

    token: str
    change: WorldChange | None


class WorldWatch:
    """Follows the logs of worlds.

    A watcher is a position in a log that the database keeps, in the order of commits. It reads on
    when it is woken: by a notification from whoever committed a change, or at its heartbeat, should
    one be lost. A watcher so slow that the log was cut before its position is sent away.

    Args:
        heartbeat_seconds: longest silence of a watch.
    """

    def __init__(
        self, store: WorldJobStore, clock: Clock, *, heartbeat_seconds: float = 5.0
    ) -> None:
        self._store = store
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds
        self._watchers: dict[uuid.UUID, set[asyncio.Event]] = defaultdict(set)
        self._listening = asyncio.Event()
        self._closed = False

    async def watch(
        self, world_id: uuid.UUID, resume_token: str
    ) -> AsyncGenerator[WatchStep, None]:
        """Yields where the log is, then every change after that or the token, and heartbeats.

        Raises:
            WorldNotFound: at once, or after the change `erased`, which ends the watch.
            ResumeTokenTooOld: the token is of another world, or older than what is kept.
            SlowSubscriber: the changes after the last step are kept no more.
            ShuttingDown: the process stops; resume with another replica.
        """
        woken = asyncio.Event()
        self._watchers[world_id].add(woken)
        self._listening.set()
        try:
            known = await self._store.log_of(world_id, watch=True)
            position = known.position(resume_token) if resume_token else known.newest
            if position is None:
                raise ResumeTokenTooOld(
                    "The watch cannot be resumed after this token; read the world, then watch "
                    "without a token."
                )
            yield WatchStep(known.token(position), None)
            while not self._closed:
                woken.clear()
                try:
                    changes = await self._store.changes_after(world_id, position, _CHANGES_AT_ONCE)
                    if not changes:
                        await self._renew(world_id, known)
                except WorldNotFound:
                    yield WatchStep(
                        known.token(position),
                        WorldChange(position + 1, ERASED, None, self._clock.now()),
                    )
                    raise
                if changes and changes[0].number != position + 1:
                    raise SlowSubscriber(
                        "The watcher fell behind what is kept of the world's changes; read the "
                        "world, then watch without a token."
                    )
                for change in changes:
                    position = change.number
                    yield WatchStep(known.token(position), change)
                if not changes and not await self._woken(woken):
                    yield WatchStep(known.token(position), None)
            raise ShuttingDown("The stream ends here; resume it.")
        finally:
            self._watchers[world_id].discard(woken)
            if not self._watchers[world_id]:
                del self._watchers[world_id]

    async def listen(self) -> None:
        """Wakes watchers when their worlds change; runs until cancelled."""
        while True:
            await self._listening.wait()
            try:
                async with aclosing(self._store.wakings()) as wakings:
                    async for world_id in wakings:
                        self._wake(world_id)
                        if not self._watchers:
                            self._listening.clear()
                            break
            except Unavailable:
                log.warning("world_changes_not_heard", reason="database away")
                await self._clock.sleep(_LISTEN_AGAIN_SECONDS)

    def close(self) -> None:
        """Ends all watches with ShuttingDown."""
        self._closed = True
        self._wake(None)

    def _wake(self, world_id: uuid.UUID | None) -> None:
        if world_id is not None:
            for woken in self._watchers.get(world_id, ()):
                woken.set()
            return
        for watchers in self._watchers.values():
            for woken in watchers:
                woken.set()

    async def _renew(self, world_id: uuid.UUID, known: WorldLog) -> None:
        """Goes on being woken. Raises WorldNotFound when the id is another world's by now."""
        now = await self._store.log_of(world_id, watch=True)
        if now.incarnation != known.incarnation:
            raise WorldNotFound("There is no world with this world_id; see ListWorlds.")

    async def _woken(self, woken: asyncio.Event) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._heartbeat_seconds):
                await woken.wait()
        return woken.is_set()
