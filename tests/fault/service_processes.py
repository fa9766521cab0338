"""Services of the suite as processes of their own, to be killed, frozen and watched."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["ServiceProcess", "collector_process", "router_process", "service_process"]

_START_SECONDS = 60.0
_MEBIBYTE = 1024 * 1024


@dataclass(slots=True)
class ServiceProcess:
    """A running service, where it listens and what it has logged."""

    process: asyncio.subprocess.Process
    address: str
    log_file: Path

    def freeze(self) -> None:
        """Stops it in the middle of whatever it does; its sockets stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Ends it without a chance to say so."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def terminate(self) -> None:
        """Asks it to end."""
        self.process.terminate()

    async def exit_code(self, timeout_seconds: float = 30.0) -> int:
        """Returns how it ended."""
        async with asyncio.timeout(timeout_seconds):
            return await self.process.wait()

    def resident_mebibytes(self) -> float:
        """Returns the memory it holds."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / _MEBIBYTE

    def events(self, name: str) -> list[dict[str, Any]]:
        """Returns the log entries of the event `name`, oldest first."""
        return _entries(self.log_file, name)


@asynccontextmanager
async def service_process(
    module: Sequence[str],
    log_file: Path,
    *,
    prefix: Sequence[str] = (),
    **environ: str,
) -> AsyncIterator[ServiceProcess]:
    """Runs `python -m module…` until it serves, and kills it at the end.

    `prefix` is put before the command, for example to enter a network namespace.
    """
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, "-m", *module),
            env={
                "PATH": os.environ["PATH"],
                "GAMEKEEPER_LOG_FORMAT": "json",
                "GAMEKEEPER_LISTEN_ADDRESS": "127.0.0.1:0",
                **environ,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not (started := _entries(log_file, "server_started")):
                assert process.returncode is None, _text(log_file)
                await asyncio.sleep(0.02)
        yield ServiceProcess(process, str(started[0]["address"]), log_file)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def collector_process(
    log_file: Path, *, prefix: Sequence[str] = (), **environ: str
) -> AsyncIterator[ServiceProcess]:
    """Runs a collector that tells nobody but its watchers."""
    environ = {"GPU_METRICS_CLOUDWATCH_ENABLED": "false", **environ}
    async with service_process(
        ("gpu_metrics", "collector"), log_file, prefix=prefix, **environ
    ) as collector:
        yield collector


@asynccontextmanager
async def router_process(
    log_file: Path, *, prefix: Sequence[str] = (), **environ: str
) -> AsyncIterator[ServiceProcess]:
    """Runs a router; it knows no model server unless `environ` names some."""
    environ = {"AI_ROUTER_COLLECTOR_ADDRESS": "127.0.0.1:9", **environ}
    async with service_process(("ai_router",), log_file, prefix=prefix, **environ) as router:
        yield router


def _entries(log_file: Path, name: str) -> list[dict[str, Any]]:
    found = []
    for line in _text(log_file).splitlines():
        # The last line may be half written.
        if line.startswith("{") and line.endswith("}"):
            entry = json.loads(line)
            if entry.get("event") == name:
                found.append(entry)
    return found


def _text(log_file: Path) -> str:
    return log_file.read_text()
