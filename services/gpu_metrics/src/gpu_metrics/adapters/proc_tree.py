"""What Linux tells of processes under /proc; all reads block and belong in a thread."""

import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpu_metrics.domain.cgroup_path import ControlGroup, parse_control_groups
from gpu_metrics.domain.plain_text import plain_text

__all__ = ["ProcTree", "ProcessFacts"]

_MAXIMUM_BYTES = 1024 * 1024
_LISTENING = "0A"
_ANCESTORS = 8
# The kernel walks all its tables for a list of sockets, 5 ms and more of CPU each; so one is shared
# by the processes of a network for as long as a look at all of them takes.
_TABLE_SECONDS = 2.0
# A process that listens goes on doing so, as far as servers go.
_LISTENER_SECONDS = 60.0
_MOST_REMEMBERED = 1024
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What is known of one process; `problem` says what could not be read of its group."""

    name: str = ""
    group: ControlGroup | None = None
    visible_devices: str | None = None
    problem: str = ""


class ProcTree:
    """A /proc, of this machine or, mounted elsewhere, of the host around a container."""

    def __init__(
        self, root: Path = Path("/proc"), *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._monotonic = monotonic
        # By network, the listening sockets' inodes and ports, and until when they are believed.
        self._tables: dict[str, tuple[float, dict[int, int]]] = {}
        # By process and its start, the port it was found to listen on, and likewise.
        self._listeners: dict[tuple[int, str], tuple[float, int]] = {}

    def describe(self, process_id: int) -> ProcessFacts:
        """Return what can be read of a process, without raising."""
        directory = self._root / str(process_id)
        try:
            group = parse_control_groups(_read(directory / "cgroup"))
        except FileNotFoundError:
            return ProcessFacts(problem="the process is not visible to the agent, or gone")
        except PermissionError:
            return ProcessFacts(problem="the agent may not read the process's control group")
        except OSError:
            return ProcessFacts(problem="the process's control group cannot be read")
        name = ""
        with suppress(OSError):
            name = plain_text(_read(directory / "comm").strip(), 64)
        return ProcessFacts(
            name=name,
            group=group,
            visible_devices=self._visible_devices(directory),
            problem="" if group is not None else "the process's control group is not understood",
        )

    def listens_on(self, process_id: int, ports: set[int]) -> int:
        """Return the port of `ports` on which the process or an ancestor listens, 0 for none.

        More than one answer is none: which it is would be a guess. A port that was found is
        believed for a minute.
        """
        now = self._monotonic()
        with suppress(OSError):
            key = (process_id, self._started(process_id))
            until, known = self._listeners.get(key, (0.0, 0))
            if known in ports and now < until:
                return known
            inodes = {
                inode: port
                for inode, port in self._table_of(process_id, now).items()
                if port in ports
            }
            for ancestor in self._with_ancestors(process_id) if inodes else ():
                found = {inodes[inode] for inode in self._sockets(ancestor) if inode in inodes}
                if len(found) == 1:
                    (port,) = found
                    if key[1]:
                        _remember(self._listeners, key, (now + _LISTENER_SECONDS, port))
                    return port
                if found:
                    return 0
        return 0

    def _started(self, process_id: int) -> str:
        """Return when the process started, which tells it from a later one of its number."""
        after_name = _read(self._root / str(process_id) / "stat").rpartition(")")[2].split()
        # Field 22 of proc(5), of which two come before these.
        return after_name[19] if len(after_name) > 19 else ""

    def _table_of(self, process_id: int, now: float) -> dict[int, int]:
        """Return the listening sockets of the process's network, as read a moment ago."""
        try:
            network = str((self._root / str(process_id) / "ns/net").readlink())
        except OSError:
            return self._listening_inodes(process_id)
        until, table = self._tables.get(network, (0.0, {}))
        if now >= until:
            table = self._listening_inodes(process_id)
            _remember(self._tables, network, (now + _TABLE_SECONDS, table))
        return table

    def _visible_devices(self, directory: Path) -> str | None:
        with suppress(OSError):
            for entry in _read(directory / "environ").split("\0"):
                name, equals, value = entry.partition("=")
                if name == "NVIDIA_VISIBLE_DEVICES" and equals:
                    return value
        return None

    def _listening_inodes(self, process_id: int) -> dict[int, int]:
        """Return ports by the inodes of listening sockets, in the process's network."""
        inodes: dict[int, int] = {}
        for name in ("tcp", "tcp6"):
            with suppress(OSError):
                text = _read(self._root / str(process_id) / "net" / name)
                for line in text.splitlines()[1:]:
                    fields = line.split()
                    if len(fields) < 10 or fields[3] != _LISTENING:
                        continue
                    with suppress(ValueError):
                        inodes[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
        return inodes

    def _with_ancestors(self, process_id: int) -> list[int]:
        """Return the process and those it came from, up to a limit and below init."""
        chain = [process_id]
        while len(chain) <= _ANCESTORS:
            # The name, in brackets, may hold anything; the parent is the second field after it.
            after_name = _read(self._root / str(chain[-1]) / "stat").rpartition(")")[2].split()
            parent = int(after_name[1]) if len(after_name) > 1 and after_name[1].isdigit() else 0
            if parent <= 1 or parent in chain:
                break
            chain.append(parent)
        return chain

    def _sockets(self, process_id: int) -> set[int]:
        inodes = set()
        with suppress(OSError):
            for entry in (self._root / str(process_id) / "fd").iterdir():
                with suppress(OSError):
                    found = _SOCKET.fullmatch(str(entry.readlink()))
                    if found:
                        inodes.add(int(found[1]))
        return inodes


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    if len(known) >= _MOST_REMEMBERED:
        known.clear()
    known[key] = value


def _read(path: Path) -> str:
    """Return a file's text, as much of it as is wanted. Raises OSError."""
    with path.open("rb") as file:
        # Whatever else may stand there must not be read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(f"{path.name} is no regular file")
        return file.read(_MAXIMUM_BYTES).decode(errors="replace")
