"""Brings drains to their end: routers are asked until nothing runs, then the instance goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from autoscaler.buffered_journal import BufferedJournal, EndDrain, SaveDrain
from autoscaler.domain.drains import Drain, DrainVerdict, judge_drain
from autoscaler.domain.fleet_view import FleetView, ScalingGroup
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.snapshot import Instance
from autoscaler.domain.tiers import Tier
from autoscaler.ports import CloudError, RouterDrains, ScalingCloud

__all__ = ["DrainControl"]

log = structlog.get_logger(__name__)

_AT_ONCE = 8
_LEASE_TICKS = 6
_SHORTEST_LEASE_SECONDS = 15.0


class DrainControl:
    """All drains under way. They live in the database too, so the next leader goes on with them.

    A router drops a drain that is not asked for again within its lease, so an autoscaler that is
    gone for good leaves no server out of use.
    """

    def __init__(
        self,
        routers: RouterDrains,
        cloud: ScalingCloud,
        journal: BufferedJournal,
        *,
        tick_seconds: float,
    ) -> None:
        self._routers = routers
        self._cloud = cloud
        self._journal = journal
        self._lease_seconds = max(_SHORTEST_LEASE_SECONDS, _LEASE_TICKS * tick_seconds)
        self._drains: dict[str, Drain] = {}
        self._asked_at = float("-inf")

    @property
    def instance_ids(self) -> frozenset[str]:
        """Instances that are being drained."""
        return frozenset(self._drains)

    def load(self, drains: Mapping[str, Drain]) -> None:
        """Go on with the drains a former leader began, each with its whole window ahead of it."""
        self._drains = dict(drains)
        self._asked_at = float("-inf")

    async def start(
        self, instance: Instance, policy: TierPolicy, decision_id: str, now: float
    ) -> bool:
        """Begin a drain; False when it could not be written down, and so does not begin."""
        deadline = now + policy.drain_deadline_seconds
        if instance.interruption_time is not None:
            latest = instance.interruption_time - policy.interruption_margin_seconds
            deadline = max(now, min(deadline, latest))
        drain = Drain(
            instance_id=instance.instance_id,
            tier=policy.tier,
            server_ids=instance.server_ids,
            start_time=now,
            deadline=deadline,
            decision_id=decision_id,
        )
        if not await self._journal.write(SaveDrain(drain)):
            await self._journal.write(EndDrain(instance.instance_id))
            return False
        self._drains[instance.instance_id] = drain
        log.info("drain_started", tier=policy.tier.value, instance_id=instance.instance_id)
        return True

    async def cancel(self, instance_id: str) -> None:
        """End a drain and let the routers use the servers again."""
        drain = self._drains.pop(instance_id, None)
        if drain is None:
            return
        await asyncio.gather(*(self._routers.resume(s) for s in drain.server_ids))
        await self._journal.write(EndDrain(instance_id))
        log.info("drain_cancelled", tier=drain.tier.value, instance_id=instance_id)

    async def progress(
        self,
        groups: Mapping[Tier, ScalingGroup],
        fleet: FleetView,
        policies: Mapping[Tier, TierPolicy],
        *,
        take_away_seconds: Callable[[], float],
        now: float,
    ) -> None:
        """Move every drain on by one step: ask the routers, and terminate what is drained.

        `take_away_seconds` tells for how long this replica may still terminate, 0 when it may not.
        It is asked again before each termination, which ends with it: a round may be held up for
        longer than a lease, and another leader may have taken the instance back since.
        """
        if now - self._asked_at > self._lease_seconds:
            # The routers have dropped these drains meanwhile, or may have.
            self._drains = {i: drain.begun_anew(now) for i, drain in self._drains.items()}
        self._asked_at = now
        live = {i.instance_id for group in groups.values() for i in group.live}
        for instance_id, drain in list(self._drains.items()):
            if drain.tier in groups and instance_id not in live:
                self._drains.pop(instance_id)
                await self._journal.write(EndDrain(instance_id))
                log.info("drain_ended", tier=drain.tier.value, instance_id=instance_id)
        limit = asyncio.Semaphore(_AT_ONCE)

        async def step(drain: Drain) -> None:
            async with limit:
                await self._step(
                    drain, fleet, policies[drain.tier], take_away_seconds=take_away_seconds, now=now
                )

        async with asyncio.TaskGroup() as group:
            for drain in list(self._drains.values()):
                group.create_task(step(drain))

    async def _step(
        self,
        drain: Drain,
        fleet: FleetView,
        policy: TierPolicy,
        *,
        take_away_seconds: Callable[[], float],
        now: float,
    ) -> None:
        host = fleet.hosts.get(drain.instance_id)
        fresh = fleet.age_seconds is not None and fleet.age_seconds <= policy.fleet_stale_seconds
        if host is not None and host.interruption_time is not None:
            latest = host.interruption_time - policy.interruption_margin_seconds
            drain = replace(drain, deadline=min(drain.deadline, latest))
        requests: int | None = None
        servers = set(drain.server_ids)
        if host is not None:
            servers |= {s.server_id for s in host.servers}
            if fresh and host.is_fresh:
                requests = sum(
                    (s.running_requests or 0) + (s.waiting_requests or 0) for s in host.servers
                )
        running: dict[str, int | None] = {}
        for server_id in sorted(servers):
            answers = await self._routers.drain(server_id, self._lease_seconds)
            running |= {f"{router} {server_id}": count for router, count in answers.items()}
        verdict, reason = judge_drain(
            replace(drain, server_ids=tuple(sorted(servers))),
            running_by_router=running,
            fleet_requests=requests,
            fleet_is_fresh=fresh,
            settle_seconds=policy.fleet_stale_seconds,
            may_take_away=take_away_seconds() > 0,
            now=now,
        )
        if verdict is DrainVerdict.WAIT:
            log.debug("drain_waits", instance_id=drain.instance_id, reason=reason)
            return
        try:
            async with asyncio.timeout(take_away_seconds()):
                await self._cloud.terminate(drain.instance_id)
        except (CloudError, TimeoutError) as error:
            log.warning(
                "drained_instance_not_terminated",
                instance_id=drain.instance_id,
                error=error.message if isinstance(error, CloudError) else "the lead ended",
            )
            return
        log.info(
            "drained_instance_terminated",
            tier=drain.tier.value,
            instance_id=drain.instance_id,
            reason=reason,
        )
        self._drains.pop(drain.instance_id, None)
        await self._journal.write(EndDrain(drain.instance_id))
