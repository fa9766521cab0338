"""The machine as EC2 and ECS describe it, and what the cloud announces about it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from gpu_metrics.adapters.imds import InstanceMetadata, MetadataUnavailable
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent, Severity
from gpu_metrics.domain.plain_text import plain_text
from gpu_metrics.domain.readings import Host, PurchaseOption
from gpu_metrics.journal import EventJournal
from servicekit.clock import Clock

__all__ = ["Ec2Host", "instance_id"]

log = structlog.get_logger(__name__)

_PURCHASE_OPTIONS = {
    "spot": PurchaseOption.SPOT,
    "on-demand": PurchaseOption.ON_DEMAND,
    "scheduled": PurchaseOption.ON_DEMAND,
    "capacity-block": PurchaseOption.ON_DEMAND,
}
# The identity never changes; while it is not known it is asked for again at this pace.
_IDENTITY_RETRY_SECONDS = 60.0
# Of a service that never answered, as off EC2. A notice comes two minutes ahead.
_LONGEST_PAUSE_SECONDS = 60.0
_WAITING_EVENTS = 16


async def instance_id(metadata: InstanceMetadata) -> str:
    """Return the EC2 instance's id, empty where no metadata service answers."""
    try:
        return plain_text(await metadata.read("instance-id") or "", 128)
    except MetadataUnavailable:
        return ""


class Ec2Host:
    """Fills in what the settings leave open, and watches for Spot notices.

    A notice sets `interruption_time`, a recommendation `rebalance_time`, for as long as the cloud
    repeats them; each is an event once, also across restarts of the agent. They are looked for
    whether or not the rest is known. Without a metadata service the host is as configured, and one
    line in the log says so; one that never answered is asked ever less often, once a minute at
    last.
    """

    def __init__(
        self,
        configured: Host,
        metadata: InstanceMetadata,
        *,
        clock: Clock,
        journal: EventJournal,
        poll_seconds: float = 5.0,
    ) -> None:
        self._host = configured
        self._metadata = metadata
        self._clock = clock
        self._journal = journal
        self._poll_seconds = poll_seconds
        self._identified = False
        self._unidentified: list[MetadataUnavailable] = []
        self._identify_at = clock.monotonic()
        self._answered = False
        self._problem: str | None = None
        self._told: set[tuple[GpuEventKind, datetime]] = set()
        self._events: asyncio.Queue[ObservedEvent] = asyncio.Queue(_WAITING_EVENTS)

    async def read_host(self) -> Host:
        """Return the machine as far as it is known now."""
        return self._host

    async def next_events(self) -> Sequence[ObservedEvent]:
        """Wait for the cloud's next announcement."""
        return (await self._events.get(),)

    async def run(self) -> None:
        """Keep the host up to date until cancelled."""
        pause = self._poll_seconds
        while True:
            problems = await self._ask()
            self._note(problems[0].cause_name if problems else "")
            await self._clock.sleep(
                pause if problems and not self._answered else self._poll_seconds
            )
            pause = max(self._poll_seconds, min(2 * pause, _LONGEST_PAUSE_SECONDS))

    async def _ask(self) -> list[MetadataUnavailable]:
        """Ask for what is due, each also when another could not be had; return what is unknown."""
        if not self._identified and self._clock.monotonic() >= self._identify_at:
            self._identify_at = self._clock.monotonic() + _IDENTITY_RETRY_SECONDS
            self._unidentified = await _problems_of(self._identify)
        problems = list(self._unidentified)
        # The cloud takes back Spot instances alone.
        if self._host.purchase_option is not PurchaseOption.ON_DEMAND:
            problems += await _problems_of(self._poll_interruption)
            problems += await _problems_of(self._poll_rebalance)
        return problems

    async def _read(self, path: str) -> str | None:
        text = await self._metadata.read(path)
        self._answered = True
        return text

    async def _identify(self) -> None:
        if not self._host.instance_type:
            instance_type = await self._read("instance-type") or ""
            self._host = replace(self._host, instance_type=plain_text(instance_type, 32))
        if not self._host.availability_zone:
            zone = await self._read("placement/availability-zone") or ""
            self._host = replace(self._host, availability_zone=plain_text(zone, 32))
        if self._host.purchase_option is PurchaseOption.UNKNOWN:
            life_cycle = await self._read("instance-life-cycle") or ""
            option = _PURCHASE_OPTIONS.get(life_cycle, PurchaseOption.UNKNOWN)
            self._host = replace(self._host, purchase_option=option)
        self._identified = True

    async def _poll_interruption(self) -> None:
        text = await self._read("spot/instance-action")
        if text is None:
            self._host = replace(self._host, interruption_time=None)
            return
        action, due = _document(text, "action"), _time(text, "time")
        self._host = replace(self._host, interruption_time=due)
        await self._tell(
            (GpuEventKind.SPOT_INTERRUPTION, due),
            held=self._journal.holds(GpuEventKind.SPOT_INTERRUPTION, due_time=due),
            event=ObservedEvent(
                kind=GpuEventKind.SPOT_INTERRUPTION,
                time=self._clock.now(),
                due_time=due,
                severity=Severity.CRITICAL,
                recommended_action="move the players elsewhere and let the host go",
                description=f"EC2 takes the Spot instance back: {plain_text(action, 32)}",
            ),
        )

    async def _poll_rebalance(self) -> None:
        text = await self._read("events/recommendations/rebalance")
        if text is None:
            self._host = replace(self._host, rebalance_time=None)
            return
        noticed = _time(text, "noticeTime")
        self._host = replace(self._host, rebalance_time=noticed)
        await self._tell(
            (GpuEventKind.REBALANCE_RECOMMENDATION, noticed),
            held=self._journal.holds(GpuEventKind.REBALANCE_RECOMMENDATION, time=noticed),
            event=ObservedEvent(
                kind=GpuEventKind.REBALANCE_RECOMMENDATION,
                time=noticed,
                severity=Severity.WARNING,
                recommended_action="start a replacement; an interruption is likelier than usual",
                description="EC2 recommends to move off the Spot instance",
            ),
        )

    async def _tell(
        self, key: tuple[GpuEventKind, datetime], *, held: bool, event: ObservedEvent
    ) -> None:
        if key in self._told or held:
            return
        await self._events.put(event)
        self._told.add(key)

    def _note(self, problem: str) -> None:
        """Log when the metadata service comes or goes, once each."""
        if problem == self._problem:
            return
        before, self._problem = self._problem, problem
        if not problem:
            log.info("instance_metadata_available", host_id=self._host.host_id)
        elif not before:
            log.warning(
                "instance_metadata_unavailable",
                cause=problem,
                explanation="the host is as configured and no Spot notice can be seen; on EC2, "
                "give containers the host's network or set the hop limit to 2",
            )


async def _problems_of(ask: Callable[[], Awaitable[None]]) -> list[MetadataUnavailable]:
    try:
        await ask()
    except MetadataUnavailable as problem:
        return [problem]
    return []


def _document(text: str, field: str) -> str:
    """Return a text field of a JSON document. Raises `MetadataUnavailable`."""
    try:
        value = json.loads(text)[field]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise MetadataUnavailable("MALFORMED") from None
    if not isinstance(value, str):
        raise MetadataUnavailable("MALFORMED")
    return value


def _time(text: str, field: str) -> datetime:
    try:
        moment = datetime.fromisoformat(_document(text, field))
    except ValueError:
        raise MetadataUnavailable("MALFORMED") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
