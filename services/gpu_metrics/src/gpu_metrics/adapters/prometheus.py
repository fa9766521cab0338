"""Serves the fleet to Prometheus over HTTP, on a port of its own.

A page is made at most once a second, in a thread, whoever asks and however often, so that
scrapers cannot slow down those who report and watch.
"""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from gpu_metrics.domain.gpu_exposition import dcgm_page, hardware_page
from gpu_metrics.domain.host_state import HostState
from servicekit.clock import Clock

__all__ = ["serve_prometheus"]

log = structlog.get_logger(__name__)

_PAGE_SECONDS = 1.0
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(slots=True)
class _Page:
    made_at: float
    plain: bytes
    packed: bytes


class _Pages:
    def __init__(
        self,
        hosts: Callable[[], Sequence[HostState]],
        clock: Clock,
        last_xid: Callable[[str, str], int],
    ) -> None:
        self._hosts = hosts
        self._last_xid = last_xid
        self._clock = clock
        self._pages: dict[str, _Page] = {}
        self._making = asyncio.Lock()

    async def hardware(self, request: web.Request) -> web.Response:
        if "application/openmetrics-text" in request.headers.get("Accept", ""):
            return await self._answer(
                request,
                _OPENMETRICS,
                lambda hosts, now: hardware_page(hosts, now, openmetrics=True),
            )
        return await self._answer(
            request, _TEXT, lambda hosts, now: hardware_page(hosts, now, openmetrics=False)
        )

    async def dcgm(self, request: web.Request) -> web.Response:
        return await self._answer(request, _TEXT, lambda hosts, _: dcgm_page(hosts, self._last_xid))

    async def _answer(
        self,
        request: web.Request,
        content_type: str,
        make: Callable[[Sequence[HostState], float], str],
    ) -> web.Response:
        page = await self._page(f"{request.path} {content_type}", make)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return web.Response(body=page.packed, headers=headers)
        return web.Response(body=page.plain, headers=headers)

    async def _page(self, key: str, make: Callable[[Sequence[HostState], float], str]) -> _Page:
        async with self._making:
            now = self._clock.monotonic()
            page = self._pages.get(key)
            if page is None or now - page.made_at >= _PAGE_SECONDS:
                hosts = self._hosts()
                page = await asyncio.to_thread(_make_page, make, hosts, now)
                self._pages[key] = page
            return page


def _make_page(
    make: Callable[[Sequence[HostState], float], str], hosts: Sequence[HostState], now: float
) -> _Page:
    plain = make(hosts, now).encode()
    return _Page(now, plain, gzip.compress(plain, compresslevel=1, mtime=0))


@asynccontextmanager
async def serve_prometheus(
    address: tuple[str, int],
    hosts: Callable[[], Sequence[HostState]],
    *,
    clock: Clock,
    last_xid: Callable[[str, str], int],
) -> AsyncIterator[tuple[str, int]]:
    """Serve `/metrics` and `/metrics/dcgm` within the context; yields where.

    `clock` is the one that the hosts' `received_at` was taken from, `last_xid` gives the last code
    of a host's GPU. Plain HTTP, for a scraper on
    this machine; elsewhere put it behind something that authenticates.
    """
    pages = _Pages(hosts, clock, last_xid)
    app = web.Application(client_max_size=1024)
    app.router.add_get("/metrics", pages.hardware)
    app.router.add_get("/metrics/dcgm", pages.dcgm)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, *address).start()
        host, port = runner.addresses[0][:2]
        log.info("prometheus_serving", address=f"{host}:{port}")
        if address[0] not in _LOOPBACK:
            log.warning("prometheus_plaintext", address=f"{host}:{port}")
        yield host, port
    finally:
        await runner.cleanup()
