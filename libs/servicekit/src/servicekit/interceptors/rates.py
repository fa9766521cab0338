"""Keeps one caller, and the callers of one world, from taking what belongs to all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from servicekit.clock import Clock
from servicekit.errors import RateLimited
from servicekit.interceptors.call import Call, Proceed
from servicekit.method_policies import Role
from servicekit.rate_limits import NANOSECONDS, RateLimit, RateLimiter
from servicekit.settings import setting

__all__ = ["IdentityRateInterceptor", "RateSettings", "WorldRateCheck"]

_WORLD_FIELD = "world_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSettings:
    """How many cost units a second one caller, and all callers of one world, may take.

    A unit is about a millisecond of the server's work; a method's proto says what its calls cost.
    """

    per_identity: float = setting(
        "GAMEKEEPER_RATE_PER_IDENTITY",
        default=5000.0,
        minimum=0,
        maximum=1_000_000,
        help="cost units per second of one identity; 0 sets no limit",
    )
    per_operator: float = setting(
        "GAMEKEEPER_RATE_PER_OPERATOR",
        default=500.0,
        minimum=0,
        maximum=1_000_000,
        help="the same for one operator, whom world limits do not bind; 0 sets no limit",
    )
    per_world: float = setting(
        "GAMEKEEPER_RATE_PER_WORLD",
        default=1000.0,
        minimum=0,
        maximum=1_000_000,
        help="cost units per second of all calls about one world; 0 sets no limit",
    )
    burst_seconds: float = setting(
        "GAMEKEEPER_RATE_BURST_SECONDS",
        default=2.0,
        minimum=0,
        maximum=60,
        help="seconds of its rate that a rested caller or world may take at once",
    )

    def limiter(self, units_per_second: float, largest_cost: int) -> RateLimiter | None:
        """Returns a limiter of that rate whose burst fits every method; None without a limit."""
        if units_per_second <= 0:
            return None
        burst = max(1, largest_cost, math.floor(units_per_second * self.burst_seconds))
        return RateLimiter(RateLimit(units_per_second, burst))


class IdentityRateInterceptor:
    """Charges each call to its caller; operators have a budget of their own.

    Without mutual TLS all callers are the one loopback caller. Health and reflection are free. A
    stream is charged once, when it opens.
    """

    def __init__(self, settings: RateSettings, clock: Clock, *, largest_cost: int) -> None:
        self._clock = clock
        self._identities = settings.limiter(settings.per_identity, largest_cost)
        self._operators = settings.limiter(settings.per_operator, largest_cost)

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Refuses the call when its caller's budget is used up."""
        if call.declaration is not None:
            identity = call.caller.identity
            if call.caller.role is Role.OPERATOR:
                _take(self._operators, "operator", identity, call.declaration.cost, self._clock)
            else:
                _take(self._identities, "identity", identity, call.declaration.cost, self._clock)
        return await proceed(call)


class WorldRateCheck:
    """Charges each request that names a world to that world, unless an operator sent it.

    The world is the request's top-level text field `world_id`, found through its descriptor, so
    that no service can forget to name it.
    """

    def __init__(self, settings: RateSettings, clock: Clock, *, largest_cost: int) -> None:
        self._clock = clock
        self._worlds = settings.limiter(settings.per_world, largest_cost)
        self._names_world: dict[type[Message], bool] = {}

    def check(self, call: Call, request: Any) -> None:
        """Refuses the request when its world's budget is used up."""
        if call.declaration is None or call.caller.role is Role.OPERATOR:
            return
        world_id = self._world_of(request)
        if world_id:
            _take(self._worlds, "world", world_id, call.declaration.cost, self._clock)

    def _world_of(self, request: Any) -> str:
        if not isinstance(request, Message):
            return ""
        kind = type(request)
        names_world = self._names_world.get(kind)
        if names_world is None:
            names_world = self._names_world[kind] = _has_world(kind)
        # The same UUID may be written in either case.
        return getattr(request, _WORLD_FIELD).lower() if names_world else ""


def _has_world(kind: type[Message]) -> bool:
    field = kind.DESCRIPTOR.fields_by_name.get(_WORLD_FIELD)
    return field is not None and field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated


def _take(limiter: RateLimiter | None, name: str, key: str, cost: int, clock: Clock) -> None:
    if limiter is None:
        return
    wait = limiter.take(key, cost, round(clock.monotonic() * NANOSECONDS))
    if wait:
        limit = limiter.limit
        raise RateLimited(
            f"The rate limit per {name} is used up: {limit.units_per_second:g} cost units a "
            f"second, {limit.burst_units} at once; this call costs {cost}.",
            metadata={
                "limit": name,
                "units_per_second": f"{limit.units_per_second:g}",
                "burst_units": str(limit.burst_units),
                "cost": str(cost),
            },
            retry_after_seconds=wait / NANOSECONDS,
        )
