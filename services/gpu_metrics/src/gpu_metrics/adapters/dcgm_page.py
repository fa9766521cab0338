"""The machine's GPUs as dcgm-exporter's metrics page shows them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import structlog

from gpu_metrics.adapters.http_page import fetch_page
from gpu_metrics.domain.dcgm_exposition import DcgmGpu, parse_dcgm_page
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent
from gpu_metrics.domain.readings import GPU_FIGURES, GpuReading, MissingReason
from gpu_metrics.domain.xid_catalogue import xid_facts
from gpu_metrics.journal import EventJournal
from servicekit.clock import Clock

__all__ = ["DcgmPage"]

log = structlog.get_logger(__name__)

_WAITING_EVENTS = 256


class DcgmPage:
    """Reads a page over a shared HTTP session.

    The page shows the last XID of each GPU. A code that is another one than before is an event; the
    same code twice in a row cannot be told from once, which the driver's own events can. So there
    are none of GPUs that `sees_xids` says another source watches. What the journal holds of an
    earlier run of the agent is not told again.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        clock: Clock,
        journal: EventJournal,
        timeout_seconds: float = 0.4,
        sees_xids: Callable[[str], bool] = lambda gpu_uuid: False,
    ) -> None:
        self._url = url
        self._session = session
        self._clock = clock
        self._journal = journal
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._sees_xids = sees_xids
        self._known: tuple[GpuReading, ...] = ()
        self._last_xids: dict[str, int] = {}
        self._events: asyncio.Queue[ObservedEvent] = asyncio.Queue(_WAITING_EVENTS)
        self._problem: MissingReason | None = None

    async def read_gpus(self) -> Sequence[GpuReading]:
        """Return the GPUs of the page; those it showed before while it cannot be had."""
        page = await fetch_page(self._session, self._url, self._timeout)
        gpus = () if isinstance(page, MissingReason) else parse_dcgm_page(page)
        problem = page if isinstance(page, MissingReason) else None
        if problem is None and not gpus:
            problem = MissingReason.MALFORMED
        self._note(problem)
        if problem is not None:
            return [_without_figures(gpu, problem) for gpu in self._known]
        for gpu in gpus:
            self._take_xid(gpu)
        self._known = tuple(gpu.reading for gpu in gpus)
        return self._known

    async def next_events(self) -> Sequence[ObservedEvent]:
        """Wait for the next XID that the page shows."""
        return (await self._events.get(),)

    def _take_xid(self, gpu: DcgmGpu) -> None:
        uuid, xid = gpu.reading.gpu_uuid, gpu.last_xid
        if xid is None:
            return
        before = self._last_xids.get(uuid)
        if before is None:
            before = self._journal.xid_counts.last_codes.get(uuid, 0)
        if xid and xid != before and not self._sees_xids(uuid):
            if self._events.full():
                # Not noted either, so that it is seen again with the next page.
                return
            self._events.put_nowait(self._event(uuid, xid))
        self._last_xids[uuid] = xid

    def _event(self, gpu_uuid: str, xid: int) -> ObservedEvent:
        facts = xid_facts(xid)
        return ObservedEvent(
            kind=GpuEventKind.XID,
            time=self._clock.now(),
            gpu_uuid=gpu_uuid,
            xid=xid,
            severity=facts.severity,
            recommended_action=facts.action.value,
            description=facts.description,
        )

    def _note(self, problem: MissingReason | None) -> None:
        if problem is self._problem:
            return
        self._problem = problem
        if problem is not None:
            log.warning("dcgm_page_unavailable", url=self._url, cause=problem.name)
        else:
            log.info("dcgm_page_available", url=self._url)


def _without_figures(gpu: GpuReading, reason: MissingReason) -> GpuReading:
    figures: dict[str, Any] = dict.fromkeys(GPU_FIGURES, reason)
    return GpuReading(
        gpu_uuid=gpu.gpu_uuid, index=gpu.index, product_name=gpu.product_name, **figures
    )
