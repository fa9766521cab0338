"""The events of a host in a file that survives the agent, and the machine as far as its disk does.

One append is one write and one fsync. A last frame that is not whole was promised to nobody and is
cut off at start. Damage anywhere else cannot be repaired without giving a number twice, so the file
is laid aside and a journal with another id begins.
"""

import asyncio
import fcntl
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from gpu_metrics.adapters.daemon_worker import DaemonWorker
from gpu_metrics.adapters.event_journal_format import (
    DamagedJournal,
    JournalContents,
    decode_journal,
    events_frame,
    header_frame,
)
from gpu_metrics.domain.event_window import EventWindow
from gpu_metrics.domain.gpu_events import GpuEvent
from gpu_metrics.domain.xid_counts import XidCounts
from gpu_metrics.journal import DEFAULT_BOUND, EventJournal

__all__ = ["JournalFile", "open_journal"]

log = structlog.get_logger(__name__)

_NAME = "events.journal"
_WRITE_TIMEOUT_SECONDS = 5.0


class JournalFile:
    """A journal's file, written by this process alone; calls to the disk run in a thread.

    A disk that hangs longer than the limit counts as one that failed. XIDs are counted since the
    driver was loaded, so `machine_boot_id`, another one after every start of the machine, begins
    them anew.
    """

    def __init__(
        self,
        directory: Path,
        *,
        machine_boot_id: str = "",
        timeout_seconds: float = _WRITE_TIMEOUT_SECONDS,
    ) -> None:
        """Open the file in `directory`. Raises OSError when it cannot be written or is in use."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._directory = directory
        self._path = directory / _NAME
        self._machine_boot_id = machine_boot_id
        self._timeout_seconds = timeout_seconds
        # The lock has a file of its own: the journal's is replaced when it is compacted.
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._file = -1
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.contents = self._recover()
        except BaseException:
            os.close(self._lock)
            raise
        self._size = self.contents.length
        self._worker = DaemonWorker("event-journal")

    def close(self) -> None:
        """Let go of the file, unless a call to the disk hangs on it."""
        self._worker.close()
        if not self._worker.busy:
            os.close(self._file)
            os.close(self._lock)

    async def append(self, events: Sequence[GpuEvent], acknowledged: int) -> None:
        """Return once the events are on disk."""
        frame = events_frame(events, acknowledged)
        await self._in_thread(lambda: self._append(frame))

    async def compact(
        self, events: Sequence[GpuEvent], counts: XidCounts, acknowledged: int
    ) -> None:
        """Write a file that holds these events alone and put it in place of the one before."""
        frames = self._whole_file(
            self.contents.journal_id, events, events[-1].sequence, counts, acknowledged
        )
        await self._in_thread(lambda: self._replace(frames))

    def _whole_file(
        self,
        journal_id: str,
        events: Sequence[GpuEvent],
        last: int,
        counts: XidCounts,
        acknowledged: int,
    ) -> bytes:
        base = events[0].sequence - 1 if events else last
        header = header_frame(journal_id, self._machine_boot_id, base, last, counts)
        return header + events_frame(events, acknowledged)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        if self._worker.busy:
            raise TimeoutError
        async with asyncio.timeout(self._timeout_seconds):
            # Shielded: the thread finishes what it began, whoever waits for it.
            await asyncio.shield(self._worker.call(work))

    def _append(self, frame: bytes) -> None:
        try:
            _write_all(self._file, frame)
            os.fsync(self._file)
        except OSError:
            # What is there of it must not be found at the next start: it was promised to nobody.
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(frame)

    def _replace(self, frames: bytes) -> None:
        """Put a file with these frames in place of the one there is, and go on with it."""
        fresh = self._path.with_suffix(".new")
        opened = os.open(
            fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640
        )
        try:
            _write_all(opened, frames)
            os.fsync(opened)
            fresh.replace(self._path)
        except BaseException:
            os.close(opened)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = opened
        self._size = len(frames)
        self._sync_directory()

    def _recover(self) -> JournalContents:
        """Return what the file holds, cut to whole frames, ready to be appended to."""
        counts = XidCounts()
        with suppress(FileNotFoundError):
            self._path.with_suffix(".new").unlink()
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            data = b""
        try:
            found = decode_journal(data)
        except DamagedJournal:
            self._path.rename(self._path.with_suffix(".damaged"))
            log.error(  # noqa: TRY400  # what is in the file says more than where reading stopped
                "journal_damaged",
                explanation="laid aside as events.damaged; events in it that were not delivered "
                "are lost, and a new journal begins",
            )
            found = None
        if found is None:
            journal_id = uuid.uuid4().hex
            self._replace(self._whole_file(journal_id, (), 0, counts, 0))
            return JournalContents(
                journal_id, self._machine_boot_id, 0, 0, counts, length=self._size
            )
        if found.length < len(data):
            log.warning("journal_torn", cut_off_bytes=len(data) - found.length)
        if found.machine_boot_id != self._machine_boot_id:
            found.xid_counts = counts
            self._replace(
                self._whole_file(
                    found.journal_id, found.events, found.last_sequence, counts, found.acknowledged
                )
            )
            found.length = self._size
            return found
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        if found.length < len(data):
            os.ftruncate(self._file, found.length)
            os.fsync(self._file)
        return found

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def open_journal(
    directory: Path, *, bound: int = DEFAULT_BOUND, machine_boot_id: str = ""
) -> tuple[EventJournal, JournalFile]:
    """Return the journal that `directory` holds, a new one in an empty directory, and its file.

    Raises OSError when the directory cannot be written or another agent uses it.
    """
    file = JournalFile(directory, machine_boot_id=machine_boot_id)
    contents = file.contents
    window = EventWindow(
        contents.journal_id,
        bound=bound,
        events=contents.events,
        last_sequence=contents.last_sequence,
        acknowledged=contents.acknowledged,
    )
    # The window holds them from here on.
    contents.events = []
    return EventJournal(
        bound=bound, store=file, window=window, xid_counts=contents.xid_counts
    ), file
