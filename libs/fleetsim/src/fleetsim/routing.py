"""Where the simulation's requests go: the port a routing policy implements, and a plain policy.

A router sees servers come, drain and go, and is asked about every request. It keeps its own books
(requests and tokens it has on each server); the simulation tells it when a request ends. The real
router's domain policy is plugged in through a few lines of adapter.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Protocol

from fleetsim.prefix_cache import PrefixSegments
from fleetsim.profiles import ModelServerProfile
from fleetsim.server_request import RequestState, ServerRequest

__all__ = ["SHED", "WAIT", "LeastTokensRouter", "PlayerRequest", "Router"]

WAIT: Final = "<wait>"
"""A router's answer: the request waits in the router; `dispatch` hands it out later."""
SHED: Final = "<shed>"
"""A router's answer: the request is turned away."""


class PlayerRequest(ServerRequest):
    """A request of a player, on its way through router and servers.

    `entered_time` is when it reached the router. A router may look at `prompt_tokens` and
    `max_tokens`; how many `output_tokens` will come is the model's secret.
    """

    server_id: str = ""
    attempts: int = 0
    finish_reason: str = "stop"
    context: Any = None

    def __init__(  # the base's fields are set here directly: one call less per request
        self,
        request_id: int,
        prompt_tokens: int,
        output_tokens: int,
        *,
        tier: str,
        max_tokens: int,
        entered_time: float,
        prefix_segments: PrefixSegments = (),
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.prefix_segments = prefix_segments
        self.tier = tier
        self.max_tokens = max_tokens
        self.entered_time = entered_time

    def start_over(self) -> None:
        """Forget what a lost server did for it; it will be sent to another one."""
        self.state = RequestState.NEW
        self.cached_tokens = self.resumed_tokens = 0
        self.scheduled_time = self.first_token_time = self.finish_time = math.nan


class Router(Protocol):
    """A routing policy in the simulation. All times are seconds of the simulation."""

    def server_ready(self, now: float, server_id: str, profile: ModelServerProfile) -> None:
        """A server began to serve."""

    def server_draining(self, now: float, server_id: str) -> None:
        """A server is to get no more requests; those on it go on."""

    def server_gone(self, now: float, server_id: str) -> None:
        """A server is no more; requests that were on it are offered again or failed before."""

    def route(self, now: float, request: PlayerRequest) -> str:
        """Return a ready server's id, WAIT or SHED. Called again when a server died under it."""

    def finished(self, now: float, request: PlayerRequest) -> None:
        """A request ended on `request.server_id`, finished or lost with its server."""

    def dispatch(self, now: float, tier: str) -> Iterable[tuple[PlayerRequest, str]]:
        """Return waiting requests that now go to a server, or are SHED.

        Called when capacity of a tier came free and once a second.
        """

    def queued(self, tier: str) -> tuple[int, int]:
        """Return how many requests of a tier wait in the router, and their tokens."""


_STALE_ENTRIES = 256


class _Server:
    __slots__ = ("is_open", "limit", "requests", "server_id", "tier", "tokens")

    def __init__(self, server_id: str, tier: str, limit: int) -> None:
        self.server_id = server_id
        self.tier = tier
        self.limit = limit
        self.requests = 0
        self.tokens = 0
        self.is_open = True


class LeastTokensRouter:
    """Sends each request to the server of its tier with the fewest tokens on it.

    Tokens are the prompt and the expected answer of every request it has there. The choice is
    exact: a heap of (tokens, server) with stale entries skipped. A server takes at most
    `requests_per_server` (default: its batch size); beyond that requests wait, at most
    `queue_limit` per tier and `patience_seconds` each, then they are shed.
    """

    def __init__(
        self,
        *,
        expected_output_tokens: int = 80,
        requests_per_server: int | None = None,
        queue_limit: int = 100,
        patience_seconds: float = 5.0,
    ) -> None:
        self._expected_output_tokens = expected_output_tokens
        self._requests_per_server = requests_per_server
        self._queue_limit = queue_limit
        self._patience_seconds = patience_seconds
        self._servers: dict[str, _Server] = {}
        self._heaps: dict[str, list[tuple[int, str]]] = {}
        self._queues: dict[str, deque[PlayerRequest]] = {}

    def server_ready(self, now: float, server_id: str, profile: ModelServerProfile) -> None:
        """A server began to serve."""
        del now
        limit = self._requests_per_server or profile.max_running_sequences
        self._servers[server_id] = _Server(server_id, profile.tier, limit)
        heapq.heappush(self._heaps.setdefault(profile.tier, []), (0, server_id))

    def server_draining(self, now: float, server_id: str) -> None:
        """A server is to get no more requests."""
        del now
        self._servers[server_id].is_open = False

    def server_gone(self, now: float, server_id: str) -> None:
        """A server is no more."""
        del now
        self._servers.pop(server_id, None)

    def route(self, now: float, request: PlayerRequest) -> str:
        """Return the least loaded server's id, WAIT or SHED."""
        del now
        queue = self._queues.get(request.tier)
        if not queue:
            chosen = self._place(request)
            if chosen is not None:
                return chosen
        if queue is None:
            queue = self._queues[request.tier] = deque()
        if len(queue) >= self._queue_limit:
            return SHED
        queue.append(request)
        return WAIT

    def finished(self, now: float, request: PlayerRequest) -> None:
        """A request ended."""
        del now
        server = self._servers.get(request.server_id)
        if server is None:
            return
        server.requests -= 1
        server.tokens -= request.prompt_tokens + self._expected_output_tokens
        if server.is_open:
            heap = self._heaps[server.tier]
            heapq.heappush(heap, (server.tokens, server.server_id))
            if len(heap) > _STALE_ENTRIES + 8 * len(self._servers):
                self._rebuild(server.tier)

    def dispatch(self, now: float, tier: str) -> Iterable[tuple[PlayerRequest, str]]:
        """Return waiting requests that now go to a server, or are SHED after their patience."""
        queue = self._queues.get(tier)
        placed: list[tuple[PlayerRequest, str]] = []
        while queue:
            request = queue[0]
            if now - request.entered_time > self._patience_seconds:
                placed.append((queue.popleft(), SHED))
                continue
            chosen = self._place(request)
            if chosen is None:
                break
            placed.append((queue.popleft(), chosen))
        return placed

    def queued(self, tier: str) -> tuple[int, int]:
        """Return how many requests of a tier wait, and their tokens."""
        queue = self._queues.get(tier) or ()
        expected = self._expected_output_tokens
        return len(queue), sum(request.prompt_tokens + expected for request in queue)

    def _rebuild(self, tier: str) -> None:
        """Drop stale entries, which sink to the bottom and would else pile up there."""
        open_servers = (s for s in self._servers.values() if s.tier == tier and s.is_open)
        self._heaps[tier] = [(s.tokens, s.server_id) for s in open_servers if s.requests < s.limit]
        heapq.heapify(self._heaps[tier])

    def _place(self, request: PlayerRequest) -> str | None:
        heap = self._heaps.get(request.tier)
        while heap:
            tokens, server_id = heap[0]
            server = self._servers.get(server_id)
            if server is None or not server.is_open or server.tokens != tokens:
                heapq.heappop(heap)
                continue
            if server.requests >= server.limit:
                # Full servers come back into the heap when one of their requests ends.
                heapq.heappop(heap)
                continue
            server.requests += 1
            server.tokens = tokens + request.prompt_tokens + self._expected_output_tokens
            heapq.heapreplace(heap, (server.tokens, server_id))
            return server_id
        return None
