"""Servers on their way out: from the choice until they are given back. Times are Unix seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from autoscaler.domain.tiers import Tier

__all__ = ["Drain", "DrainVerdict", "judge_drain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """One instance that finishes its work before it is terminated."""

    instance_id: str
    tier: Tier
    server_ids: tuple[str, ...]
    start_time: float
    deadline: float
    decision_id: str

    def begun_anew(self, now: float) -> "Drain":
        """Return the drain with its whole window ahead of it.

        For a drain that nobody saw to for a while: the routers use its servers again once their
        lease ends, and whoever wrote the times down may have had another clock.
        """
        return replace(self, start_time=now, deadline=now + self.deadline - self.start_time)


class DrainVerdict(StrEnum):
    """What to do with a drain now."""

    WAIT = "wait"
    TERMINATE = "terminate"


def judge_drain(
    drain: Drain,
    *,
    running_by_router: Mapping[str, int | None],
    fleet_requests: int | None,
    fleet_is_fresh: bool,
    settle_seconds: float,
    may_take_away: bool,
    now: float,
) -> tuple[DrainVerdict, str]:
    """Tell whether the instance can be given back, and why.

    It can once every router answered that nothing of its own runs there and the servers show none
    either, or when the deadline has passed. `running_by_router` holds None for a router that did
    not answer; `fleet_requests` is None when the feed is stale. Nothing is terminated while
    `may_take_away` is False, whatever the deadline.

    An instance of which no model server is known may have one all the same: a collector that was
    restarted knows no host at first, and a router may hear of a new server before us. It is held
    for `settle_seconds`, the age up to which the feed counts as fresh, so that what the feed shows
    then was true after the drain began.
    """
    if not may_take_away:
        return DrainVerdict.WAIT, "nothing is taken away at present"
    if now >= drain.deadline:
        return DrainVerdict.TERMINATE, "the drain deadline has passed"
    if not drain.server_ids:
        if fleet_is_fresh and now - drain.start_time >= settle_seconds:
            return DrainVerdict.TERMINATE, "it runs no model server"
        return DrainVerdict.WAIT, "whether it runs a model server is not known yet"
    silent = sorted(name for name, running in running_by_router.items() if running is None)
    if silent:
        return DrainVerdict.WAIT, f"no answer from {', '.join(silent)}"
    running = sum(count or 0 for count in running_by_router.values())
    if running:
        return DrainVerdict.WAIT, f"{running} requests still running"
    if fleet_requests:
        return DrainVerdict.WAIT, f"{fleet_requests} requests of other clients still running"
    return DrainVerdict.TERMINATE, "drained"
