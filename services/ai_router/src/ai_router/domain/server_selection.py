"""Which server of a tier takes a request: the one with the least load in tokens, exactly.

Load is what this router has on a server plus what the fleet feed shows of others, over the tokens
the server carries within its latency target. All servers are compared for every request, and still
cheaply: servers of equal capacity share a list of load ratios, so the choice is `min` over a list
of floats, which takes about a microsecond for 50 servers. Ties fall by an order that differs from
router to router, so that routers with the same view do not all pick the same idle server.

A request with an affinity key prefers one server, found by rendezvous hashing (Thaler and
Ravishankar, 1998: each server's hash with the key, highest wins, so a server that comes or goes
moves only its own share of keys), as long as that server is not much more loaded than the mean
(the bound of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016).
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

__all__ = ["Candidate", "Selection", "ServerPool"]

_MASK = (1 << 64) - 1
# The odd multiplier of Fibonacci hashing (Knuth, TAOCP 3, 6.4): 2**64 over the golden ratio.
_MULTIPLIER = 0x9E3779B97F4A7C15
_FULL = float("inf")
# A preferred server may be this much more loaded than the mean ...
_AFFINITY_LOAD_FACTOR = 1.25
# ... and below this load it is always preferred: there a warm prefix cache is worth more than
# an emptier server.
_AFFINITY_FREE_RATIO = 0.5
# Hashing a key with every server costs about a microsecond per server, so the winners are kept
# until the membership changes; at this many keys they are dropped and found again.
_REMEMBERED_KEYS = 16_384


class Selection(NamedTuple):
    """The server chosen, its load ratio with the request on it, and whether affinity decided."""

    server_id: str
    load_ratio: float
    by_affinity: bool


class Candidate(NamedTuple):
    """A server as an explanation shows it: load with the request, and whether it could take it."""

    server_id: str
    load_ratio: float
    eligible: bool


class _CapacityGroup:
    """Servers of equal capacity; a slot's ratio is infinite while it takes no requests."""

    __slots__ = ("inverse", "ratios", "servers")

    def __init__(self, capacity_tokens: int) -> None:
        self.inverse = 1.0 / capacity_tokens
        self.servers: list[_Server] = []
        self.ratios: list[float] = []


class _Server:
    __slots__ = (
        "capacity",
        "eligible",
        "foreign_tokens",
        "group",
        "index",
        "listed",
        "order",
        "request_limit",
        "requests",
        "seed",
        "server_id",
        "tokens",
    )

    def __init__(self, server_id: str, order_seed: int) -> None:
        digest = blake2b(server_id.encode("utf-8", "replace"), digest_size=8).digest()
        self.server_id = server_id
        self.seed = int.from_bytes(digest, "big")
        self.order = ((self.seed ^ order_seed) * _MULTIPLIER) & _MASK
        self.group: _CapacityGroup | None = None
        self.index = 0
        self.capacity = 0
        self.request_limit = 0
        self.requests = 0
        self.tokens = 0
        self.foreign_tokens = 0
        self.eligible = False
        self.listed = False


class ServerPool:
    """The servers of one tier and what is on them.

    `order_seed` decides ties; give every router its own. Nothing here reads a clock or draws a
    random number: the same calls give the same choices.
    """

    __slots__ = ("_by_id", "_capacity", "_free", "_groups", "_load", "_order_seed", "_preferred")

    def __init__(self, order_seed: int = 0) -> None:
        self._order_seed = order_seed & _MASK
        self._by_id: dict[str, _Server] = {}
        self._groups: dict[int, _CapacityGroup] = {}
        # Tokens on, capacity of, and places free on the eligible servers, kept up to date: the
        # affinity bound and the predicted wait ask for them at every request.
        self._load = 0
        self._capacity = 0
        self._free = 0
        self._preferred: dict[str, _Server] = {}

    # Membership

    def put(
        self, server_id: str, capacity_tokens: int, request_limit: int, *, eligible: bool = True
    ) -> None:
        """Adds the server, or changes its capacity, limit or eligibility; what it runs stays."""
        if capacity_tokens <= 0 or request_limit <= 0:
            raise ValueError("capacity_tokens and request_limit must be positive")
        server = self._by_id.get(server_id)
        if server is None:
            server = self._by_id[server_id] = _Server(server_id, self._order_seed)
        regroup = not server.listed or server.capacity != capacity_tokens
        if server.listed:
            self._count(server, -1)
        if regroup and server.listed:
            self._leave_group(server)
        server.request_limit = request_limit
        server.eligible = eligible
        server.capacity = capacity_tokens
        if regroup:
            self._join_group(server)
        self._count(server, 1)
        self._refresh(server)

    def remove(self, server_id: str) -> None:
        """Takes the server out of the choice; it is forgotten once its last request ended."""
        server = self._by_id.get(server_id)
        if server is None or not server.listed:
            return
        self._count(server, -1)
        self._leave_group(server)
        server.listed = False
        server.eligible = False
        if server.requests == 0:
            del self._by_id[server_id]

    def set_eligible(self, server_id: str, eligible: bool) -> None:
        """Lets a listed server take requests, or not."""
        server = self._by_id[server_id]
        if server.listed and server.eligible != eligible:
            self._count(server, -1)
            server.eligible = eligible
            self._count(server, 1)
            self._refresh(server)

    def set_foreign_tokens(self, server_id: str, tokens: int) -> None:
        """Says how many tokens others have on the server."""
        server = self._by_id[server_id]
        if server.listed and server.foreign_tokens != tokens:
            self._count(server, -1)
            server.foreign_tokens = tokens
            self._count(server, 1)
            self._refresh(server)

    def set_request_limit(self, server_id: str, request_limit: int) -> None:
        """Changes how many requests the server may have from this router at a time."""
        server = self._by_id[server_id]
        if server.request_limit != request_limit:
            self._count(server, -1)
            server.request_limit = request_limit
            self._count(server, 1)
            self._refresh(server)

    # Choice

    def choose(
        self,
        tokens: int,
        affinity_key: str = "",
        load_limit: float = 1.0,
        excluded: Collection[str] = (),
    ) -> Selection | None:
        """Returns the server that would be least loaded with the request, or None if all are full.

        A server is full when the request would lift it above `load_limit` of its capacity, or when
        it has as many requests as it may. An idle server takes a request of any size: no other
        would.
        """
        if excluded:
            return self._choose_excluding(tokens, load_limit, excluded)
        if affinity_key:
            preferred = self._choose_affine(tokens, affinity_key, load_limit)
            if preferred is not None:
                return preferred
        best: _CapacityGroup | None = None
        best_low, best_after = _FULL, _FULL
        for group in self._groups.values():
            low = min(group.ratios)
            after = low + tokens * group.inverse
            if after < best_after:
                best, best_low, best_after = group, low, after
        if best is None or (best_after > load_limit and best_low > 0.0):
            return None
        server = best.servers[best.ratios.index(best_low)]
        return Selection(server.server_id, best_after, by_affinity=False)

    def assign(self, server_id: str, tokens: int) -> None:
        """Counts a request of `tokens` on the server."""
        server = self._by_id[server_id]
        server.tokens += tokens
        server.requests += 1
        if server.eligible:
            self._load += tokens
            if server.requests <= server.request_limit:
                self._free -= 1
        self._refresh(server)

    def release(self, server_id: str, tokens: int) -> None:
        """Takes a request that was assigned with `tokens` off the server again."""
        server = self._by_id[server_id]
        server.tokens -= tokens
        server.requests -= 1
        if server.eligible:
            self._load -= tokens
            if server.requests < server.request_limit:
                self._free += 1
        if server.listed:
            self._refresh(server)
        elif server.requests == 0:
            del self._by_id[server_id]

    # What it looks like

    @property
    def eligible_capacity_tokens(self) -> int:
        """Capacity of the servers that take requests; 0 means that there is none."""
        return self._capacity

    @property
    def eligible_load_tokens(self) -> int:
        """Tokens on the servers that take requests, those of others included."""
        return self._load

    @property
    def free_places(self) -> int:
        """How many more requests the request limits of eligible servers allow."""
        return self._free

    def running(self, server_id: str) -> tuple[int, int]:
        """Returns requests and tokens this router has on the server; (0, 0) if it is unknown."""
        server = self._by_id.get(server_id)
        return (0, 0) if server is None else (server.requests, server.tokens)

    def has_usable(self, excluded: Collection[str] = ()) -> bool:
        """Returns whether any server outside `excluded` takes requests, though it may be full."""
        if not excluded:
            return self._capacity > 0
        return any(
            server.eligible and server.server_id not in excluded for server in self._by_id.values()
        )

    def candidates(self, tokens: int, load_limit: float = 1.0) -> list[Candidate]:
        """Returns every listed server, the least loaded first."""
        found = []
        for server in self._by_id.values():
            if not server.listed:
                continue
            ratio = (server.tokens + server.foreign_tokens) / server.capacity
            after = ratio + tokens / server.capacity
            open_ = server.eligible and server.requests < server.request_limit
            fits = open_ and (after <= load_limit or ratio == 0.0)
            found.append((not fits, after, server.order, Candidate(server.server_id, after, fits)))
        return [entry[-1] for entry in sorted(found)]

    # Inside

    def _choose_affine(self, tokens: int, key: str, load_limit: float) -> Selection | None:
        best = self._preferred.get(key)
        if best is None:
            best = self._find_preferred(key)
        if best is None or best.group is None:
            return None
        ratio = best.group.ratios[best.index]
        after = ratio + tokens * best.group.inverse
        if after > load_limit and ratio > 0.0:
            return None
        if after > _AFFINITY_FREE_RATIO and self._capacity:
            mean_after = (self._load + tokens) / self._capacity
            if after > mean_after * _AFFINITY_LOAD_FACTOR:
                return None
        return Selection(best.server_id, after, by_affinity=True)

    def _find_preferred(self, key: str) -> _Server | None:
        # crc32 spreads the key, the multiplication mixes it with each server's seed; the comparison
        # uses the high bits, which depend on all others.
        key_hash = crc32(key.encode("utf-8", "replace")) * _MULTIPLIER & _MASK
        best: _Server | None = None
        best_score = -1
        for group in self._groups.values():
            for server in group.servers:
                score = (key_hash ^ server.seed) * _MULTIPLIER & _MASK
                if score > best_score:
                    best, best_score = server, score
        if best is not None:
            if len(self._preferred) >= _REMEMBERED_KEYS:
                self._preferred.clear()
            self._preferred[key] = best
        return best

    def _choose_excluding(
        self, tokens: int, load_limit: float, excluded: Collection[str]
    ) -> Selection | None:
        for candidate in self.candidates(tokens, load_limit):
            if candidate.eligible and candidate.server_id not in excluded:
                return Selection(candidate.server_id, candidate.load_ratio, by_affinity=False)
        return None

    def _refresh(self, server: _Server) -> None:
        group = server.group
        if group is None:
            return
        if server.eligible and server.requests < server.request_limit:
            load = server.tokens + server.foreign_tokens
            group.ratios[server.index] = load * group.inverse
        else:
            group.ratios[server.index] = _FULL

    def _count(self, server: _Server, sign: int) -> None:
        if server.eligible:
            self._load += sign * (server.tokens + server.foreign_tokens)
            self._capacity += sign * server.capacity
            self._free += sign * max(0, server.request_limit - server.requests)

    def _join_group(self, server: _Server) -> None:
        group = self._groups.get(server.capacity)
        if group is None:
            group = self._groups[server.capacity] = _CapacityGroup(server.capacity)
        server.group = group
        server.listed = True
        self._preferred.clear()
        self._arrange(group, [*group.servers, server])

    def _leave_group(self, server: _Server) -> None:
        group = server.group
        if group is None:
            return
        server.group = None
        self._preferred.clear()
        remaining = [other for other in group.servers if other is not server]
        if remaining:
            self._arrange(group, remaining)
        else:
            del self._groups[server.capacity]

    def _arrange(self, group: _CapacityGroup, servers: list[_Server]) -> None:
        group.servers = sorted(servers, key=lambda server: server.order)
        group.ratios = [_FULL] * len(servers)
        for index, server in enumerate(group.servers):
            server.index = index
            self._refresh(server)
