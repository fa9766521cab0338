"""What can happen to a PostgreSQL server, each made to happen to a real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import asyncpg

from localsuite.postgres import EmbeddedPostgres

__all__ = [
    "ConnectionsExhausted",
    "DatabaseFault",
    "DiskFull",
    "Frozen",
    "Killed",
    "durable_server",
]

_TMPFS_MEGABYTES = 256
_CONNECTIONS = 30
_HOG = {"application_name": "hog"}
# Ends what others have, or are about to have.
_END_OTHERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND application_name <> 'hog'
"""


class DatabaseFault(Protocol):
    """A fault that begins, lasts for as long as the body takes, and ends."""

    settings: Mapping[str, str]
    on_small_disk: bool
    least_seconds: float

    def strikes(self, server: EmbeddedPostgres) -> contextlib.AbstractAsyncContextManager[None]:
        """Makes it happen in the body; the server is well again when it is left."""
        ...


class Killed:
    """Every process of the server dies at once; it is started again at the end."""

    settings: Mapping[str, str] = {}
    on_small_disk = False
    least_seconds = 1.0

    @asynccontextmanager
    async def strikes(self, server: EmbeddedPostgres) -> AsyncIterator[None]:
        await asyncio.to_thread(server.kill)
        try:
            yield
        finally:
            await asyncio.to_thread(server.start)


class Frozen:
    """Every process of the server stops where it is; connections are taken, nothing is answered."""

    settings: Mapping[str, str] = {}
    on_small_disk = False
    least_seconds = 30.0

    @asynccontextmanager
    async def strikes(self, server: EmbeddedPostgres) -> AsyncIterator[None]:
        await asyncio.to_thread(server.freeze)
        try:
            yield
        finally:
            await asyncio.to_thread(server.thaw)


class DiskFull:
    """The file system of the data has no room left, as if logs had filled it."""

    settings: Mapping[str, str] = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
    on_small_disk = True
    least_seconds = 5.0

    @asynccontextmanager
    async def strikes(self, server: EmbeddedPostgres) -> AsyncIterator[None]:
        ballast = server.location / "ballast"
        await asyncio.to_thread(_fill, ballast)
        try:
            yield
        finally:
            await asyncio.to_thread(ballast.unlink)
            if not server.running:  # without room for its log PostgreSQL ends itself
                await asyncio.to_thread(server.start)


class ConnectionsExhausted:
    """Others hold every connection that the server takes, also those the services had."""

    settings: Mapping[str, str] = {"max_connections": str(_CONNECTIONS)}
    on_small_disk = False
    least_seconds = 3.0

    @asynccontextmanager
    async def strikes(self, server: EmbeddedPostgres) -> AsyncIterator[None]:
        async with AsyncExitStack() as hogs:
            first = await asyncpg.connect(server.url(), server_settings=_HOG, timeout=30)
            hogs.push_async_callback(first.close, timeout=10)
            held = 1
            async with asyncio.timeout(60):
                # A refusal does not say that none is free: those that were ended leave late, and
                # whoever comes first has their place. So every single one must be held.
                while held < _CONNECTIONS:
                    await first.fetchval(_END_OTHERS)
                    with contextlib.suppress(asyncpg.PostgresError):
                        while True:
                            hog = await asyncpg.connect(server.url(), server_settings=_HOG)
                            hogs.push_async_callback(hog.close, timeout=10)
                            held += 1
            yield


def _fill(file: Path) -> None:
    block = b"\0" * 65_536
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while ballast.write(block):
            pass


@contextmanager
def durable_server(fault: DatabaseFault) -> Iterator[EmbeddedPostgres]:
    """A server that keeps its promises, unlike the shared one of the tests, ready for `fault`."""
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-postgres-"))
    mounted = False
    try:
        if fault.on_small_disk:
            size = f"size={_TMPFS_MEGABYTES}m,mode=0755"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(directory)],  # noqa: S607
                check=True,
            )
            mounted = True
        with EmbeddedPostgres(directory, settings=fault.settings) as server:
            try:
                yield server
            finally:
                server.thaw()  # a frozen server cannot be stopped
        shutil.rmtree(server.location, ignore_errors=True)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)  # noqa: S607
        shutil.rmtree(directory, ignore_errors=True)


def may_mount() -> bool:
    """Whether this process may mount a file system."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as place:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place],  # noqa: S607
            check=False,
            capture_output=True,
        )
        if tried.returncode == 0:
            subprocess.run(["umount", place], check=True)  # noqa: S607
    return tried.returncode == 0
