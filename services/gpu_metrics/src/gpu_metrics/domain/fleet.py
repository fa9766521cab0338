"""The collector's view of the fleet: what was reported, how old it is, and what changed since.

Time is an argument everywhere: `now` is in seconds of any clock that never goes back. Every
change gets the next revision number. A reader that knows revision N asks for what changed after
N, so a slow reader costs no memory: it simply gets more changes at once. Only the names of hosts
that went away must be remembered for such readers; of those a bounded number is kept, and a
reader from before that gets `RevisionTooOld`.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from gpu_metrics.domain.aggregate import TierAggregate, TierMember, aggregate_tier, attribute_loads
from gpu_metrics.domain.fleet_filter import EVERYTHING, FleetFilter
from gpu_metrics.domain.host_energy import HostEnergy
from gpu_metrics.domain.host_ingest import (
    AcceptedReport,
    HostIngest,
    ReportOrder,
    SampleFate,
    microseconds_of,
)
from gpu_metrics.domain.host_latency import HostLatency
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.readings import HostReport, ModelServerReading, Tier, gpu_uuids
from gpu_metrics.domain.removals import Removal, RemovalLog
from gpu_metrics.domain.samples import sample_count
from servicekit.errors import ResourceExhausted, ResumeTokenTooOld

__all__ = [
    "Acknowledgement",
    "ApplyOutcome",
    "FleetChanges",
    "FleetFull",
    "FleetPolicy",
    "FleetView",
    "RevisionTooOld",
    "SampleSink",
]


class RevisionTooOld(ResumeTokenTooOld):
    """What changed since that revision is no longer known."""


class FleetFull(ResourceExhausted):
    """The view holds as many hosts as it may."""

    reason = "FLEET_FULL"
    default_retry_after_seconds = 30.0


class ApplyOutcome(StrEnum):
    """What a report did to the view."""

    JOINED = "joined"
    UPDATED = "updated"
    AGENT_RESTARTED = "agent_restarted"
    LEFT = "left"
    EVENTS_ONLY = "events_only"
    OUT_OF_ORDER = "out_of_order"
    IGNORED_OLD = "ignored_old"
    IGNORED_SUPERSEDED = "ignored_superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPolicy:
    """How long silence may last, over how long latencies are taken, and how much is kept.

    A host is stale after `stale_after_seconds` without a report and forgotten after
    `expire_after_seconds`. `retained_seconds` of latency slots are kept; it is at least
    `window_seconds`, over which the tier aggregates look back. Samples that are further than
    `sample_window_seconds` from the collector's clock are dropped.
    """

    stale_after_seconds: float = 5.0
    expire_after_seconds: float = 60.0
    window_seconds: float = 60.0
    retained_seconds: float = 60.0
    slot_seconds: float = 5.0
    maximum_hosts: int = 1000
    removals_remembered: int = 2048
    superseded_runs_remembered: int = 8
    sample_window_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The newest report of a run that is in the view, and what the one at hand did."""

    boot_id: str
    sequence: int
    outcome: ApplyOutcome


@dataclass(frozen=True, slots=True)
class FleetChanges:
    """What a reader at an earlier revision must change to be at `revision`."""

    revision: int
    changed: tuple[HostState, ...]
    removed_host_ids: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Return whether there is nothing to change."""
        return not self.changed and not self.removed_host_ids


class SampleSink(Protocol):
    """Keeps the samples that the view takes in."""

    def observe(self, report: HostReport, accepted: AcceptedReport) -> None:
        """Take in what is accepted of a report."""
        ...

    def host_left(self, host_id: str) -> None:
        """Note that a host is known no longer."""
        ...


@dataclass(slots=True)
class _Entry:
    state: HostState
    latency: HostLatency
    energy: HostEnergy
    ingest: HostIngest
    superseded: deque[str]
    shape: "_Shape | None" = None


_Shape = tuple[tuple[str, ...], tuple[tuple[str, str, Tier], ...]]
"""UUIDs of the GPUs; id, model and tier of the servers."""


def _shape(report: HostReport) -> _Shape:
    return gpu_uuids(report.gpus), tuple(map(_server_shape, report.servers))


def _server_shape(server: ModelServerReading) -> tuple[str, str, Tier]:
    return server.server_id, server.model, server.tier


@dataclass(frozen=True, slots=True)
class _Departure:
    boot_id: str
    sequence: int
    at: float


class FleetView:
    """All hosts that reported lately."""

    __slots__ = (
        "_departed",
        "_history",
        "_hosts",
        "_next_deadline",
        "_removals",
        "_revision",
        "_tiers_seen",
        "fates",
        "policy",
    )

    def __init__(self, policy: FleetPolicy, history: SampleSink | None = None) -> None:
        self.policy = policy
        self._history = history
        # What became of every sample so far; whoever tells of it may take the counts away.
        self.fates: Counter[SampleFate] = Counter()
        # By revision, so that what changed lately is found without looking at everything.
        self._hosts: OrderedDict[str, _Entry] = OrderedDict()
        self._departed: dict[str, _Departure] = {}
        self._removals = RemovalLog(policy.removals_remembered)
        self._revision = 0
        self._tiers_seen: set[Tier] = set()
        # No host changes by the passing of time alone before this; a lower bound.
        self._next_deadline = -math.inf

    @property
    def revision(self) -> int:
        """Return the number of the last change."""
        return self._revision

    def apply(self, report: HostReport, now: float, receive_time: datetime) -> Acknowledgement:
        """Take a report into the view, or ignore it when the view is already further.

        Of a report at or below the acknowledged sequence of its run at most the samples are taken,
        if it was not there before; nothing is taken of a run that another one of the same host has
        superseded. A new run starts its sequence again. Raises `FleetFull` for a new host beyond
        the policy's maximum.
        """
        self.advance(now)
        host_id = report.host.host_id
        entry = self._hosts.get(host_id)
        if report.events_only:
            known = entry is not None and entry.state.report.boot_id == report.boot_id
            sequence = entry.state.report.sequence if entry is not None and known else 0
            return Acknowledgement(report.boot_id, sequence, ApplyOutcome.EVENTS_ONLY)
        if entry is None:
            return self._join(report, now, receive_time)
        last = entry.state.report
        if report.boot_id in entry.superseded:
            return Acknowledgement(last.boot_id, last.sequence, ApplyOutcome.IGNORED_SUPERSEDED)
        if report.boot_id == last.boot_id:
            order = entry.ingest.order(report.sequence)
            if order is not ReportOrder.NEWEST:
                return self._take_old(entry, report, order, receive_time)
            outcome = ApplyOutcome.UPDATED
        else:
            entry.superseded.append(last.boot_id)
            entry.ingest = entry.ingest.next_run()
            entry.ingest.order(report.sequence)
            outcome = ApplyOutcome.AGENT_RESTARTED
        if report.leaving:
            self._remove(host_id)
            self._departed[host_id] = _Departure(report.boot_id, report.sequence, now)
            return Acknowledgement(report.boot_id, report.sequence, ApplyOutcome.LEFT)
        self._store(entry, report, now, receive_time)
        return Acknowledgement(report.boot_id, report.sequence, outcome)

    def _take_old(
        self, entry: _Entry, report: HostReport, order: ReportOrder, receive_time: datetime
    ) -> Acknowledgement:
        """Take the samples of a report whose readings were replaced, unless it was here before."""
        last = entry.state.report
        outcome = ApplyOutcome.IGNORED_OLD
        if order is ReportOrder.OUT_OF_ORDER and not report.leaving:
            outcome = ApplyOutcome.OUT_OF_ORDER
            self._remember(entry.ingest, report, order, receive_time)
        else:
            samples = len(report.gpus) + sample_count(report.series)
            fate = SampleFate.LATE if order is ReportOrder.TOO_OLD else SampleFate.DUPLICATE
            self.fates[fate] += samples
        return Acknowledgement(last.boot_id, last.sequence, outcome)

    def _remember(
        self, ingest: HostIngest, report: HostReport, order: ReportOrder, receive_time: datetime
    ) -> None:
        accepted = ingest.accept(report, order, microseconds_of(receive_time), self.fates)
        if self._history is not None:
            self._history.observe(report, accepted)

    def _join(self, report: HostReport, now: float, receive_time: datetime) -> Acknowledgement:
        host_id = report.host.host_id
        departure = self._departed.get(host_id)
        if (
            departure is not None
            and departure.boot_id == report.boot_id
            and report.sequence <= departure.sequence
        ):
            return Acknowledgement(report.boot_id, departure.sequence, ApplyOutcome.IGNORED_OLD)
        if report.leaving:
            return Acknowledgement(report.boot_id, report.sequence, ApplyOutcome.LEFT)
        if len(self._hosts) >= self.policy.maximum_hosts:
            raise FleetFull(
                "the collector holds as many hosts as it is configured for",
                metadata={"maximum_hosts": str(self.policy.maximum_hosts)},
            )
        self._departed.pop(host_id, None)
        entry = _Entry(
            state=HostState(
                report=report,
                receive_time=receive_time,
                received_at=now,
                freshness=Freshness.FRESH,
                revision=0,
                tiers_ever=frozenset(),
            ),
            latency=HostLatency(
                slot_seconds=self.policy.slot_seconds,
                retained_seconds=self.policy.retained_seconds,
            ),
            energy=HostEnergy(
                slot_seconds=self.policy.slot_seconds,
                retained_seconds=self.policy.retained_seconds,
            ),
            ingest=HostIngest(self.policy.sample_window_seconds),
            superseded=deque(maxlen=self.policy.superseded_runs_remembered),
        )
        entry.ingest.order(report.sequence)
        self._hosts[host_id] = entry
        self._store(entry, report, now, receive_time)
        return Acknowledgement(report.boot_id, report.sequence, ApplyOutcome.JOINED)

    def _store(self, entry: _Entry, report: HostReport, now: float, receive_time: datetime) -> None:
        self._remember(entry.ingest, report, ReportOrder.NEWEST, receive_time)
        before = entry.state
        tiers = before.tiers_ever
        if report.servers:
            entry.latency.observe(report.servers, now)
            entry.energy.observe(report, now)
            serving = frozenset([server.tier for server in report.servers])
            self._tiers_seen |= serving
            tiers = tiers if tiers >= serving else tiers | serving
        self._revision += 1
        shape, shape_before = _shape(report), entry.shape
        entry.shape = shape
        changed = shape_before is not None and shape != shape_before
        entry.state = HostState(
            report=report,
            receive_time=receive_time,
            received_at=now,
            freshness=Freshness.FRESH,
            revision=self._revision,
            tiers_ever=tiers,
            shape_revision=self._revision if changed else before.shape_revision,
            clock_skew_seconds=entry.ingest.clock_skew_seconds,
            clock_sets=entry.ingest.clock_sets,
            processes=report.processes or before.processes,
            processes_received_at=now if report.processes else before.processes_received_at,
            cost=report.cost or before.cost,
        )
        self._hosts.move_to_end(report.host.host_id)

    def _remove(self, host_id: str) -> None:
        entry = self._hosts.pop(host_id)
        self._revision += 1
        self._removals.add(Removal(self._revision, host_id, entry.state.tiers_ever))
        if self._history is not None:
            self._history.host_left(host_id)

    def advance(self, now: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Bring the view to `now` and return the ids that turned stale and those that expired."""
        if now < self._next_deadline:
            return (), ()
        silence = {host_id: now - e.state.received_at for host_id, e in self._hosts.items()}
        expired = [
            host_id
            for host_id, seconds in silence.items()
            if seconds >= self.policy.expire_after_seconds
        ]
        for host_id in expired:
            self._remove(host_id)
        stale = [
            host_id
            for host_id, entry in self._hosts.items()
            if silence[host_id] >= self.policy.stale_after_seconds
            and entry.state.freshness is Freshness.FRESH
        ]
        for host_id in stale:
            entry = self._hosts[host_id]
            self._revision += 1
            entry.state = entry.state._replace(freshness=Freshness.STALE, revision=self._revision)
            self._hosts.move_to_end(host_id)
        self._forget_departed(now)
        self._next_deadline = self._earliest_deadline(now)
        return tuple(stale), tuple(expired)

    def _forget_departed(self, now: float) -> None:
        for host_id, departure in list(self._departed.items()):
            if now - departure.at >= self.policy.expire_after_seconds:
                del self._departed[host_id]

    def _earliest_deadline(self, now: float) -> float:
        stale_after = self.policy.stale_after_seconds
        expire_after = self.policy.expire_after_seconds
        deadlines = [
            entry.state.received_at
            + (stale_after if entry.state.freshness is Freshness.FRESH else expire_after)
            for entry in self._hosts.values()
        ]
        deadlines += [departure.at + expire_after for departure in self._departed.values()]
        # A host that joins or comes back later is stale no earlier than the last of these.
        return min([*deadlines, now + min(stale_after, expire_after)])

    def hosts(self, now: float, wanted: FleetFilter = EVERYTHING) -> tuple[HostState, ...]:
        """Return the wanted hosts that have not expired, ordered by id."""
        self.advance(now)
        states = (entry.state for entry in self._hosts.values())
        return tuple(
            sorted(
                (state for state in states if wanted.matches(state)),
                key=lambda state: state.host.host_id,
            )
        )

    def changes_since(
        self, revision: int, now: float, wanted: FleetFilter = EVERYTHING
    ) -> FleetChanges:
        """Return what a reader at `revision` with this filter has to change.

        A host that is no longer wanted, by what is on it, counts as removed. Removed ids may
        include hosts the reader never had. Raises `RevisionTooOld` when the revision is older than
        the removals that are remembered, or was never given out.
        """
        self.advance(now)
        if revision > self._revision or not self._removals.covers(revision):
            raise RevisionTooOld(
                "the changes since that point are no longer known; watch again without a token"
            )
        later: list[HostState] = []
        for entry in reversed(self._hosts.values()):
            if entry.state.revision <= revision:
                break
            later.append(entry.state)
        changed = sorted(
            (state for state in later if wanted.matches(state)),
            key=lambda state: state.host.host_id,
        )
        removed = {
            state.host.host_id
            for state in later
            # One that was wanted and is not has changed its shape since.
            if state.shape_revision > revision
            and wanted.may_have_matched(state.host.host_id, state.tiers_ever)
            and not wanted.matches(state)
        }
        removed.update(
            removal.host_id
            for removal in self._removals.after(revision)
            if wanted.may_have_matched(removal.host_id, removal.tiers_ever)
            and not self._shown(removal.host_id, wanted)
        )
        return FleetChanges(self._revision, tuple(changed), tuple(sorted(removed)))

    def _shown(self, host_id: str, wanted: FleetFilter) -> bool:
        entry = self._hosts.get(host_id)
        return entry is not None and wanted.matches(entry.state)

    def aggregates(
        self,
        now: float,
        tiers: frozenset[Tier] = frozenset(),
        latency_slots: tuple[int, int] | None = None,
        *,
        counted_here: bool = False,
    ) -> tuple[TierAggregate, ...]:
        """Return the aggregate of every tier that has or had a server, ordered by tier.

        Latencies are of the policy's window, or of the slots from first to last of
        `latency_slots`. With `counted_here` they are over the hosts that count at this collector,
        and there are none while all hosts count at others.
        """
        self.advance(now)
        wanted = [
            tier for tier in Tier if tier in self._tiers_seen and (not tiers or tier in tiers)
        ]
        entries: Iterable[_Entry] = self._hosts.values()
        if counted_here:
            entries = [e for e in entries if not e.state.report.collectors_before]
            if self._hosts and not entries:
                return ()
            served = {tier for e in self._hosts.values() for tier in e.state.tiers}
            here = {tier for e in entries for tier in e.state.tiers}
            # A tier that counts elsewhere alone is not one without servers.
            wanted = [tier for tier in wanted if tier in here or tier not in served]
        members: Mapping[Tier, list[TierMember]] = {tier: [] for tier in wanted}
        slots = latency_slots or self._window_slots(now)
        for entry in entries:
            for member in self._members(entry, slots):
                if member.server.tier in members:
                    members[member.server.tier].append(member)
        return tuple(aggregate_tier(tier, members[tier]) for tier in wanted)

    def _window_slots(self, now: float) -> tuple[int, int]:
        last = self.slot_at(now)
        return last - int(self.policy.window_seconds / self.policy.slot_seconds), last

    def slot_at(self, now: float) -> int:
        """Return the number of the latency slot that `now` falls into."""
        return int(now // self.policy.slot_seconds)

    @staticmethod
    def _members(entry: _Entry, slots: tuple[int, int]) -> Iterable[TierMember]:
        report = entry.state.report
        fresh = entry.state.freshness is Freshness.FRESH
        gpus = attribute_loads(report)
        claimed: set[Tier] = set()
        for server in report.servers:
            first_token, inter_token = entry.latency.between(server.server_id, slots)
            yield TierMember(
                server=server,
                fresh=fresh,
                time_to_first_token=first_token,
                inter_token_latency=inter_token,
                gpus=() if server.tier in claimed else gpus.get(server.tier, ()),
                energy=(
                    None if server.tier in claimed else entry.energy.between(server.tier, slots)
                ),
            )
            claimed.add(server.tier)
