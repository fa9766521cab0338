"""What the GPUs and model servers of the fleet told over time, in bounded memory.

Memory is that of the tracks, one for each GPU and server; when as many are kept as may be, those
that went away the longest ago make room, and a newcomer for which there is none has no history. A
GPU counts for the tier and servers that it has now.
"""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from gpu_metrics.domain.aggregate import attribute_gpus
from gpu_metrics.domain.history_ring import (
    HistoryLengths,
    Track,
    make_longer_cells,
    put_cells,
)
from gpu_metrics.domain.host_ingest import AcceptedReport
from gpu_metrics.domain.pending_samples import GPU_METRICS, PendingSamples
from gpu_metrics.domain.readings import (
    HostReport,
    ModelServerReading,
    Tier,
    gpu_history_figures,
    gpu_uuids,
    known,
)
from gpu_metrics.domain.samples import FleetMetric

__all__ = ["GPU_METRICS", "SERVER_METRICS", "History", "Subject"]

SERVER_METRICS = (
    FleetMetric.RUNNING_REQUESTS,
    FleetMetric.WAITING_REQUESTS,
    FleetMetric.KV_CACHE_USAGE_PERMILLE,
    FleetMetric.GENERATION_TOKENS_PER_SECOND,
)
"""The figures of a model server."""

_MOST_STAYS = 8
# Of so many hosts samples become cells in turn; nobody is to wait for more than milliseconds.
_FOLDED_TOGETHER = 4
_NOTHING: AbstractSet[int] = frozenset()


@dataclass(slots=True, eq=False)
class Subject:
    """A GPU or a model server. `stays` are the seconds from when to when it was known.

    The end of a stay is None while it lasts. `server_ids` are the servers that run on a GPU, and
    a server's own.
    """

    key: str
    host_id: str
    metrics: tuple[FleetMetric, ...]
    server_ids: frozenset[str] = frozenset()
    tiers: frozenset[Tier] = frozenset()
    track: Track | None = None
    stays: list[tuple[int, int | None]] = field(default_factory=list)

    def cells(
        self, metric: FleetMetric, start: int, end: int, resolution: int
    ) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield what `Track.cells` does of a figure; nothing for one that is not its own."""
        if self.track is None or metric not in self.metrics:
            return iter(())
        return self.track.cells(self.metrics.index(metric), start, end, resolution)

    @property
    def left_at(self) -> int | None:
        """Return when it was known last, None while it is."""
        return self.stays[-1][1]


@dataclass(slots=True)
class _HostTracks:
    uuids: tuple[str, ...]
    topology: tuple[object, ...]
    gpus: list[Subject]
    servers: dict[str, Subject]
    pending: PendingSamples
    # Which of the host's figures are whose: from where, to before where.
    places: list[tuple[Subject, int, int]]
    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)


class History:
    """Keeps the samples that the view takes in; `started` is the second it began."""

    def __init__(self, lengths: HistoryLengths, *, maximum_bytes: int, started: int = 0) -> None:
        self.lengths = lengths
        self.started = started
        self.maximum_figures = maximum_bytes // lengths.bytes_per_figure
        # Samples, or seconds of samples, that there was no room for.
        self.refused_samples = 0
        self._figure_count = 0
        self._newest = started
        self._hosts: dict[str, _HostTracks] = {}
        # Hosts of which enough waits.
        self._worth_folding: dict[str, None] = {}
        self._gpus: dict[str, Subject] = {}
        self._servers: dict[str, Subject] = {}
        # Those that went away, the longest gone first.
        self._gone: dict[Subject, None] = {}

    def observe(self, report: HostReport, accepted: AcceptedReport) -> None:
        """Take in what is accepted of a report."""
        uuids = gpu_uuids(report.gpus)
        second = accepted.reading_second
        host = self._hosts.get(report.host.host_id)
        topology: tuple[object, ...] = ()
        if report.servers:
            topology = tuple([(s.server_id, s.tier, s.gpu_uuids) for s in report.servers])
        if host is None or host.uuids != uuids or host.topology != topology:
            if host is not None:
                self._fold(host)
            host = self._settle(report, uuids, topology, second)
        told = _NOTHING
        if accepted.blocks or accepted.series:
            told = host.pending.add_samples(accepted)
        if second is not None:
            self._newest = max(self._newest, second)
            figures = _figures_now(report, host.tokens, told, second)
            if figures:
                host.pending.add_readings(second, figures)
        if host.pending.enough:
            self._worth_folding[report.host.host_id] = None
            if host.pending.full or len(self._worth_folding) >= _FOLDED_TOGETHER:
                self._fold_together()

    def _fold_together(self) -> None:
        """Put what is worth it into the tracks, of one host after the other.

        It is the same work for each, and by itself it would begin with nothing of it at hand.
        """
        for host_id in self._worth_folding:
            host = self._hosts.get(host_id)
            if host is not None:
                self._fold(host)
        self._worth_folding.clear()

    def _fold(self, host: _HostTracks) -> None:
        """Put what a host told lately into the tracks of its GPUs and servers."""
        told = host.pending.take()
        if told is None:
            return
        parts = []
        for subject, begin, end in host.places:
            track = subject.track
            if track is None:
                seconds = told.seconds_with_samples(begin, end)
                if seconds:
                    track = self._begin_track(subject)
                if track is None:
                    self.refused_samples += seconds
            parts.append((track, begin, end))
        put_cells(parts, told)

    def _begin_track(self, subject: Subject) -> Track | None:
        width = len(subject.metrics)
        while self._figure_count + width > self.maximum_figures:
            if not self._make_room():
                return None
        self._figure_count += width
        subject.track = Track(self.lengths, width)
        return subject.track

    def _make_room(self) -> bool:
        for subject in self._gone:
            self._forget(subject)
            return True
        return False

    def _forget(self, subject: Subject) -> None:
        if subject.track is not None:
            self._figure_count -= len(subject.metrics)
        self._gone.pop(subject, None)
        subjects = self._gpus if subject.metrics is GPU_METRICS else self._servers
        del subjects[subject.key]

    def _settle(
        self,
        report: HostReport,
        uuids: tuple[str, ...],
        topology: tuple[object, ...],
        second: int | None,
    ) -> _HostTracks:
        """Note which GPUs and servers a host has now."""
        at = self._newest if second is None else second
        self._newest = max(self._newest, at)
        host_id = report.host.host_id
        before = self._hosts.get(host_id)
        gpus = [self._subject(self._gpus, uuid, host_id, GPU_METRICS, at) for uuid in uuids]
        servers = {
            server.server_id: self._subject(
                self._servers, server.server_id, host_id, SERVER_METRICS, at
            )
            for server in report.servers
        }
        self._attribute(report, gpus, servers)
        present = {id(subject) for subject in (*gpus, *servers.values())}
        if before is not None:
            for subject in (*before.gpus, *before.servers.values()):
                if id(subject) not in present:
                    self._end_stay(subject, at)
        tokens = before.tokens if before is not None else {}
        places: list[tuple[Subject, int, int]] = []
        width = 0
        for subject in (*gpus, *[servers[server.server_id] for server in report.servers]):
            places.append((subject, width, width + len(subject.metrics)))
            width += len(subject.metrics)
        host = _HostTracks(
            uuids,
            topology,
            gpus,
            servers,
            PendingSamples(len(gpus), width),
            places,
            tokens={name: tokens[name] for name in servers if name in tokens},
        )
        self._hosts[host_id] = host
        return host

    def _subject(
        self,
        subjects: dict[str, Subject],
        key: str,
        host_id: str,
        metrics: tuple[FleetMetric, ...],
        at: int,
    ) -> Subject:
        subject = subjects.get(key)
        if subject is None:
            subject = subjects[key] = Subject(key, host_id, metrics)
        subject.host_id = host_id
        self._gone.pop(subject, None)
        if not subject.stays or subject.left_at is not None:
            subject.stays.append((at, None))
        if len(subject.stays) > _MOST_STAYS:
            # Known a little too long is nearer the truth than never known.
            subject.stays[:2] = [(subject.stays[0][0], subject.stays[1][1])]
        return subject

    @staticmethod
    def _attribute(
        report: HostReport, gpus: Sequence[Subject], servers: dict[str, Subject]
    ) -> None:
        for server in report.servers:
            servers[server.server_id].tiers = frozenset({server.tier})
            servers[server.server_id].server_ids = frozenset({server.server_id})
        attributed = {
            tier: {gpu.gpu_uuid for gpu in of_tier}
            for tier, of_tier in (attribute_gpus(report) if report.servers else {}).items()
        }
        alone = len(report.servers) == 1
        for gpu in gpus:
            gpu.tiers = frozenset(tier for tier, uuids in attributed.items() if gpu.key in uuids)
            gpu.server_ids = frozenset(
                server.server_id
                for server in report.servers
                if gpu.key in server.gpu_uuids or (alone and not server.gpu_uuids)
            )

    def _end_stay(self, subject: Subject, at: int) -> None:
        begin, until = subject.stays[-1]
        if until is None:
            subject.stays[-1] = (begin, max(begin, at))
            self._gone[subject] = None

    def host_left(self, host_id: str) -> None:
        """Note that a host is known no longer; what it told stays."""
        host = self._hosts.pop(host_id, None)
        if host is not None:
            self._fold(host)
            for subject in (*host.gpus, *host.servers.values()):
                if subject.host_id == host_id:
                    self._end_stay(subject, self._newest)

    def expire(self, now: int) -> None:
        """Forget what went away so long ago that none of its cells are kept."""
        reach = self.lengths.span_seconds(60)
        for subject in list(self._gone):
            if subject.left_at is not None and now - subject.left_at > reach:
                self._forget(subject)

    def fold(self, subject: Subject) -> None:
        """Put what was observed of a GPU or server into its cells, so that they tell all."""
        host = self._hosts.get(subject.host_id)
        if host is not None:
            self._fold(host)
            make_longer_cells([each.track for each, _, _ in host.places if each.track is not None])

    def _subjects(self) -> Iterator[Subject]:
        yield from self._gpus.values()
        yield from self._servers.values()

    def gpu(self, uuid: str) -> Subject | None:
        """Return a GPU that is remembered, its cells up to date."""
        subject = self._gpus.get(uuid)
        if subject is not None:
            self.fold(subject)
        return subject

    def server(self, server_id: str) -> Subject | None:
        """Return a model server that is remembered, its cells up to date."""
        subject = self._servers.get(server_id)
        if subject is not None:
            self.fold(subject)
        return subject

    def gpus(self) -> Iterable[Subject]:
        """Return all GPUs that are remembered."""
        return self._gpus.values()

    def servers(self) -> Iterable[Subject]:
        """Return all model servers that are remembered."""
        return self._servers.values()

    @property
    def bytes_held(self) -> int:
        """Return the memory of all cells."""
        return sum(
            subject.track.bytes_held for subject in self._subjects() if subject.track is not None
        )


def _figures_now(
    report: HostReport, tokens: dict[str, tuple[int, int]], told: AbstractSet[int], second: int
) -> list[float | None]:
    """Return a report's readings but for the figures that are told already; none if all are."""
    gpu_figures = len(report.gpus) * len(GPU_METRICS)
    figures: list[float | None] = []
    if len(told) < gpu_figures:
        figures = gpu_history_figures(report.gpus)
        # The samples of a series are the same figure, told better.
        for place in told:
            figures[place] = None
    elif report.servers:
        figures = [None] * gpu_figures
    for server in report.servers:
        figures += _figures_of(server, tokens, report.monotonic_microseconds or second * 10**6)
    return figures


def _figures_of(
    server: ModelServerReading, tokens_before: dict[str, tuple[int, int]], at: int
) -> tuple[float | None, ...]:
    """Return the figures of `SERVER_METRICS`, and remember the tokens told at a microsecond."""
    tokens = known(server.generation_tokens_total)
    rate: float | None = None
    if tokens is not None:
        before, before_at = tokens_before.get(server.server_id, (0, 0))
        # Fewer than before: the server started again.
        if before_at and at > before_at and tokens >= before:
            rate = (tokens - before) * 1e6 / (at - before_at)
        tokens_before[server.server_id] = (tokens, at)
    return (
        known(server.running_requests),
        known(server.waiting_requests),
        known(server.kv_cache_usage_permille),
        rate,
    )
