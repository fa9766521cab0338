"""Whether GPUs that were lost would answer again, without a touch to those that are well.

The library looks at a lost GPU anew only when it is started anew, and that gives up the handles,
event sets and, where nothing else keeps the driver loaded, the counters of all others. So another
process starts it first (nvml_lookout.py), for 20 ms of CPU and what the driver takes.
"""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from gpu_metrics.adapters import nvml_lookout
from gpu_metrics.adapters.daemon_worker import DaemonWorker
from gpu_metrics.adapters.nvml_discovery import FoundGpu

__all__ = ["LostGpuProbe"]

log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS = 20.0
_LONGEST_PAUSE_SECONDS = 600.0


class LostGpuProbe:
    """Asks for lost GPUs every `pause_seconds`, and less often after a start that was in vain."""

    def __init__(self, *, pause_seconds: float) -> None:
        self._worker = DaemonWorker("nvml-probe")
        self._first_pause_seconds = self._pause_seconds = pause_seconds
        self._due: float | None = None
        self._asked_for: frozenset[str] = frozenset()
        self._answer: asyncio.Future[bool] | None = None

    def wants_start(self, lost: Sequence[FoundGpu], now: float) -> bool:
        """Return whether the library should be started anew, as one of the lost GPUs answers.

        Never waits: it asks when it is time to and tells in a later call.
        """
        uuids = frozenset(gpu.uuid for gpu in lost)
        if uuids != self._asked_for or self._due is None:
            self._asked_for, self._pause_seconds = uuids, self._first_pause_seconds
            self._due = now + self._pause_seconds
        if not lost:
            return False
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer.result(), None
            return answer
        if now >= self._due and not self._worker.busy:
            self._due = now + self._pause_seconds
            names = [gpu.pci_bus_id or str(gpu.driver_index) for gpu in lost]
            self._answer = self._worker.call(lambda: _answers(names))
        return False

    def started(self, now: float) -> None:
        """Note that the library was started anew; until a GPU is back the pause doubles."""
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        self._due = now + self._pause_seconds

    def close(self) -> None:
        """Let the thread end once the process does."""
        self._worker.close()


def _answers(names: Sequence[str]) -> bool:
    # Isolated, and without the packages of this environment: it needs none, and starts sooner.
    command = [sys.executable, "-I", "-S", str(Path(nvml_lookout.__file__)), *names]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    except OSError as error:
        # Without another process a start is the only way to find out.
        log.warning("lost_gpu_not_probed", cause=type(error).__name__)
        return True
    return ended.returncode == 0
