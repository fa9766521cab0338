"""A TCP proxy that behaves like a bad network between a real client and a real service.

What a network does to packets, TCP shows its users as silence, slowness or a reset. The proxy makes
exactly these: bytes are held back, paced, delayed or cut off, never changed or reordered. While a
direction is silent nothing is read from it, so its sender sees a full buffer, as behind a router
that drops everything; when the silence ends, the bytes go on where they were.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = ["FaultProxy", "Link"]

_CHUNK_BYTES = 16 * 1024
_CHUNKS_IN_FLIGHT = 32
_SOCKET_BUFFER_BYTES = 64 * 1024
"""Kernels keep megabytes on loopback; a slow link must show to its sender sooner."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing sends RST instead of FIN."""


@dataclass(slots=True)
class Link:
    """One direction, as it is from now on.

    Attributes:
        open: bytes pass; otherwise they wait.
        bytes_per_second: the bandwidth; None has no limit.
        delay_seconds: least and greatest delay of a chunk, drawn anew for each.
    """

    open: bool = True
    bytes_per_second: float | None = None
    delay_seconds: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True, eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    dead_server: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def close(self) -> None:
        self.client.close()
        self.server.close()


class FaultProxy:
    """Listens on a free loopback port and passes on to `target`; conditions change while it runs.

    Attributes:
        up: the direction from the client to the service.
        down: the direction back.
        accepted: connections so far.
    """

    def __init__(self, target: str, *, seed: int) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._random = random.Random(seed)  # noqa: S311  # a repeatable network, no secret
        self._connections: set[_Connection] = set()
        self._listener = socket.socket()
        self._accepting: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.up, self.down = Link(), Link()
        self.accepted = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = [task for each in self._connections for task in each.tasks]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections:
            connection.close()
        self._listener.close()

    @property
    def open_connections(self) -> int:
        """Connections that are not closed yet."""
        return len(self._connections)

    def set(self, *, up: Link | None = None, down: Link | None = None) -> None:
        """Changes the conditions of all connections, present and future."""
        self.up, self.down = up or self.up, down or self.down
        self._changed.set()
        self._changed = asyncio.Event()

    def blackhole(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self.set(up=Link(open=False), down=Link(open=False))

    def heal(self) -> None:
        """Makes both directions perfect."""
        self.set(up=Link(), down=Link())

    def reset_all(self) -> None:
        """Resets every connection, at both ends."""
        for connection in list(self._connections):
            for end in (connection.client, connection.server):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._end(connection)

    def lose_servers(self) -> None:
        """Leaves every client with a half-open connection: its other end is gone without a word."""
        for connection in list(self._connections):
            connection.dead_server = True
            for task in connection.tasks:
                task.cancel()
            connection.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.server.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            self.accepted += 1
            server = socket.socket()
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(client, server)
            self._connections.add(connection)
            connection.tasks.append(loop.create_task(self._serve(connection)))

    async def _serve(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(connection.server, self._target)
            async with asyncio.TaskGroup() as group:
                for upwards in (True, False):
                    chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_IN_FLIGHT)
                    source, sink = connection.client, connection.server
                    if not upwards:
                        source, sink = sink, source
                    group.create_task(self._take(source, chunks, upwards=upwards))
                    group.create_task(self._give(sink, chunks, upwards=upwards))
        except (OSError, ExceptionGroup):
            pass  # an end went away; the other one is closed below
        finally:
            if not connection.dead_server:
                self._end(connection)

    async def _take(
        self, source: socket.socket, chunks: asyncio.Queue[tuple[float, bytes]], *, upwards: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._until_open(upwards=upwards)
            content = await loop.sock_recv(source, _CHUNK_BYTES)
            link = self.up if upwards else self.down
            await chunks.put((loop.time() + self._random.uniform(*link.delay_seconds), content))
            if not content:
                return

    async def _give(
        self, sink: socket.socket, chunks: asyncio.Queue[tuple[float, bytes]], *, upwards: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, content = await chunks.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._until_open(upwards=upwards)
            if not content:
                raise ConnectionResetError  # the end of the stream ends the connection
            bytes_per_second = (self.up if upwards else self.down).bytes_per_second
            if bytes_per_second is not None:
                await asyncio.sleep(len(content) / bytes_per_second)
            await loop.sock_sendall(sink, content)

    async def _until_open(self, *, upwards: bool) -> None:
        while not (self.up if upwards else self.down).open:
            await self._changed.wait()

    def _end(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        for task in connection.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        connection.close()
