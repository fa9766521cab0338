"""A network in virtual time: gRPC calls and streams between simulated processes, with faults.

The services' own adapters and servicers sit at both ends. A unary call may lose its request or its
answer, arrive late, out of order or twice. A stream is what TCP makes of it: in order and without
gaps, but it may stall, break, or fall silent when its peer's machine is gone. Every link draws from
its own random stream, so what happens on one does not depend on the traffic of another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import grpc.aio
from virtual_loop import PROCESS, NodeClock, VirtualLoop

from servicekit.errors import ServiceError

__all__ = ["Lost", "Network", "Process", "VirtualChannel", "WeatherReport"]

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_STREAM_WINDOW = 16
"""Messages a stream holds between its ends before the sender has to wait."""
_NOTICED_SECONDS = 10.0
"""After so long, keepalive tells each end of a stream that the other one is out of reach."""
_DEFAULT_TIMEOUT_SECONDS = 30.0


class Lost(Exception):
    """A call got no answer in time, or its connection was refused or broke."""

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherReport:
    """How bad a link is: probabilities per message, and how late a late message is."""

    drop: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    late_seconds: float = 4.0
    stream_break: float = 0.0
    latency_seconds: float = 0.002


class Process:
    """One run of one component: it ends in a crash or at the end of the simulation."""

    def __init__(self, name: str, network: Network, clock: NodeClock, rng: Random) -> None:
        self.name = name
        self.network = network
        self.clock = clock
        self.rng = rng
        self.alive = True
        self.services: dict[str, Any] = {}
        self.streams: list[_Stream] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def spawn(self, work: Coroutine[Any, Any, Any], *, vital: bool = True) -> asyncio.Task[Any]:
        """Run `work` until it ends or the process does; a vital one must not end by an error."""
        context = copy_context()
        context.run(PROCESS.set, self.name)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._vital_ended if vital else self._ended)
        return task

    def kill(self, *, silently: bool = False) -> None:
        """End it at once. `silently`: its machine is gone, so nobody's connection is reset."""
        self.alive = False
        self.services.clear()
        for task in list(self._tasks):
            task.cancel()
        for stream in list(self.streams):
            stream.end_gone(self, silently=silently)
        self.streams.clear()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.network.on_error(self.name, error)

    def _vital_ended(self, task: asyncio.Task[Any]) -> None:
        self._ended(task)
        if self.alive and (task.cancelled() or task.exception() is None):
            self.network.on_error(self.name, RuntimeError("a vital task ended by itself"))


class _Link:
    """The way from one machine to another."""

    __slots__ = ("cut", "rng", "weather")

    def __init__(self, rng: Random, weather: WeatherReport) -> None:
        self.rng = rng
        self.weather = weather
        self.cut = False

    def delay(self) -> float:
        """Return how long the next message takes."""
        weather = self.weather
        seconds = weather.latency_seconds * (0.5 + self.rng.random())
        if weather.late and self.rng.random() < weather.late:
            seconds += self.rng.random() * weather.late_seconds
        return seconds

    def loses(self) -> bool:
        return self.cut or (self.weather.drop > 0 and self.rng.random() < self.weather.drop)

    def repeats(self) -> bool:
        return self.weather.duplicate > 0 and self.rng.random() < self.weather.duplicate


class Network:
    """All links and who listens. `on_error` hears of errors that no service should have."""

    def __init__(self, seed: int, *, on_error: Callable[[str, BaseException], None]) -> None:
        self.on_error = on_error
        self.weather = WeatherReport()
        self._seed = seed
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise TypeError("the simulation runs on its own loop")
        self._loop = loop
        self._links: dict[tuple[str, str], _Link] = {}
        self._listening: dict[str, Process] = {}

    def listen(self, process: Process) -> None:
        """Make the process the one that answers under its name."""
        self._listening[process.name] = process
        self._loop.frozen_until.pop(process.name, None)

    def link(self, source: str, target: str) -> _Link:
        """Return the way from `source` to `target`."""
        link = self._links.get((source, target))
        if link is None:
            rng = Random(f"{self._seed} {source} > {target}")  # noqa: S311  # not a secret
            link = self._links[source, target] = _Link(rng, self.weather)
        return link

    def set_weather(self, weather: WeatherReport) -> None:
        """Make every link, also those to come, as bad as `weather` says."""
        self.weather = weather
        for link in self._links.values():
            link.weather = weather

    def freeze(self, name: str, seconds: float) -> None:
        """Let a process do nothing for a while; its clocks go on and its connections stay open."""
        self._loop.frozen_until[name] = self._loop.time() + seconds
        self._loop.call_later(seconds, self._thaw, name)

    def _thaw(self, name: str) -> None:
        if self._loop.frozen_until.get(name, 0.0) <= self._loop.time():
            self._loop.frozen_until.pop(name, None)

    def cut(self, source: str, target: str, *, cut: bool) -> None:
        """Cut or mend one direction."""
        self.link(source, target).cut = cut

    # -- single messages and calls -------------------------------------------------------------

    def send(self, source: Process, target: str, deliver: Callable[[Process], None]) -> None:
        """Send a message that nobody answers; `deliver` may run never, late, or twice."""
        link = self.link(source.name, target)
        for _ in range(2 if link.repeats() else 1):
            if not link.loses():
                self._loop.call_later(link.delay(), self._deliver, target, deliver)

    def _deliver(self, target: str, deliver: Callable[[Process], None]) -> None:
        if self._waits_for(target, self._deliver, target, deliver):
            return
        process = self.server_of(target)
        if process is not None:
            deliver(process)

    def _waits_for(self, target: str, again: Callable[..., None], *arguments: Any) -> bool:
        """Whether `target` is frozen; then what reached its machine is taken up when it thaws."""
        thaws = self._loop.frozen_until.get(target, 0.0)
        if thaws <= self._loop.time():
            return False
        self._loop.call_at(thaws, again, *arguments)
        return True

    def call(
        self,
        source: Process,
        target: str,
        serve: Callable[[Process], Any],
        *,
        timeout: float,
        takes_late_requests: bool = True,
    ) -> asyncio.Future[Any]:
        """Ask `target` and return its answer; `serve` runs there, perhaps twice or in vain.

        Raises Lost, or what `serve` raised. Without `takes_late_requests` a request that arrives
        after the caller has given up is not served, as when its connection was closed.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not source.alive:
            return answer  # it will never run again
        deadline = self._loop.time() + timeout
        there, back = self.link(source.name, target), self.link(target, source.name)

        def arrive() -> None:
            if self._waits_for(target, arrive):
                return
            if takes_late_requests or self._loop.time() <= deadline:
                settle, value = self._served(target, serve)
                if not back.loses():
                    self._loop.call_later(back.delay(), settle, answer, value)

        for _ in range(2 if there.repeats() else 1):
            if not there.loses():
                self._loop.call_later(there.delay(), arrive)
        timer = self._loop.call_later(timeout, _fail, answer, Lost("no answer in time"))
        answer.add_done_callback(lambda _: timer.cancel())
        return answer

    def _served(
        self, target: str, serve: Callable[[Process], Any]
    ) -> tuple[Callable[..., None], Any]:
        """Let `target` serve a request; return how its caller's future is to end, and with what."""
        process = self.server_of(target)
        if process is None:
            return _fail, Lost("refused", refused=True)
        try:
            return _resolve, serve(process)
        except Exception as error:  # noqa: BLE001  # it belongs to the caller
            return _fail, error

    # -- gRPC ----------------------------------------------------------------------------------

    async def unary(
        self, source: Process, target: str, method: str, request: Any, seconds: float | None
    ) -> Any:
        """Call a unary method. Raises AioRpcError as grpc does."""
        service, _, name = method.strip("/").rpartition("/")

        def serve(process: Process) -> Any:
            servicer = process.services.get(service)
            if servicer is None:
                raise _rpc_error(grpc.StatusCode.UNAVAILABLE, "not serving")
            return run_at_once(getattr(servicer, name)(request, None))

        try:
            return await self.call(
                source, target, serve, timeout=seconds or _DEFAULT_TIMEOUT_SECONDS
            )
        except Lost as lost:
            code = (
                grpc.StatusCode.UNAVAILABLE if lost.refused else grpc.StatusCode.DEADLINE_EXCEEDED
            )
            raise _rpc_error(code, str(lost)) from None
        except ServiceError as error:
            raise _rpc_error(_CODES[error.code.value], error.message) from None

    def stream(
        self, source: Process, target: str, method: str, request: Any
    ) -> AsyncGenerator[Any, None]:
        """Call a server-streaming method; iterating raises AioRpcError as grpc does."""
        return _Stream(self, source, target, method, request).messages()

    def server_of(self, target: str) -> Process | None:
        """Return who answers under the name, if anybody does."""
        process = self._listening.get(target)
        return process if process is not None and process.alive else None


class _Stream:
    """One server stream and its connection."""

    def __init__(
        self, network: Network, source: Process, target: str, method: str, request: Any
    ) -> None:
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._client = source
        self._target = target
        self._service, _, self._method = method.strip("/").rpartition("/")
        self._request = request
        self._server: Process | None = None
        self._pump: asyncio.Task[Any] | None = None
        self._inbox: deque[Any] = deque()
        self._ending: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._underway = 0
        self._outbox: deque[tuple[float, float, Any]] = deque()
        self._broken = False

    async def messages(self) -> AsyncGenerator[Any, None]:
        """Yield what the server sends until it ends or the connection does."""
        there = self._network.link(self._client.name, self._target)
        self._client.streams.append(self)
        try:
            if there.cut:
                self._loop.call_later(_NOTICED_SECONDS, self._finish, _unavailable("no route"))
            else:
                self._loop.call_later(there.delay(), self._open)
            while True:
                while self._inbox:
                    message = self._inbox.popleft()
                    self._underway -= 1
                    if self._room is not None:
                        _resolve(self._room, None)
                    yield message
                if self._ending is not None:
                    if isinstance(self._ending, StopAsyncIteration):
                        return
                    raise self._ending
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:
            self._broken = True
            if self in self._client.streams:
                self._client.streams.remove(self)
            if self._pump is not None:
                # The server learns of it by a reset, or by keepalive when that is lost.
                delay = _NOTICED_SECONDS if there.cut else there.weather.latency_seconds
                self._loop.call_later(delay, self._pump.cancel)

    def end_gone(self, process: Process, *, silently: bool) -> None:
        """One end's process is gone."""
        if process is self._server and not silently:
            self._loop.call_later(0.01, self._finish, _unavailable("connection reset"))
        elif process is self._client and self._pump is not None:
            self._loop.call_later(_NOTICED_SECONDS if silently else 0.01, self._pump.cancel)

    def _open(self) -> None:
        if self._broken or self._network._waits_for(self._target, self._open):
            return
        server = self._network.server_of(self._target)
        if server is None or self._service not in server.services:
            self._loop.call_later(0.01, self._finish, _unavailable("refused"))
            return
        self._server = server
        server.streams.append(self)
        self._pump = server.spawn(self._serve(server), vital=False)

    async def _serve(self, server: Process) -> None:
        """Run the servicer's method and send what it yields."""
        back = self._network.link(self._target, self._client.name)
        method: Callable[[Any, Any], AsyncIterator[Any]]
        method = getattr(server.services[self._service], self._method)
        messages = method(self._request, None)
        try:
            async for message in messages:
                while self._underway >= _STREAM_WINDOW:
                    self._room = self._loop.create_future()
                    await self._room
                if back.weather.stream_break and back.rng.random() < back.weather.stream_break:
                    self._finish(_unavailable("connection reset"))
                    return
                self._send(back, message)
            self._send(back, StopAsyncIteration())
        except ServiceError as error:
            self._send(back, _rpc_error(_CODES[error.code.value], error.message))
        finally:
            if self in server.streams:
                server.streams.remove(self)
            if isinstance(messages, AsyncGenerator):
                await messages.aclose()

    def _send(self, link: _Link, message: Any) -> None:
        """Put a message, or the ending, on its way: never before what was sent earlier."""
        self._underway += 1
        now = self._loop.time()
        self._outbox.append((now, now + link.delay(), message))
        if len(self._outbox) == 1:
            self._loop.call_at(self._outbox[0][1], self._arrive, link)

    def _arrive(self, link: _Link) -> None:
        if self._broken or self._ending is not None:
            self._outbox.clear()
            return
        sent_at, _, message = self._outbox[0]
        now = self._loop.time()
        if link.cut:
            # Sent again and again until the way is mended or keepalive gives the connection up.
            if now - sent_at > _NOTICED_SECONDS:
                self._finish(_unavailable("keepalive timed out"))
            else:
                self._loop.call_at(now + 0.5, self._arrive, link)
            return
        self._outbox.popleft()
        if isinstance(message, BaseException):
            self._finish(message)
            return
        self._inbox.append(message)
        self._wake()
        if self._outbox:
            self._loop.call_at(max(now, self._outbox[0][1]), self._arrive, link)

    def _finish(self, ending: BaseException) -> None:
        if self._ending is None:
            self._ending = ending
            self._wake()
            if self._pump is not None and not isinstance(ending, StopAsyncIteration):
                self._loop.call_later(0.01, self._pump.cancel)

    def _wake(self) -> None:
        if self._waiter is not None:
            _resolve(self._waiter, None)


class VirtualChannel:
    """What generated stubs take for a channel: a process's way to one service.

    Only calls that the suite's feeds and controllers make exist: unary, and server streams.
    """

    def __init__(self, network: Network, source: Process, target: str) -> None:
        self._network = network
        self._source = source
        self._target = target

    def unary_unary(self, method: str, **_: Any) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return the callable of a unary method."""

        def call(request: Any, *, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
            return self._network.unary(self._source, self._target, method, request, timeout)

        return call

    def unary_stream(self, method: str, **_: Any) -> Callable[..., AsyncGenerator[Any, None]]:
        """Return the callable of a server-streaming method."""

        def call(request: Any) -> AsyncGenerator[Any, None]:
            return self._network.stream(self._source, self._target, method, request)

        return call

    def stream_unary(self, method: str, **_: Any) -> Callable[..., Any]:
        """Return something that must not be called."""
        return _not_simulated(method)

    def stream_stream(self, method: str, **_: Any) -> Callable[..., Any]:
        """Return something that must not be called."""
        return _not_simulated(method)


def run_at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nobody and return its result."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise RuntimeError("a simulated server waited inside a unary call")


def _not_simulated(method: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{method} is not simulated")

    return call


def _rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details=details)


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    return _rpc_error(grpc.StatusCode.UNAVAILABLE, details)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
