"""Model servers with the OpenAI API (vLLM and its kin), over HTTP with streamed answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from ai_router.adapters.answer_decoder import AnswerDecoder
from ai_router.domain.generation import GenerationRequest
from ai_router.ports import AnswerPiece, FailureKind, ModelServerFailure

__all__ = ["ModelServerTimeouts", "OpenAiModelServer", "Packing"]

_REJECTED_STATUSES = frozenset({400, 413, 422})
_OVERLOADED_STATUSES = frozenset({429, 503})
_LOGGED_BODY_BYTES = 500
# How long to wait for the last, empty chunk of an answer, so that its connection can be used again.
_LINGER_SECONDS = 0.05
_KEEPALIVE_SECONDS = 30.0
# Shorter waits would not save a piece: tokens come every 9 ms at best.
_SHORTEST_WAIT_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServerTimeouts:
    """How long a model server may be silent, by phase, in seconds."""

    connect_seconds: float = 2.0
    idle_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How tokens are packed into pieces when many answers stream at once.

    What a piece costs hardly depends on its size, so a process that is asked for more pieces than
    `pieces_per_second` waits a little between those of an answer, at most `longest_wait_seconds`,
    and sends what came meanwhile together. The first piece never waits.
    """

    pieces_per_second: float = 1500.0
    longest_wait_seconds: float = 0.1

    def wait_seconds(self, streaming_answers: int) -> float:
        """Returns how long to wait between two pieces of an answer; 0 while that is short."""
        wait = streaming_answers / self.pieces_per_second
        return min(wait, self.longest_wait_seconds) if wait >= _SHORTEST_WAIT_SECONDS else 0.0


class OpenAiModelServer:
    """Sends chat completions and reads their event streams; use as an async context manager.

    Connections are kept and reused, at most `maximum_connections` in all. A connection on which the
    server closed in the moment of sending is replaced once, since it may have idled too long.
    """

    def __init__(
        self,
        timeouts: ModelServerTimeouts,
        *,
        maximum_connections: int = 2000,
        api_key: str = "",
        packing: Packing | None = None,
    ) -> None:
        self._timeouts = timeouts
        self._maximum_connections = maximum_connections
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._packing = packing or Packing()
        self._streaming = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeouts = self._timeouts
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._maximum_connections, keepalive_timeout=_KEEPALIVE_SECONDS
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=timeouts.connect_seconds,
                sock_connect=timeouts.connect_seconds,
                # Silence is measured here, by phase; a timer per read would cost more than it.
                sock_read=None,
            ),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def stream(
        self,
        endpoint_url: str,
        model: str,
        request: GenerationRequest,
        first_token_timeout_seconds: float,
    ) -> AsyncGenerator[AnswerPiece, None]:
        """Yields the answer as it comes in; text that is there at once comes in one piece.

        Raises:
            ModelServerFailure: whatever goes wrong.
        """
        response: aiohttp.ClientResponse | None = None
        reader: _AnswerReader | None = None
        complete = False
        self._streaming += 1
        try:
            async with asyncio.timeout(first_token_timeout_seconds) as first_token:
                response = await self._post(endpoint_url, model, request)
                await _check_status(response)
                reader = _AnswerReader(response.content, self._timeouts.idle_seconds)
                piece = await reader.read()
                first_token.reschedule(None)
            reader.watch_for_silence()
            while True:
                complete = piece.end is not None
                yield piece
                if complete:
                    return
                wait = self._packing.wait_seconds(self._streaming)
                if wait > 0.0:
                    # What arrives meanwhile waits in the connection's buffer, which is bounded.
                    await asyncio.sleep(wait)
                piece = await reader.read()
        except aiohttp.ClientConnectorError as error:
            # Refused or no route: nobody is there. A connection that merely takes long may be due
            # to a busy machine, this one included, and counts like any other failure.
            raise ModelServerFailure(FailureKind.UNREACHABLE, type(error).__name__) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ModelServerFailure(FailureKind.FAILED, type(error).__name__) from error
        except TimeoutError as error:
            raise ModelServerFailure(FailureKind.FAILED, "silent for too long") from error
        finally:
            self._streaming -= 1
            if reader is not None:
                reader.close()
            if response is not None:
                if complete:
                    response.release()
                else:
                    response.close()

    async def _post(
        self, endpoint_url: str, model: str, request: GenerationRequest
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("use OpenAiModelServer as an async context manager")
        url = f"{endpoint_url.rstrip('/')}/v1/chat/completions"
        body = json.dumps(_body(model, request), ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if request.request_id.isascii() and request.request_id.isprintable():
            headers["X-Request-Id"] = request.request_id
        try:
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError):
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False)


class _AnswerReader:
    """Reads an event stream as pieces of an answer, and watches for a server gone silent."""

    __slots__ = (
        "_content",
        "_decoder",
        "_idle_seconds",
        "_loop",
        "_timer",
        "_waiting_since",
    )

    def __init__(self, content: aiohttp.StreamReader, idle_seconds: float) -> None:
        self._content = content
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._decoder = AnswerDecoder()

    async def read(self) -> AnswerPiece:
        """Returns the next text, all that is there, with the end if that is there too."""
        decoder = self._decoder
        while True:
            self._waiting_since = self._loop.time()
            chunk = await self._content.readany()
            self._waiting_since = None
            if not chunk:
                return AnswerPiece("", decoder.end())
            text = decoder.feed(chunk)
            if decoder.complete:
                end = decoder.end()
                await self._await_last_chunk()
                return AnswerPiece(text, end)
            if text:
                return AnswerPiece(text)

    def watch_for_silence(self) -> None:
        """From now on a read fails when the server sends nothing for the idle time.

        One timer serves the whole answer: it looks how long the present read has waited.
        """
        now = self._loop.time()
        since = now if self._waiting_since is None else self._waiting_since
        if now - since >= self._idle_seconds:
            self._content.set_exception(TimeoutError())
            return
        due = since + self._idle_seconds
        self._timer = self._loop.call_at(due, self.watch_for_silence)

    def close(self) -> None:
        """Ends the watch."""
        if self._timer is not None:
            self._timer.cancel()

    async def _await_last_chunk(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._content.at_eof():
                    await self._content.readany()
        except (TimeoutError, aiohttp.ClientError):
            return  # the answer is whole; only its connection cannot be used again


async def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 200:
        return
    excerpt = (await response.content.read(_LOGGED_BODY_BYTES)).decode("utf-8", "replace")
    if status in _REJECTED_STATUSES:
        kind = FailureKind.REJECTED
    elif status in _OVERLOADED_STATUSES:
        kind = FailureKind.OVERLOADED
    else:
        kind = FailureKind.FAILED
    raise ModelServerFailure(kind, f"HTTP {status}: {excerpt}")


def _body(model: str, request: GenerationRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": message.role.value, "content": message.content} for message in request.messages
        ],
        "max_tokens": request.max_output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    return body
