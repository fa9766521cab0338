"""A thread for calls into a driver that may never return."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["DaemonWorker"]

_Result = TypeVar("_Result")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class DaemonWorker:
    """Runs one call at a time in a thread of its own.

    A call that hangs takes this thread and no other, and does not keep the process from exiting,
    as a thread of an executor would. `busy` tells whether the last call is still running.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running = threading.Event()
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()

    @property
    def busy(self) -> bool:
        """Return whether a call is running; another one should not be handed in then."""
        return self._running.is_set()

    def call(self, function: Callable[[], _Result]) -> "asyncio.Future[_Result]":
        """Run `function` in the thread; the future takes its result or what it raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._running.set()
        self._jobs.put((loop, future, function))
        return future

    def close(self) -> None:
        """Let the thread end once its call returns."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, function = job
            try:
                result, error = function(), None
            except Exception as raised:  # noqa: BLE001  # handed to whoever awaits the future
                result, error = None, raised
            self._running.clear()
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                # The event loop closed while the call hung; nobody waits for the answer.
                return


def _settle(future: "asyncio.Future[Any]", result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
