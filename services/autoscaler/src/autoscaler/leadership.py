"""Whether this replica decides: it renews a lease in the database and judges by its own stopwatch.

The database compares expiry in its own time; this replica counts the lease from before it asked,
on its monotonic clock, so it always believes itself leader for shorter than the database does.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum

import structlog

from autoscaler.config import LeaseSettings
from autoscaler.ports import LeaderLease
from servicekit.clock import Clock
from servicekit.postgres import DatabaseAway

__all__ = ["Leadership", "Role"]

log = structlog.get_logger(__name__)


class Role(StrEnum):
    """What this replica may do."""

    LEADER = "leader"
    """It decides and acts."""
    LAPSED = "lapsed"
    """Its lease ran out before it asked again, as after a freeze: it does nothing until it asked,
    for another replica may lead by now."""
    CUT_OFF = "cut_off"
    """It led and cannot reach the database: it goes on adding, takes nothing away."""
    FOLLOWER = "follower"
    """It answers questions."""


class Leadership:
    """This replica's standing; `run` keeps it current."""

    def __init__(
        self, lease: LeaderLease, replica_id: str, settings: LeaseSettings, clock: Clock
    ) -> None:
        self._lease = lease
        self._replica_id = replica_id
        self._settings = settings
        self._clock = clock
        self._has_led = False
        self._valid_until = float("-inf")
        self.epoch = 0
        self.leader_id = ""
        self.database_reachable = False

    @property
    def role(self) -> Role:
        """What this replica may do at this moment."""
        if not self._has_led:
            return Role.FOLLOWER
        if not self.database_reachable:
            return Role.CUT_OFF
        return Role.LEADER if self._clock.monotonic() < self._valid_until else Role.LAPSED

    @property
    def act_seconds(self) -> float | None:
        """How long an act that begins now may take, so that it cannot outlast the lead.

        0 when it may not begin; None for a leader that is cut off: no lease tells its end.
        """
        match self.role:
            case Role.LEADER:
                return self._valid_until - self._clock.monotonic()
            case Role.CUT_OFF:
                return None
        return 0.0

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await self.renew()
            await self._clock.sleep(self._settings.renew_seconds)

    async def renew(self) -> None:
        """Try once to take or keep the lease."""
        asked_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._settings.ttl_seconds / 2):
                view = await self._lease.acquire(self._replica_id, self._settings.ttl_seconds)
        except (DatabaseAway, TimeoutError):
            if self.database_reachable:
                log.warning("lease_not_renewed", role=self.role.value)
            self.database_reachable = False
            return
        self.database_reachable = True
        self.leader_id = view.holder
        if view.holder != self._replica_id:
            if self._has_led:
                log.warning("leadership_lost", leader=view.holder, epoch=view.epoch)
            self._has_led = False
            return
        if not self._has_led or view.epoch != self.epoch:
            log.info("leadership_gained", epoch=view.epoch)
        self._has_led = True
        self.epoch = view.epoch
        self._valid_until = asked_at + self._settings.ttl_seconds

    async def release(self) -> None:
        """Give the lead away, so that another replica need not wait; failure does not matter."""
        if not self._has_led:
            return
        self._has_led = False
        try:
            async with asyncio.timeout(self._settings.ttl_seconds / 2):
                await self._lease.release(self._replica_id)
        except (DatabaseAway, TimeoutError):
            log.warning("lease_not_released")
