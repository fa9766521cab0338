"""The simulated region: one state in time, shared by every API of the local AWS.

The behaviour is `fleetsim`'s (cloud and Auto Scaling groups); this adds what a server needs
around it: a clock, a lock, the event feed, the port that tells when hosts come and go, and a
ledger of what has been spent per tier.
"""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import structlog

from fleetsim.cloud import Cloud
from fleetsim.cloud_state import CloudEvent, CloudEventKind, CloudSettings, Instance, InstanceState
from fleetsim.scaling_group import GROUP_TAG, ScalingGroups
from localsuite.aws.event_feed import EventFeed
from localsuite.aws.tiers import TIER_TAG

__all__ = ["HostLifecycle", "Region", "wall_clock"]

log = structlog.get_logger(__name__)

_LONGEST_TICK_SECONDS = 1.0


class HostLifecycle(Protocol):
    """What the simulated fleet does when the cloud gives and takes hosts.

    Called in the order of events, one call at a time, never with the region's lock held.
    """

    def on_instance_running(self, instance: Instance) -> None:
        """An instance runs: its host boots now."""

    def on_interruption_notice(self, instance: Instance, at: float) -> None:
        """A Spot instance will be taken away at Unix time `at`."""

    def on_instance_terminated(self, instance: Instance) -> None:
        """An instance shuts down: its host is gone. It may never have run."""


def wall_clock() -> Callable[[], float]:
    """A clock of Unix seconds that never steps back, even when the system's is set."""
    origin = time.time() - time.monotonic()
    return lambda: origin + time.monotonic()


class Region:
    """One account's capacity in one AWS region, answering from a state that moves with a clock.

    Args:
        name: the region's name; zones follow from `settings`.
        account_id: the twelve digits in ARNs.
        seed: the same seed and the same calls at the same times give the same region.
        time_compression: divides everything that takes minutes in production.
        settings: how the cloud behaves; default: fleetsim's.
        clock: Unix seconds; a test passes its own and moves it.
        hosts: told about hosts that come and go.
    """

    def __init__(
        self,
        *,
        name: str = "us-east-1",
        account_id: str = "123456789012",
        seed: int = 0,
        time_compression: float = 1.0,
        settings: CloudSettings | None = None,
        clock: Callable[[], float] | None = None,
        hosts: HostLifecycle | None = None,
    ) -> None:
        self.name = name
        self.account_id = account_id
        self.seed = seed
        self.feed = EventFeed()
        self._clock = clock or wall_clock()
        self._hosts = hosts
        self._lock = threading.RLock()
        self._delivery_lock = threading.RLock()
        self._moved = threading.Event()
        self._undelivered: list[CloudEvent] = []
        self._settled_usd: defaultdict[str, float] = defaultdict(float)
        self._last_now = self._clock()
        cloud_rng, groups_rng = np.random.default_rng(seed).spawn(2)
        self.cloud = Cloud(
            rng=cloud_rng,
            start_time=self._last_now,
            settings=settings,
            time_compression=time_compression,
        )
        self.groups = ScalingGroups(self.cloud, rng=groups_rng)

    def present(self) -> float:
        """Unix seconds now, without moving the state."""
        return self._clock()

    @contextlib.contextmanager
    def at_now(self) -> Iterator[float]:
        """The state, alone and moved to the present; what happened is told afterwards."""
        try:
            with self._lock:
                now = self._last_now = max(self._clock(), self._last_now)
                self._collect(now)
                try:
                    yield now
                finally:
                    self._collect(now)
        finally:
            self._moved.set()
            self._deliver()

    def advance(self) -> None:
        """Moves the state to the present and tells what happened."""
        with self.at_now():
            pass

    def wake(self) -> None:
        """Makes `run` look at its stop signal now."""
        self._moved.set()

    def run(self, stop: threading.Event) -> None:
        """Moves the state along as things become due, until `stop` is set."""
        while not stop.is_set():
            self._moved.clear()  # before looking, so that no change in between is missed
            with self._lock:
                self._last_now = max(self._clock(), self._last_now)
                self._collect(self._last_now)
            self._deliver()
            with self._lock:
                due = self.groups.next_event_time()
                wait_seconds = _LONGEST_TICK_SECONDS
                if due is not None:
                    wait_seconds = min(max(due - self._clock(), 0.001), _LONGEST_TICK_SECONDS)
            self._moved.wait(wait_seconds)

    # --- what is there ------------------------------------------------------------------------

    def tier_of(self, instance: Instance) -> str:
        """The tier an instance serves; empty when untagged."""
        return instance.tags.get(TIER_TAG, "")

    def instance_document(self, instance: Instance, now: float) -> dict[str, Any]:
        """An instance as plain JSON values; times are Unix seconds or None."""
        return {
            "instance_id": instance.instance_id,
            "instance_type": instance.instance_type,
            "zone": instance.zone,
            "market": instance.market.value,
            "state": instance.state.value,
            "tier": self.tier_of(instance),
            "auto_scaling_group": instance.tags.get(GROUP_TAG),
            "private_ip_address": instance.private_ip_address,
            "launch_time": instance.launch_time,
            "running_time": instance.running_time,
            "rebalance_time": instance.rebalance_time,
            "interruption_notice_time": instance.interruption_notice_time,
            "termination_time": instance.termination_time,
            "shutting_down_time": instance.shutting_down_time,
            "terminated_time": instance.terminated_time,
            "state_reason": instance.state_reason[0] if instance.state_reason else None,
            "usd_per_hour": instance.usd_per_hour,
            "cost_usd": round(self.cloud.instance_cost_usd(instance, now), 6),
            "tags": dict(instance.tags),
        }

    def costs_document(self, now: float) -> dict[str, Any]:
        """What has been spent and what an hour costs now, in production terms, by tier."""
        spent = dict(self._settled_usd)
        per_hour: defaultdict[str, float] = defaultdict(float)
        instances = []
        for instance in self.cloud.instances():
            tier = self.tier_of(instance)
            if instance.state is not InstanceState.TERMINATED:
                cost = self.cloud.instance_cost_usd(instance, now)
                spent[tier] = spent.get(tier, 0.0) + cost
            if instance.state is InstanceState.RUNNING:
                per_hour[tier] += instance.usd_per_hour
            instances.append(
                {
                    key: value
                    for key, value in self.instance_document(instance, now).items()
                    if key in ("instance_id", "tier", "market", "state", "usd_per_hour", "cost_usd")
                }
            )
        return {
            "time": now,
            "time_compression": self.cloud.time_compression,
            "total_usd": round(sum(spent.values()), 6),
            "usd_per_hour": round(sum(per_hour.values()), 6),
            "tiers": {
                tier: {
                    "total_usd": round(spent.get(tier, 0.0), 6),
                    "usd_per_hour": round(per_hour.get(tier, 0.0), 6),
                }
                for tier in sorted({*spent, *per_hour})
            },
            "instances": instances,
        }

    # --- internals ------------------------------------------------------------------------------

    def _collect(self, now: float) -> None:
        for event in self.groups.advance(now):
            instance = event.instance
            if event.kind is CloudEventKind.INSTANCE_TERMINATED and instance is not None:
                cost = self.cloud.instance_cost_usd(instance, now)
                self._settled_usd[self.tier_of(instance)] += cost
            self._undelivered.append(event)
            self.feed.append(self._event_document(event))

    def _event_document(self, event: CloudEvent) -> Mapping[str, Any]:
        return {
            "time": event.time,
            "kind": event.kind.value,
            "instance_type": event.instance_type,
            "zone": event.zone,
            "instance": (
                self.instance_document(event.instance, event.time) if event.instance else None
            ),
        }

    def _deliver(self) -> None:
        if self._hosts is None:
            with self._lock:
                self._undelivered.clear()
            return
        with self._delivery_lock:
            while True:
                with self._lock:
                    if not self._undelivered:
                        return
                    event = self._undelivered.pop(0)
                self._tell(self._hosts, event)

    def _tell(self, hosts: HostLifecycle, event: CloudEvent) -> None:
        instance = event.instance
        if instance is None:
            return
        try:
            if event.kind is CloudEventKind.INSTANCE_RUNNING:
                hosts.on_instance_running(instance)
            elif event.kind is CloudEventKind.SPOT_INTERRUPTION_NOTICE:
                hosts.on_interruption_notice(instance, instance.termination_time or event.time)
            elif event.kind is CloudEventKind.INSTANCE_SHUTTING_DOWN:
                hosts.on_instance_terminated(instance)
        except Exception:
            log.exception("host_listener_failed", kind=event.kind.value)
