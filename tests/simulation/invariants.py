"""What must hold at every moment of a simulated run, one small class each.

An invariant hears of what happens through the methods it overrides and reports what is wrong. It
reads the truth (the cloud, the hosts, the processes' own state), never what a component believes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from simulated_hosts import CloudCall, SimulatedHost

from autoscaler.domain.tiers import Tier
from autoscaler.leadership import Role

if TYPE_CHECKING:
    from simulated_suite import SimulatedSuite

__all__ = ["ALL_INVARIANTS", "Finding", "Invariant"]


@dataclass(frozen=True, slots=True)
class Finding:
    """An invariant that did not hold at a virtual time."""

    time: float
    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.time:9.3f} s  {self.invariant}: {self.message}"


class Invariant:
    """Hears what happens; `fail` reports a finding."""

    name: ClassVar[str]

    def __init__(self, suite: SimulatedSuite, report: Callable[[Finding], None]) -> None:
        self.suite = suite
        self._report = report

    def fail(self, message: str) -> None:
        """Report that the invariant does not hold now."""
        now = asyncio.get_running_loop().time()
        self._report(Finding(now, self.name, message))

    def call_issued(self, call: CloudCall) -> None:
        """A replica asks the cloud to change a group."""

    def call_arrived(self, call: CloudCall) -> None:
        """The cloud is about to do what a call asks for."""

    def host_ended(self, host: SimulatedHost, why: str) -> None:
        """A host is taken away; what runs on it is still known."""

    def drain_written(self, instance_id: str) -> None:
        """A drain became durable."""

    def drain_ended(self, instance_id: str) -> None:
        """A drain was struck off."""

    def text_read(self, world: str, text: str, source: str) -> None:
        """Somebody in a world was given a text."""

    def item_seen(self, subscriber: str, epoch: int, number: int) -> None:
        """A subscriber of the hub was given an item."""

    def too_old_told(self, subscriber: str) -> None:
        """A subscriber was told that it missed something."""

    def request_told(self, request: str, outcome: str) -> None:
        """A router told a caller how its request ended."""

    def component_failed(self, component: str, error: str) -> None:
        """A component met an error that it should not have."""

    def second_passed(self) -> None:
        """Another second of virtual time is over."""

    def finished(self) -> None:
        """The run is over; faults ended long ago."""


class NeverBelowFloor(Invariant):
    """No call of a replica leaves a tier with fewer servers than its minimum."""

    name = "never below the floor"

    def call_arrived(self, call: CloudCall) -> None:
        floor = self.suite.policies[Tier(call.group)].minimum
        if call.operation == "SetDesiredCapacity":
            if call.desired < floor:
                self.fail(f"{call.caller} sizes {call.group} to {call.desired}, least {floor}")
            return
        if not self.suite.fleet.counts(call.instance_id):
            return
        left = self.suite.fleet.live(call.group) - 1
        if left < floor:
            self.fail(f"{call.caller} leaves {call.group} {left} servers, least {floor}")


class KeepsDrainWindow(Invariant):
    """A server with streams is taken away by the control plane only after its drain window.

    An interrupted one may go once the cloud is about to take it anyway.
    """

    name = "no termination with streams inside the drain window"
    _TOLERANCE_SECONDS = 1.0

    def __init__(self, suite: SimulatedSuite, report: Callable[[Finding], None]) -> None:
        super().__init__(suite, report)
        self._since: dict[str, float] = {}

    def drain_written(self, instance_id: str) -> None:
        self._since.setdefault(instance_id, asyncio.get_running_loop().time())

    def drain_ended(self, instance_id: str) -> None:
        self._since.pop(instance_id, None)

    def host_ended(self, host: SimulatedHost, why: str) -> None:
        if not host.running or not why.startswith("replica"):
            return
        now = asyncio.get_running_loop().time()
        policy = self.suite.policies[Tier(host.tier)]
        ends = self.suite.fleet.cloud.instance(host.instance_id).termination_time
        if ends is not None and ends - now <= (
            policy.interruption_margin_seconds + self._TOLERANCE_SECONDS
        ):
            return
        since = self._since.get(host.instance_id)
        drained = 0.0 if since is None else now - since
        if since is None or drained < policy.drain_deadline_seconds - self._TOLERANCE_SECONDS:
            state = "undrained" if since is None else f"drained for {drained:.1f} s"
            self.fail(
                f"{host.instance_id} ({host.tier}) ends by {why} with {len(host.running)} streams, "
                f"{state}, window {policy.drain_deadline_seconds:.0f} s"
            )


class OneWriter(Invariant):
    """Only a leader moves a group; one cut off from the database only adds; never two leaders."""

    name = "one writer"

    def call_issued(self, call: CloudCall) -> None:
        role = self.suite.role_of(call.caller)
        if role not in (Role.LEADER, Role.CUT_OFF):
            self.fail(f"{call.caller}, no leader, calls {call.operation} on {call.group}")
        elif role is Role.CUT_OFF and (
            call.operation != "SetDesiredCapacity"
            or call.desired < self.suite.fleet.groups.group(call.group).desired_capacity
        ):
            self.fail(f"{call.caller}, cut off, takes away: {call.operation} on {call.group}")

    def second_passed(self) -> None:
        leaders = [name for name, role in self.suite.roles().items() if role is Role.LEADER]
        if len(leaders) > 1:
            self.fail(f"leaders at the same time: {', '.join(leaders)}")


@dataclass(slots=True)
class _Growth:
    """A group was made larger; `staying` servers are not drained for it."""

    call: CloudCall
    due: float
    staying: int
    allowed_usd: float
    others_usd: float


class BudgetKept(Invariant):
    """A group grows only as far as the players online pay for, beyond what is always allowed."""

    name = "the budget is not exceeded"
    _SETTLED_SECONDS = 5.0
    """A growth that makes up for servers to be drained is called for just before the drains."""

    def __init__(self, suite: SimulatedSuite, report: Callable[[Finding], None]) -> None:
        super().__init__(suite, report)
        self._grown: list[_Growth] = []

    def call_arrived(self, call: CloudCall) -> None:
        if call.operation != "SetDesiredCapacity":
            return
        if call.desired <= self.suite.fleet.groups.group(call.group).desired_capacity:
            return
        allowed = self.suite.highest_recent_budget(call.caller)
        if allowed is None:
            return
        others = [tier for tier in self.suite.tiers if tier != call.group]
        self._grown.append(
            _Growth(
                call=call,
                due=asyncio.get_running_loop().time() + self._SETTLED_SECONDS,
                staying=call.desired - self.suite.draining(call.group),
                allowed_usd=allowed,
                others_usd=sum(self.suite.usd_per_hour(tier) for tier in others),
            )
        )

    def second_passed(self) -> None:
        now = asyncio.get_running_loop().time()
        for growth in self._grown:
            growth.staying = min(growth.staying, self.suite.staying(growth.call.group))
        while self._grown and self._grown[0].due <= now:
            growth = self._grown.pop(0)
            tier, staying = growth.call.group, growth.staying
            cost = growth.others_usd + self.suite.usd_per_hour(tier, staying)
            floor = self.suite.budget.floor_servers.get(Tier(tier), 0)
            if staying > floor and cost > growth.allowed_usd + 1e-6:
                self.fail(
                    f"{growth.call.caller} grew {tier} to {staying} staying servers: "
                    f"${cost:.2f}/h of ${growth.allowed_usd:.2f}/h"
                )


class EachRequestOnce(Invariant):
    """Every accepted request ends in exactly one outcome, and nothing is left of it."""

    name = "each request ends in exactly one outcome"

    def __init__(self, suite: SimulatedSuite, report: Callable[[Finding], None]) -> None:
        super().__init__(suite, report)
        self._told: dict[str, str] = {}

    def request_told(self, request: str, outcome: str) -> None:
        before = self._told.get(request)
        if before is not None:
            self.fail(f"{request} was told {before}, then {outcome}")
        self._told[request] = outcome

    def second_passed(self) -> None:
        for router in self.suite.live_routers():
            if (wrong := router.unaccounted()) != 0:
                self.fail(f"{router.name}: {wrong:+d} requests are accepted and nowhere")

    def finished(self) -> None:
        for router in self.suite.live_routers():
            if left := router.left_over():
                self.fail(f"{router.name}: {left} after everybody went home")


class WorldsApart(Invariant):
    """No text of one world reaches another one, by the answer cache or by memory."""

    name = "no cross-world read"

    def text_read(self, world: str, text: str, source: str) -> None:
        others = [w for w in self.suite.worlds if w != world and w in text]
        if others:
            self.fail(f"{source} gave {world} a text of {', '.join(others)}: {text[:80]!r}")


class StreamsWhole(Invariant):
    """A subscriber sees every item once, in order, or is told that it missed some."""

    name = "streams are whole or say too old"

    def __init__(self, suite: SimulatedSuite, report: Callable[[Finding], None]) -> None:
        super().__init__(suite, report)
        self._last: dict[str, tuple[int, int]] = {}

    def item_seen(self, subscriber: str, epoch: int, number: int) -> None:
        last = self._last.get(subscriber)
        if last is not None and (epoch, number) != (last[0], last[1] + 1):
            self.fail(f"{subscriber} saw {epoch}.{number} after {last[0]}.{last[1]}")
        self._last[subscriber] = (epoch, number)

    def too_old_told(self, subscriber: str) -> None:
        self._last.pop(subscriber, None)

    def finished(self) -> None:
        newest = self.suite.newest_item()
        for subscriber, (epoch, number) in self._last.items():
            if epoch != newest[0] or newest[1] - number > self.suite.ITEMS_IN_FLIGHT:
                self.fail(f"{subscriber} stands at {epoch}.{number}, the hub at {newest}")


class NoInnerErrors(Invariant):
    """No fault makes a component fail by an error that it did not expect."""

    name = "faults are expected"

    def component_failed(self, component: str, error: str) -> None:
        self.fail(f"{component}: {error}")


class Converges(Invariant):
    """After the faults one leader is left, and the groups are what it decided."""

    name = "ends as one leader would have it"
    _ROUND_SECONDS = 4
    """A round under way may have decided and not yet called, or the other way round."""

    def __init__(self, suite: SimulatedSuite, report: Callable[[Finding], None]) -> None:
        super().__init__(suite, report)
        self._wrong: list[list[str]] = []

    def second_passed(self) -> None:
        self._wrong = [*self._wrong[-self._ROUND_SECONDS + 1 :], self._differences()]

    def finished(self) -> None:
        if all(self._wrong):
            for message in self._wrong[-1]:
                self.fail(message)

    def _differences(self) -> list[str]:
        if not self.suite.is_calm:
            return []
        leaders = [name for name, role in self.suite.roles().items() if role is Role.LEADER]
        if len(leaders) != 1:
            return [f"leaders long after the faults: {leaders or 'none'}"]
        found = [
            f"{leaders[0]} wants {wanted} {tier} servers, the group has {has}"
            for tier in self.suite.tiers
            if (wanted := self.suite.decided(leaders[0], tier)) is not None
            and wanted != (has := self.suite.staying(tier))
        ]
        found += [
            f"the drain of {instance_id} outlives it"
            for instance_id in self.suite.database.drains
            if instance_id not in self.suite.fleet.hosts
        ]
        return found


ALL_INVARIANTS: tuple[type[Invariant], ...] = (
    NeverBelowFloor,
    KeepsDrainWindow,
    OneWriter,
    BudgetKept,
    EachRequestOnce,
    WorldsApart,
    StreamsWhole,
    NoInnerErrors,
    Converges,
)
