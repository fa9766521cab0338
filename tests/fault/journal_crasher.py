"""Runs an agent's journal in processes that are killed between any two steps on the disk.

Called as a program: `journal_crasher.py DIRECTORY MODE`. For every step there is, a forked process
appends events to a journal in a directory of its own and is killed with SIGKILL before that step;
it says on a pipe which events it was told are safe. Then another process opens what is left,
appends one event more and prints everything as a line of JSON. Modes: `kill` loses nothing that
was handed to the kernel; `tear` writes half of what is to be written first; `power` also loses
what was not synced, as a machine does that loses its power.
"""

import asyncio
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_metrics.adapters.event_journal_file import open_journal
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent

BOUND = 3
APPENDS = 9
SYNCED_LATER = ("write", "fsync", "ftruncate")


def xid(code: int) -> ObservedEvent:
    return ObservedEvent(
        kind=GpuEventKind.XID,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        gpu_uuid="GPU-a",
        xid=code % 2 + 1,
        description=str(code),
    )


class Crasher:
    """Counts the steps on the disk and kills this process before the wanted one."""

    def __init__(self, step: int, mode: str) -> None:
        self._left = step
        self._mode = mode
        self._random = random.Random(step)  # noqa: S311  # chooses what a power loss leaves
        self._synced: dict[int, int] = {}
        self._undo: Callable[[], Any] | None = None
        self._real = {name: getattr(os, name) for name in SYNCED_LATER}
        self._real_replace = Path.replace

    def install(self) -> None:
        os.write = self.write  # type: ignore[assignment]  # the same call with a step before it
        os.fsync = self.fsync  # type: ignore[assignment]  # as above

        def replace(fresh: Path, path: Any) -> Path:
            return self.replace(fresh, path)

        Path.replace = replace  # type: ignore[assignment,method-assign]  # as above

    def write(self, file: int, data: memoryview) -> int:
        self._synced.setdefault(file, os.fstat(file).st_size)
        self._step(lambda: self._real["write"](file, data[: len(data) // 2]))
        return int(self._real["write"](file, data))

    def fsync(self, file: Any) -> None:
        self._step()
        self._real["fsync"](file)
        if Path(f"/proc/self/fd/{file}").is_dir():
            self._undo = None
        else:
            self._synced[file] = os.fstat(file).st_size

    def replace(self, fresh: Path, path: Any) -> Path:
        self._step()
        before = Path(path).with_suffix(".before")
        before.unlink(missing_ok=True)
        if Path(path).exists():
            os.link(path, before)
            self._undo = lambda: self._real_replace(before, path)
        else:
            self._undo = lambda: Path(path).unlink()
        return self._real_replace(fresh, path)

    def _step(self, half: Callable[[], Any] | None = None) -> None:
        self._left -= 1
        if self._left > 0:
            return
        if self._mode in ("tear", "power") and half is not None:
            half()
        if self._mode == "power":
            for file, synced in self._synced.items():
                try:
                    size = os.fstat(file).st_size
                except OSError:
                    continue  # closed by now
                self._real["ftruncate"](file, self._random.randint(min(synced, size), size))
            if self._undo is not None and self._random.random() < 0.5:
                self._undo()
        os.kill(os.getpid(), signal.SIGKILL)


async def append_events(directory: Path, tell: Callable[[Any], None]) -> None:
    journal, _ = open_journal(directory, bound=BOUND)
    for code in range(APPENDS):
        events = await journal.append([xid(code)] * (1 + code % 2))
        tell([journal.journal_id, [[e.sequence, e.xid, e.xid_count] for e in events]])


async def show(directory: Path) -> dict[str, Any]:
    journal, _ = open_journal(directory, bound=BOUND)
    await journal.append([xid(1)])
    batch = journal.next_batch({}, 1000)
    assert batch is not None
    return {
        "journal_id": batch.journal_id,
        "events": [[e.sequence, e.xid, e.xid_count] for e in batch.events],
        "lost": journal.lost_events,
    }


def in_fork(work: Callable[[Callable[[Any], None]], None]) -> tuple[list[Any], int]:
    """Run `work` in a forked process; return what it told, line by line, and its wait status."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        tell_raw = os.write
        status = 1
        try:
            work(lambda told: (tell_raw(write, json.dumps(told).encode() + b"\n"), None)[1])
            status = 0
        except BaseException:  # noqa: BLE001  # the border of the process
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = [json.loads(line) for line in pipe]
    return told, os.waitpid(child, 0)[1]


def main(directory: Path, mode: str) -> None:
    step, ended = 0, False
    while not ended:
        step += 1
        place = directory / f"{mode}-{step}"

        def crash(tell: Callable[[Any], None], step: int = step, place: Path = place) -> None:
            Crasher(step, mode).install()
            asyncio.run(append_events(place, tell))

        def look(tell: Callable[[Any], None], place: Path = place) -> None:
            tell(asyncio.run(show(place)))

        acknowledged, status = in_fork(crash)
        ended = status == 0
        if not ended and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"step {step} failed otherwise: {status}")
        (left,), _ = in_fork(look)
        print(json.dumps({"step": step, "acknowledged": acknowledged, "left": left}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
