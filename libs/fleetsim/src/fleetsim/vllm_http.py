"""Many simulated vLLM servers in one process, each on its own port, in real time.

A server whose cold start is not over owns its port without listening on it, so connections are
refused as they are on a real host that is still loading weights. Everything served is simulated
and says so in the `X-Simulated` header.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from fleetsim.cold_start import ColdStart, ColdStartPhase
from fleetsim.profiles import ModelServerProfile
from fleetsim.server_request import ServerLoad
from fleetsim.simulated_gpu import GPU_SPECS, GpuReading, read_gpu
from fleetsim.vllm_endpoint import AnswerLengths, VllmEndpoint

__all__ = ["ServerStatus", "SimulatedFleetServer"]

_DRAIN_SECONDS = 30.0
_LISTEN_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One simulated server at one moment. `endpoint_url` has no path: append `/v1/...`."""

    server_id: str
    endpoint_url: str
    tier: str
    model_name: str
    instance_type: str
    phase: ColdStartPhase
    ready_time: float
    load: ServerLoad


@dataclass(slots=True)
class _Host:
    endpoint: VllmEndpoint
    http: web.Server
    listener: asyncio.Server
    socket: socket.socket
    cold_start: ColdStart
    url: str
    starting: "asyncio.Task[None] | None" = None
    reading: GpuReading | None = None


class SimulatedFleetServer:
    """Runs simulated model servers; an asynchronous context manager.

    `clock` gives seconds on the time line that cold starts are given in (Unix time by default) and
    is made monotonic here.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        clock: Callable[[], float] = time.time,
        seed: int = 0,
        tick_seconds: float = 0.01,
        answer_lengths: AnswerLengths | None = None,
    ) -> None:
        self._host_name = host
        self._wall_clock = clock
        self._last_time = float("-inf")
        self._seed = seed
        self._tick_seconds = tick_seconds
        self._answer_lengths = answer_lengths or AnswerLengths()
        self._hosts: dict[str, _Host] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server_id in list(self._hosts):
            await self.remove_server(server_id, abrupt=True)
        await self._tasks.__aexit__(kind, error, traceback)

    def now(self) -> float:
        """Return the fleet's time, which never goes backwards."""
        self._last_time = max(self._last_time, self._wall_clock())
        return self._last_time

    async def add_server(
        self,
        server_id: str,
        profile: ModelServerProfile,
        *,
        cold_start: ColdStart | None = None,
        port: int = 0,
    ) -> str:
        """Add a server and return its endpoint URL, known before it is ready.

        Without `cold_start` it is ready on return. Port 0 takes a free one. Raises ValueError for
        an id in use, OSError when the port cannot be had.
        """
        if server_id in self._hosts:
            raise ValueError(f"server {server_id!r} exists already")
        now = self.now()
        cold_start = cold_start or ColdStart(start_time=now)
        endpoint = VllmEndpoint(
            server_id,
            profile,
            clock=self.now,
            answer_lengths=self._answer_lengths,
            seed=self._seed,
            tick_seconds=self._tick_seconds,
        )
        http = web.Server(endpoint.handle, handler_cancellation=True, access_log=None)
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._host_name, port))
            bound.setblocking(False)
            listener = await asyncio.get_running_loop().create_server(
                http, sock=bound, start_serving=False, backlog=_LISTEN_BACKLOG
            )
        except BaseException:
            bound.close()
            raise
        url = f"http://{self._host_name}:{bound.getsockname()[1]}"
        host = _Host(endpoint, http, listener, bound, cold_start, url)
        self._hosts[server_id] = host
        if cold_start.ready_time <= now:
            await listener.start_serving()
        else:
            host.starting = self._tasks.create_task(self._serve_when_ready(host))
        return url

    async def remove_server(self, server_id: str, *, abrupt: bool = False) -> None:
        """Remove a server: after its answers (at most 30 s), or as a host that dies.

        `abrupt` resets every connection at once. Raises KeyError for an unknown id.
        """
        host = self._hosts.pop(server_id)
        if host.starting is not None:
            host.starting.cancel()
        host.listener.close()
        if not abrupt:
            await host.endpoint.wait_until_idle(_DRAIN_SECONDS)
        host.endpoint.stop()
        for connection in host.http.connections:
            if abrupt and connection.transport is not None:
                connection.transport.abort()
        await host.http.shutdown(timeout=1.0)
        with contextlib.suppress(OSError):
            host.socket.close()

    def servers(self) -> list[ServerStatus]:
        """Return every server as it is now, oldest first."""
        now = self.now()
        return [
            ServerStatus(
                server_id=server_id,
                endpoint_url=host.url,
                tier=host.endpoint.model.profile.tier,
                model_name=host.endpoint.model.profile.model_name,
                instance_type=host.endpoint.model.profile.instance_type,
                phase=host.cold_start.phase_at(now)[0],
                ready_time=host.cold_start.ready_time,
                load=host.endpoint.model.load(now),
            )
            for server_id, host in self._hosts.items()
        ]

    def gpu_reading(self, server_id: str) -> GpuReading | None:
        """Read the host's GPU now; None when it has none or is still booting.

        Utilisation and power average over the time since the last call for this server. Raises
        KeyError for an unknown id.
        """
        host = self._hosts[server_id]
        now = self.now()
        model = host.endpoint.model
        spec = GPU_SPECS.get(model.profile.instance_type)
        if spec is None or now < host.cold_start.booted_time:
            return None
        model.settle(now)
        host.reading = read_gpu(spec, model, host.cold_start, now, previous=host.reading)
        return host.reading

    async def _serve_when_ready(self, host: _Host) -> None:
        # The clock may be slower than the event loop's: look again after each sleep.
        while True:
            remaining = host.cold_start.ready_time - self.now()
            if remaining <= 0:
                break
            await asyncio.sleep(remaining)
        await host.listener.start_serving()
