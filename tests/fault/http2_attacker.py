"""An HTTP/2 peer that says what no library would: raw frames over a plain socket.

Good calls can be made on the same connection (`call`), so that a test sees whether it survived what
was sent before. Frames follow RFC 9113, header blocks RFC 7541, messages the gRPC HTTP/2 protocol.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

__all__ = [
    "PREFACE",
    "Answer",
    "ConnectionEnded",
    "Http2Attacker",
    "grpc_message",
    "seconds_until_closed",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HUGE_WINDOW = 2**31 - 1
_MAXIMUM_FRAME_BYTES = 16_384
_FRAME_HEADER_BYTES = 9
_PING_ANSWERED = b"\6\1\0\0\0\0"
"""Type, flags and stream of a PING's acknowledgement."""


class ConnectionEnded(Exception):
    """The server closed the connection; `goaway` is its last word, if it had one."""

    def __init__(self, goaway: str) -> None:
        super().__init__(goaway or "closed without a word")
        self.goaway = goaway


@dataclass(slots=True)
class Answer:
    """What came back on one stream.

    Attributes:
        headers: response headers and trailers together.
        body: the gRPC messages with their prefixes.
        reset: the error code of a RST_STREAM, None without one.
        ended: set when nothing more will come.
    """

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int | None:
        """The gRPC status number; None when the server sent none."""
        text = self.headers.get("grpc-status")
        return None if text is None else int(text)

    @property
    def everything(self) -> str:
        """All text the server sent, to be searched for what it must not say."""
        readable = {key: unquote(value) for key, value in self.headers.items()}
        return f"{readable} {bytes(self.body)!r}"


def grpc_message(message: bytes) -> bytes:
    """Returns `message` with its gRPC prefix: not compressed, and its length."""
    return struct.pack(">BI", 0, len(message)) + message


async def seconds_until_closed(address: str, first_words: bytes) -> float:
    """Opens a socket, says `first_words` and no more; returns how long the server bore it."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    began = time.monotonic()
    try:
        writer.write(first_words)
        async with asyncio.timeout(30):
            while await reader.read(4096):
                pass
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return time.monotonic() - began


class Http2Attacker:
    """One connection. Open it with `Http2Attacker.connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._next_stream = 1
        self._answers: dict[int, Answer] = {}
        self._goaway = ""
        self._window_changed = asyncio.Event()
        self._connection_window = 65_535
        self._initial_window = 65_535
        self._windows: dict[int, int] = {}
        self._reading: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.pings_answered = 0
        self.settings_acknowledged = 0

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        address: str,
        *,
        window_bytes: int = _HUGE_WINDOW,
        reads: bool = True,
        settings: bool = True,
    ) -> AsyncIterator[Self]:
        """Opens a connection to `host:port`.

        Args:
            address: where to.
            window_bytes: how much a stream of the server may send before this peer reads.
            reads: whether the socket is read at all.
            settings: whether preface and SETTINGS are sent.
        """
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        attacker = cls(reader, writer)
        try:
            if settings:
                first = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: window_bytes})
                writer.write(PREFACE + first.serialize())
                if window_bytes > 65_535:
                    grow = WindowUpdateFrame(0, window_increment=_HUGE_WINDOW - 65_535)
                    writer.write(grow.serialize())
            if reads:
                attacker._reading = asyncio.create_task(attacker._read())
            yield attacker
        finally:
            if attacker._reading is not None:
                attacker._reading.cancel()
                await asyncio.gather(attacker._reading, return_exceptions=True)
            writer.transport.abort()

    @property
    def goaway(self) -> str:
        """The server's GOAWAY: error code and text; empty while there was none."""
        return self._goaway

    def send(self, frames: bytes) -> None:
        """Hands raw bytes to the socket."""
        self._writer.write(frames)

    async def flush(self) -> None:
        """Returns once most of what was sent has left this process.

        Raises:
            ConnectionEnded: the server closed the connection.
        """
        try:
            await self._writer.drain()
        except ConnectionError:
            raise ConnectionEnded(self._goaway) from None

    def new_stream(self) -> int:
        """Returns the next stream id of this client."""
        stream = self._next_stream
        self._next_stream += 2
        return stream

    def header_block(
        self, path: str | bytes, metadata: Iterable[tuple[str | bytes, str | bytes]] = ()
    ) -> bytes:
        """Returns the encoded request headers of a gRPC call."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "gamekeeper"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        # Never indexed: the same block may then be sent any number of times.
        return bytes(self._encoder.encode([(name, value, True) for name, value in headers]))

    def open_stream(
        self,
        path: str | bytes,
        metadata: Iterable[tuple[str | bytes, str | bytes]] = (),
    ) -> tuple[int, Answer]:
        """Sends the headers of a call and leaves its request unfinished."""
        stream = self.new_stream()
        answer = self._answers[stream] = Answer()
        self._windows[stream] = self._initial_window
        block = self.header_block(path, metadata)
        head, rest = block[:_MAXIMUM_FRAME_BYTES], block[_MAXIMUM_FRAME_BYTES:]
        opening = HeadersFrame(stream, data=head, flags=[] if rest else ["END_HEADERS"])
        self.send(opening.serialize())
        while rest:
            piece, rest = rest[:_MAXIMUM_FRAME_BYTES], rest[_MAXIMUM_FRAME_BYTES:]
            flags = [] if rest else ["END_HEADERS"]
            self.send(ContinuationFrame(stream, data=piece, flags=flags).serialize())
        return stream, answer

    async def call(
        self,
        path: str | bytes,
        message: bytes = b"",
        metadata: Iterable[tuple[str | bytes, str | bytes]] = (),
        *,
        body: bytes | None = None,
        seconds: float = 20.0,
    ) -> Answer:
        """Makes a call and returns how it ended.

        Args:
            path: the `:path`.
            message: the request message, sent with its prefix.
            metadata: further headers.
            body: the request's bytes as they are, instead of `message`.
            seconds: how long to wait.

        Raises:
            ConnectionEnded: the server closed the connection instead.
            TimeoutError: nothing came.
        """
        stream, answer = self.open_stream(path, metadata)
        async with asyncio.timeout(seconds):
            await self._send_data(stream, grpc_message(message) if body is None else body, answer)
            ended = asyncio.ensure_future(answer.ended.wait())
            closed = asyncio.ensure_future(self.ended.wait())
            try:
                await asyncio.wait({ended, closed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                closed.cancel()
        if not answer.ended.is_set():
            raise ConnectionEnded(self._goaway)
        return answer

    def reset_stream(self, stream: int) -> None:
        """Drops a call."""
        self.send(RstStreamFrame(stream, error_code=8).serialize())

    async def closed(self, seconds: float) -> None:
        """Returns when the server has closed the connection.

        Raises:
            TimeoutError: it did not within `seconds`.
        """
        async with asyncio.timeout(seconds):
            await self.ended.wait()

    async def _send_data(self, stream: int, body: bytes, answer: Answer) -> None:
        sent = 0
        while not answer.ended.is_set() and not self.ended.is_set():
            room = min(self._connection_window, self._windows[stream], _MAXIMUM_FRAME_BYTES)
            piece = body[sent : sent + room]
            last = sent + len(piece) == len(body)
            if not piece and not last:
                self._window_changed.clear()
                await self._window_changed.wait()
                continue
            frame = DataFrame(stream, data=piece, flags=["END_STREAM"] if last else [])
            self.send(frame.serialize())
            self._connection_window -= len(piece)
            self._windows[stream] -= len(piece)
            sent += len(piece)
            if last:
                return
            await self.flush()

    async def _read(self) -> None:
        received = bytearray()
        try:
            while data := await self._reader.read(65_536):
                received += data
                del received[: self._take_frames(bytes(received))]
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            self._window_changed.set()

    def _take_frames(self, received: bytes) -> int:
        """Takes all whole frames and returns how many bytes they were."""
        taken = 0
        while len(received) - taken >= _FRAME_HEADER_BYTES:
            body = taken + _FRAME_HEADER_BYTES
            end = body + int.from_bytes(received[taken : taken + 3], "big")
            if len(received) < end:
                break
            if received[taken + 3 : body] == _PING_ANSWERED:
                self.pings_answered += 1  # not decoded: floods bring hundreds of thousands
            else:
                frame, _ = Frame.parse_frame_header(memoryview(received[taken:body]))
                frame.parse_body(memoryview(received[body:end]))
                self._take(frame)
            taken = end
        return taken

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, SettingsFrame):
            self._take_settings(frame)
        elif isinstance(frame, PingFrame):
            self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]).serialize())
        elif isinstance(frame, WindowUpdateFrame):
            self._take_window(frame)
        elif isinstance(frame, GoAwayFrame):
            self._goaway = f"{frame.error_code} {frame.additional_data.decode(errors='replace')}"
        elif isinstance(frame, HeadersFrame | DataFrame | RstStreamFrame):
            self._take_answer(frame, self._answers.get(frame.stream_id))

    def _take_settings(self, frame: SettingsFrame) -> None:
        if "ACK" in frame.flags:
            self.settings_acknowledged += 1
            return
        new = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._initial_window)
        for stream in self._windows:
            self._windows[stream] += new - self._initial_window
        self._initial_window = new
        self._window_changed.set()
        self.send(SettingsFrame(0, flags=["ACK"]).serialize())

    def _take_window(self, frame: WindowUpdateFrame) -> None:
        if frame.stream_id == 0:
            self._connection_window += frame.window_increment
        elif frame.stream_id in self._windows:
            self._windows[frame.stream_id] += frame.window_increment
        self._window_changed.set()

    def _take_answer(
        self, frame: HeadersFrame | DataFrame | RstStreamFrame, answer: Answer | None
    ) -> None:
        # Headers are decoded for calls already forgotten, too: the compression state is shared.
        headers = self._decoder.decode(frame.data) if isinstance(frame, HeadersFrame) else ()
        if answer is None:
            return
        answer.headers.update((str(name), str(value)) for name, value in headers)
        if isinstance(frame, DataFrame):
            answer.body += frame.data
        elif isinstance(frame, RstStreamFrame):
            answer.reset = frame.error_code
        answer.started.set()
        if isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags:
            self._end(answer)

    def _end(self, answer: Answer) -> None:
        answer.started.set()
        answer.ended.set()
        self._window_changed.set()
