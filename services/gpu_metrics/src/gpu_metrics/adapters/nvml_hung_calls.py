"""Calls into a driver that may never return, made in threads that are left behind then."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TypeAlias, TypeVar

from gpu_metrics.adapters.nvml_library import CallMeter, PreparedCall

__all__ = ["CallHung", "WatchedMeter", "from_threads"]

_POLL_SECONDS = 0.05
_OPENS_A_GPU = "nvmlDeviceGetHandleByIndex_v2"

_Item = TypeVar("_Item")
_Items: TypeAlias = queue.SimpleQueue[tuple[_Item] | Exception | None]
"""What a thread yields, what it raises, or None at its end."""


class CallHung(Exception):
    """A call has not returned for too long; `gpu` is -1 where it is of no GPU."""

    def __init__(self, gpu: int, function: str, seconds: float) -> None:
        whose = f"GPU {gpu}" if gpu >= 0 else "the driver itself"
        super().__init__(f"{whose} gave no answer to {function} within {seconds:g} s")
        self.gpu = gpu
        self.function = function


class WatchedMeter(CallMeter):
    """Also knows which call is under way, for how long, and for which GPU.

    With a `gpu` of -1 it counts the GPUs that are opened through it, for which it speaks then.
    """

    __slots__ = ("_under_way", "gpu")

    def __init__(self, gpu: int = -1) -> None:
        super().__init__()
        self.gpu = gpu
        # Name of the function, and when it was called; one value, as another thread reads it.
        self._under_way: tuple[str, float] | None = None

    def run(self, call: PreparedCall) -> int:
        """Make the call and return its code."""
        name = getattr(getattr(call, "func", call), "__name__", "")
        if name == _OPENS_A_GPU:
            self.gpu += 1
        self._under_way = name, time.monotonic()
        try:
            return super().run(call)
        finally:
            self._under_way = None

    def check(self, limit_seconds: float) -> None:
        """Raise `CallHung` when the call that is under way takes longer than the limit."""
        under_way = self._under_way
        if under_way is not None and time.monotonic() - under_way[1] > limit_seconds:
            raise CallHung(self.gpu, under_way[0], limit_seconds)


def from_threads(
    sources: Sequence[Iterator[_Item]],
    meters: Sequence[WatchedMeter],
    *,
    limit_seconds: float,
    stopping: threading.Event,
) -> Iterator[_Item]:
    """Yield what the sources yield, each run in a thread of its own, until all end or `stopping`.

    Raises what a source raises, and `CallHung` when a call of the meters takes longer than the
    limit: its thread is left behind then, and ends with the call, if ever.
    """
    items: _Items[_Item] = queue.SimpleQueue()
    abandoned = threading.Event()
    for source in sources:
        arguments = [source, items, abandoned]
        threading.Thread(target=_run, args=arguments, name="nvml-recorder", daemon=True).start()
    running = len(sources)
    try:
        while running and not stopping.is_set():
            for meter in meters:
                meter.check(limit_seconds)
            try:
                item = items.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item[0]
    finally:
        abandoned.set()


def _run(source: Iterator[_Item], items: _Items[_Item], abandoned: threading.Event) -> None:
    try:
        for item in source:
            items.put((item,))
            if abandoned.is_set():
                return
        items.put(None)
    except Exception as raised:  # noqa: BLE001  # raised again where the items are awaited
        items.put(raised)
