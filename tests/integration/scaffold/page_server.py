"""An HTTP server of one page that misbehaves on demand, for tests of what reads pages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

__all__ = ["PageServer", "page_server"]


class PageServer:
    """Serves `page` at every path, with `status`; with `hanging` set it never answers."""

    def __init__(self, page: str | bytes = "", status: int = 200) -> None:
        self.page = page
        self.status = status
        self.hanging = False
        self.requests = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.hanging:
            await asyncio.Event().wait()
        body = self.page.encode() if isinstance(self.page, str) else self.page
        return web.Response(body=body, status=self.status)


@asynccontextmanager
async def page_server(page: str | bytes = "", status: int = 200) -> AsyncIterator[PageServer]:
    """Serve on loopback until the context ends; after that connections are refused."""
    server = PageServer(page, status)
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
