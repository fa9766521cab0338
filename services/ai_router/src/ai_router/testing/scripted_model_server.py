"""A model server that answers by a script: real HTTP, and every way to fail there is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

__all__ = ["Script", "ScriptedModelServer", "serve_script"]


@dataclass(slots=True)
class Script:
    """What the server does with each request.

    Attributes:
        tokens: the texts it streams, one event each.
        status: an HTTP status other than 200 is answered at once.
        break_after: closes the connection after so many events; None sends all.
        hold_before: waits for `release` before the event of this index.
        raw_events: sent as they are instead of tokens.
        finish_reason: how it says the answer ended.
        one_write: all events leave in one write.
    """

    tokens: list[str] = field(default_factory=lambda: ["The ", "lamp ", "burns."])
    status: int = 200
    break_after: int | None = None
    hold_before: int | None = None
    raw_events: list[str] | None = None
    finish_reason: str = "stop"
    one_write: bool = False


class ScriptedModelServer:
    """Counts what came in, and shows what became of it."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.running = 0
        self.aborted = 0
        self.connections: set[Any] = set()
        self.release = asyncio.Event()
        self.held = asyncio.Event()
        self.idle = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request."""
        self.bodies.append(json.loads(await request.read()))
        self.headers.append(request.headers)
        self.connections.add(request.transport)
        script = self.script
        self.running += 1
        self.idle.clear()
        try:
            if script.status != 200:
                error = {"error": {"message": "scripted", "code": script.status}}
                return web.json_response(error, status=script.status)
            return await self._stream(request, script)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1
            if self.running == 0:
                self.idle.set()

    async def _stream(self, request: web.BaseRequest, script: Script) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = script.raw_events if script.raw_events is not None else _events(script)
        if script.one_write:
            await response.write("".join(f"data: {event}\n\n" for event in events).encode())
            await response.write_eof()
            return response
        for index, event in enumerate(events):
            if index == script.hold_before:
                self.held.set()
                await self.release.wait()
            if index == script.break_after:
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write(f"data: {event}\n\n".encode())
        await response.write_eof()
        return response


def _events(script: Script) -> list[str]:
    events = [
        json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        for text in script.tokens
    ]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish_reason}]}
    usage = {"prompt_tokens": 11, "completion_tokens": len(script.tokens)}
    return [*events, json.dumps(last), json.dumps({"choices": [], "usage": usage}), "[DONE]"]


@asynccontextmanager
async def serve_script(script: Script | None = None) -> AsyncIterator[ScriptedModelServer]:
    """Serves the script on a free loopback port."""
    server = ScriptedModelServer(script)
    http = web.Server(server.handle, handler_cancellation=True, access_log=None)
    listener = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await http.shutdown(timeout=0.5)
