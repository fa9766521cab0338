"""dcgm-exporter's page over real HTTP: figures, XIDs as events, and every way a page can fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from page_server import PageServer, page_server
from structlog.testing import capture_logs

from gpu_metrics.adapters.dcgm_page import DcgmPage
from gpu_metrics.domain.gpu_events import GpuEventKind
from gpu_metrics.domain.readings import MissingReason
from gpu_metrics.journal import EventJournal
from servicekit.clock import SystemClock


def page(*, xid: int = 0, uuid: str = "GPU-a") -> str:
    labels = f'gpu="0",UUID="{uuid}",modelName="NVIDIA L4"'
    return (
        f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} 42\n"
        f"DCGM_FI_DEV_GPU_TEMP{{{labels}}} 2147483634\n"
        f"DCGM_FI_DEV_XID_ERRORS{{{labels}}} {xid}\n"
    )


@asynccontextmanager
async def reading(
    server: PageServer,
    *,
    timeout_seconds: float = 30.0,
    journal: EventJournal | None = None,
    watched_elsewhere: str = "",
) -> AsyncIterator[DcgmPage]:
    async with aiohttp.ClientSession() as session:
        yield DcgmPage(
            f"{server.url}/metrics",
            session,
            clock=SystemClock(),
            journal=journal or EventJournal(),
            timeout_seconds=timeout_seconds,
            sees_xids=lambda uuid: uuid == watched_elsewhere,
        )


async def events_of(source: DcgmPage, server: PageServer, *xids: int) -> list[int]:
    """Show the codes one after the other and return those that were events."""
    for xid in xids:
        server.page = page(xid=xid)
        await source.read_gpus()
    seen: list[int] = []
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0):
                (event,) = await source.next_events()
            assert event.kind is GpuEventKind.XID
            assert (event.gpu_uuid, bool(event.recommended_action)) == ("GPU-a", True)
            seen.append(event.xid)
    return seen


async def test_figures_are_read_and_blanks_are_none() -> None:
    async with page_server(page()) as server, reading(server) as source:
        (gpu,) = await source.read_gpus()
    assert (gpu.gpu_uuid, gpu.product_name, gpu.utilization_permille) == ("GPU-a", "NVIDIA L4", 420)
    assert gpu.temperature_celsius is MissingReason.UNSUPPORTED


async def test_a_last_value_becomes_events() -> None:
    async with page_server() as server, reading(server) as source:
        assert await events_of(source, server, 0, 0, 31, 31, 79, 31, 0, 0, 31) == [31, 79, 31, 31]


async def test_a_value_that_was_told_before_a_restart_is_not_told_again() -> None:
    journal = EventJournal()
    async with page_server() as server:
        async with reading(server, journal=journal) as source:
            server.page = page(xid=31)
            await source.read_gpus()
            await journal.append(await source.next_events())
        async with reading(server, journal=journal) as source:
            assert await events_of(source, server, 31, 48) == [48]


async def test_xids_of_a_gpu_that_the_driver_tells_of_are_left_to_it() -> None:
    async with page_server() as server, reading(server, watched_elsewhere="GPU-a") as source:
        assert await events_of(source, server, 0, 31, 79) == []


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("", 200, MissingReason.MALFORMED),
        ("<html>not metrics</html>", 200, MissingReason.MALFORMED),
        (b"\xff\xfe\x00", 200, MissingReason.MALFORMED),
        (b"DCGM_FI_DEV_GPU_UTIL " * 500_000, 200, MissingReason.MALFORMED),
        ("", 403, MissingReason.PERMISSION),
        ("", 500, MissingReason.UNREACHABLE),
    ],
)
async def test_a_page_that_cannot_be_used_leaves_the_gpus_without_figures(
    body: str | bytes, status: int, reason: MissingReason
) -> None:
    async with page_server(page()) as server, reading(server) as source:
        await source.read_gpus()
        server.page, server.status = body, status
        (gpu,) = await source.read_gpus()
        assert (gpu.gpu_uuid, gpu.utilization_permille) == ("GPU-a", reason)
        server.page, server.status = page(), 200
        (gpu,) = await source.read_gpus()
        assert gpu.utilization_permille == 420


async def test_a_page_that_never_comes_is_given_up() -> None:
    async with page_server(page()) as server:
        async with reading(server) as source:
            await source.read_gpus()
        server.hanging = True
        async with reading(server, timeout_seconds=0.1) as source:
            assert await source.read_gpus() == []


async def test_an_exporter_that_is_gone_is_told_of_once() -> None:
    async with page_server(page()) as server:
        pass
    async with reading(server) as source:
        with capture_logs() as logs:
            assert await source.read_gpus() == []
            assert await source.read_gpus() == []
    assert [entry["event"] for entry in logs] == ["dcgm_page_unavailable"]
