"""Follows the local AWS: which instances run, which get a notice, which are gone."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import aiohttp
import structlog

from servicekit.clock import Clock

__all__ = ["FleetInstance", "InstanceChange", "InstanceFeed", "StockTaking"]

log = structlog.get_logger(__name__)

_POLL_SECONDS = 20.0
_TIMEOUT = aiohttp.ClientTimeout(total=_POLL_SECONDS + 10.0)
_FIRST_BACKOFF_SECONDS = 0.2
_MAXIMUM_BACKOFF_SECONDS = 5.0
# EC2's state reason of a host that failed under the instance, instead of shutting it down.
_HARDWARE_FAILURE = "Server.InternalError"


class InstanceChange(Enum):
    """What happened to an instance, as far as its host is concerned."""

    RUNNING = "instance-running"
    INTERRUPTION_NOTICE = "spot-interruption-notice"
    GONE = "instance-shutting-down"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetInstance:
    """An instance as the local AWS tells it.

    `termination_time` is when a noticed Spot instance is taken back; `failed` says that it went
    down without a chance to say goodbye.
    """

    instance_id: str
    instance_type: str
    zone: str
    tier: str
    is_spot: bool
    running_time: float
    termination_time: datetime | None
    failed: bool

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "FleetInstance":
        """Return the instance of the control API's JSON."""
        noticed = document["interruption_notice_time"] is not None
        termination = document["termination_time"]
        return cls(
            instance_id=document["instance_id"],
            instance_type=document["instance_type"],
            zone=document["zone"],
            tier=document["tier"],
            is_spot=document["market"] == "spot",
            running_time=document["running_time"] or document["launch_time"],
            termination_time=(
                datetime.fromtimestamp(termination, UTC) if noticed and termination else None
            ),
            failed=document["state_reason"] == _HARDWARE_FAILURE,
        )


@dataclass(frozen=True, slots=True)
class StockTaking:
    """All instances that run; hosts of others no longer exist."""

    running: tuple[FleetInstance, ...]


class InstanceFeed:
    """Reads the event feed by long polls, and the whole list whenever the feed has a gap."""

    def __init__(self, aws_url: str, session: aiohttp.ClientSession, clock: Clock) -> None:
        self._url = aws_url.rstrip("/") + "/_local"
        self._session = session
        self._clock = clock

    async def follow(self) -> AsyncIterator[StockTaking | tuple[InstanceChange, FleetInstance]]:
        """Yield the instances that run, then every change, for ever.

        While the local AWS is away nothing is yielded: hosts live on without it. When it comes
        back as another run, the list is yielded again.
        """
        epoch, position, failures = "", 0, 0
        while True:
            try:
                if not epoch:
                    stock = await self._get("/instances", {"state": "running"})
                    yield StockTaking(tuple(map(FleetInstance.from_document, stock["instances"])))
                    epoch, position = stock["epoch"], stock["next"]
                page = await self._get(
                    "/events", {"after": str(position), "timeout_seconds": str(_POLL_SECONDS)}
                )
                failures = 0
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                if failures == 0:
                    log.warning("local_aws_unreachable", cause=type(error).__name__)
                pause = min(_MAXIMUM_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**failures)
                failures = min(failures + 1, 16)
                # What answers next may be another run, whose numbers mean something else.
                epoch = ""
                await self._clock.sleep(pause)
                continue
            if page["epoch"] != epoch or not page["complete"]:
                epoch = ""
                continue
            position = page["next"]
            for event in page["events"]:
                change = _change_of(event)
                if change is not None:
                    yield change, FleetInstance.from_document(event["instance"])

    async def _get(self, path: str, query: Mapping[str, str]) -> Any:
        async with self._session.get(
            self._url + path, params=query, timeout=_TIMEOUT, raise_for_status=True
        ) as response:
            return await response.json()


def _change_of(event: Mapping[str, Any]) -> InstanceChange | None:
    try:
        return InstanceChange(event["kind"]) if event["instance"] is not None else None
    except ValueError:
        return None
