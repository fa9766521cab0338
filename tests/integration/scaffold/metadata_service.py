"""EC2's instance metadata service as a strict stub over real HTTP.

It does what AWS documents of version 2: a token is asked for with PUT and a time to live; every
other request needs a valid one and gets 401 without; what there is not is 404. A request that came
through a proxy is refused, and beyond the hop limit nothing answers at all.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

__all__ = ["MetadataService", "served"]

_TOKEN = "X-aws-ec2-metadata-token"
_LIFETIME = "X-aws-ec2-metadata-token-ttl-seconds"


class MetadataService:
    """What one instance is told; `pages` are below `latest/meta-data`."""

    def __init__(self, *, life_cycle: str = "spot") -> None:
        self.pages = {
            "instance-id": "i-0123456789abcdef0",
            "instance-type": "g6.2xlarge",
            "placement/availability-zone": "eu-central-1b",
            "instance-life-cycle": life_cycle,
        }
        self.tokens: set[str] = set()
        self.requests: list[str] = []
        self.tokens_given = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.beyond_hop_limit = False
        # Paths that it cannot answer for.
        self.failing: set[str] = set()
        self.url = ""

    def expire_tokens(self) -> None:
        """Let all tokens run out."""
        self.tokens.clear()

    async def give_token(self, request: web.Request) -> web.Response:
        await self._on_the_way(request)
        lifetime = request.headers.get(_LIFETIME, "")
        if not lifetime.isdigit() or not 1 <= int(lifetime) <= 21_600:
            return web.Response(status=400)
        if "X-Forwarded-For" in request.headers:
            return web.Response(status=403)
        if self.beyond_hop_limit:
            await asyncio.Event().wait()
        token = secrets.token_urlsafe(40)
        self.tokens.add(token)
        self.tokens_given += 1
        return web.Response(text=token, headers={_LIFETIME: lifetime})

    async def give_page(self, request: web.Request) -> web.Response:
        await self._on_the_way(request)
        if request.headers.get(_TOKEN) not in self.tokens:
            return web.Response(status=401)
        if request.match_info["path"] in self.failing:
            return web.Response(status=500)
        page = self.pages.get(request.match_info["path"])
        return web.Response(status=404) if page is None else web.Response(text=page)

    async def _on_the_way(self, request: web.Request) -> None:
        self.requests.append(request.path)
        await self.answering.wait()


@asynccontextmanager
async def served(service: MetadataService) -> AsyncIterator[MetadataService]:
    """Serve it on loopback."""
    app = web.Application()
    app.router.add_put("/latest/api/token", service.give_token)
    app.router.add_get("/latest/meta-data/{path:.+}", service.give_page)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    service.url = f"http://{host}:{port}"
    try:
        yield service
    finally:
        await runner.cleanup()
