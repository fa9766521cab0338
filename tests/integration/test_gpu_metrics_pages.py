"""The pages for Prometheus and the OTLP export of a collector that runs, read by real readers."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gpu_metrics.adapters.prometheus import serve_prometheus
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.readings import (
    GpuReading,
    Host,
    HostReport,
    MissingReason,
    ModelServerReading,
    Tier,
)
from gpu_metrics.fleet_instruments import FleetInstruments
from gpu_metrics.prometheus_settings import parse_prometheus_address
from servicekit.clock import SystemClock
from servicekit.telemetry import Telemetry, TelemetrySettings
from servicekit.testing import FakeClock

CLOCK = SystemClock()


def parsed(page: str, kind: str) -> dict[str, Any]:
    """What Prometheus's own reader makes of a page."""
    parse = parse_openmetrics if kind == "openmetrics" else parse_text
    return {
        family.name: {
            "type": family.type,
            "unit": family.unit,
            "samples": [[s.name, s.labels, s.value] for s in family.samples],
        }
        for family in parse(page)
    }


def no_xid(host_id: str, gpu_uuid: str) -> int:
    return 0


def a_gpu(host: int, index: int, **readings: Any) -> GpuReading:
    figures: dict[str, Any] = {
        "product_name": "NVIDIA A10G",
        "utilization_permille": 375,
        "peak_utilization_permille": 990,
        "memory_utilization_permille": 120,
        "memory_used_bytes": 6 * 2**30 + index,
        "memory_total_bytes": 24 * 2**30,
        "power_milliwatts": 150_500,
        "power_limit_milliwatts": 300_000,
        "energy_millijoules": 123_456_789,
        "temperature_celsius": 61,
        "memory_temperature_celsius": 70,
        "sm_clock_megahertz": 1710,
        "memory_clock_megahertz": 6251,
        "clock_event_reasons": 4,
        "pcie_transmit_bytes_per_second": 1_000_000,
        "pcie_receive_bytes_per_second": 2_000_000,
        "pcie_replays_total": 3,
        "ecc_corrected_total": 0,
        "ecc_uncorrected_total": 0,
    }
    return GpuReading(gpu_uuid=f"GPU-{host}-{index}", index=index, **{**figures, **readings})


def a_view(hosts: int, gpus: int, **readings: Any) -> FleetView:
    view = FleetView(FleetPolicy())
    for host in range(hosts):
        report = HostReport(
            host=Host(host_id=f"i-{host}", driver_version='570.1 "x"\\y'),
            boot_id="boot",
            sequence=1,
            sample_time=CLOCK.now(),
            gpus=tuple(a_gpu(host, index, **readings) for index in range(gpus)),
            servers=(
                ModelServerReading(server_id=f"s-{host}", endpoint_url="http://h", tier=Tier.GOLD),
            ),
        )
        view.apply(report, CLOCK.monotonic(), CLOCK.now())
    return view


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def read(
    http: aiohttp.ClientSession, where: tuple[str, int], path: str, accept: str = "*/*"
) -> tuple[str, str]:
    url = f"http://{where[0]}:{where[1]}{path}"
    async with http.get(url, headers={"Accept": accept}) as response:
        assert response.status == 200
        return await response.text(), response.headers["Content-Type"]


async def test_prometheus_itself_reads_the_page_in_base_units(
    http: aiohttp.ClientSession,
) -> None:
    view = a_view(2, 2, temperature_celsius=MissingReason.TIMEOUT)
    async with serve_prometheus(
        ("127.0.0.1", 0), lambda: view.hosts(CLOCK.monotonic()), clock=CLOCK, last_xid=no_xid
    ) as where:
        page, content_type = await read(http, where, "/metrics", "application/openmetrics-text")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = await asyncio.to_thread(parsed, page, "openmetrics")
    utilization = families["hw_gpu_utilization_ratio"]
    assert (utilization["type"], utilization["unit"]) == ("gauge", "ratio")
    assert [value for _, _, value in utilization["samples"]] == [0.375] * 4
    assert families["hw_energy_joules"]["type"] == "counter"
    assert families["hw_gpu"]["type"] == "info"
    # The core's temperature is missing: only the memory's is there, and nothing is 0.
    locations = {labels["hw_sensor_location"] for _, labels, _ in
                 families["hw_temperature_celsius"]["samples"]}  # fmt: skip
    assert locations == {"memory"}
    _, labels, _ = families["hw_gpu"]["samples"][0]
    assert (labels["tier"], labels["hw_driver_version"]) == ("gold", '570.1 "x"\\y')


@pytest.mark.parametrize("path", ["/metrics", "/metrics/dcgm"])
async def test_an_older_reader_gets_the_text_format(http: aiohttp.ClientSession, path: str) -> None:
    view = a_view(1, 2)
    async with serve_prometheus(
        ("127.0.0.1", 0), lambda: view.hosts(CLOCK.monotonic()), clock=CLOCK, last_xid=no_xid
    ) as where:
        page, content_type = await read(http, where, path)
    assert content_type.startswith("text/plain; version=0.0.4")
    families = await asyncio.to_thread(parsed, page, "text")
    if path == "/metrics/dcgm":
        (_, labels, value), _ = families["DCGM_FI_DEV_GPU_UTIL"]["samples"]
        assert value == 37.5
        assert labels.keys() >= {"gpu", "UUID", "device", "modelName", "Hostname"}
        assert families["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]["type"] == "counter"
    else:
        assert families["hw_energy_joules"]["type"] == "counter"


async def test_a_page_is_made_once_a_second_however_many_ask(http: aiohttp.ClientSession) -> None:
    view, made, clock = a_view(1, 1), [], FakeClock()

    def hosts() -> Any:
        made.append(1)
        return view.hosts(CLOCK.monotonic())

    async with serve_prometheus(("127.0.0.1", 0), hosts, clock=clock, last_xid=no_xid) as where:
        await asyncio.gather(*(read(http, where, "/metrics") for _ in range(20)))
        assert len(made) == 1
        await clock.advance(1.5)
        await read(http, where, "/metrics")
    assert len(made) == 2


async def test_1000_gpus_make_a_page_that_can_be_scraped_every_few_seconds(
    http: aiohttp.ClientSession, record_property: Any
) -> None:
    view = a_view(125, 8)
    async with serve_prometheus(
        ("127.0.0.1", 0), lambda: view.hosts(CLOCK.monotonic()), clock=CLOCK, last_xid=no_xid
    ) as where:
        before = time.process_time()
        page, _ = await read(http, where, "/metrics")
        cpu_seconds = time.process_time() - before
    record_property("cpu_seconds", cpu_seconds)
    assert len(re.findall(r"^hw_gpu_utilization_ratio\{", page, re.MULTILINE)) == 1000
    # Several times what it takes: a scrape every 15 s stays below a tenth of a core.
    assert cpu_seconds < 1.5


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        (":9400", ("127.0.0.1", 9400)),
        ("10.0.0.7:9400", ("10.0.0.7", 9400)),
        ("[::1]:9400", ("::1", 9400)),
    ],
)
def test_addresses_are_on_loopback_unless_said_otherwise(
    text: str, address: tuple[str, int] | None
) -> None:
    assert parse_prometheus_address(text) == address


@pytest.mark.parametrize("text", ["9400", "host:", "host:port", "host:70000"])
def test_a_wrong_address_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_prometheus_address(text)


class OtlpReceiver(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps what an exporter sends."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.came = asyncio.Event()

    async def Export(  # noqa: N802  # the name is the contract's
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, _: Any
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.metrics |= {metric.name: metric for metric in scope.metrics}
        self.came.set()
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_figures_are_exported_over_otlp_under_the_conventions_names() -> None:
    server, receiver = grpc.aio.server(), OtlpReceiver()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        receiver, server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    view = a_view(1, 2, temperature_celsius=MissingReason.HUNG)
    settings = TelemetrySettings(
        log_level="info",
        log_format="json",
        log_all_calls=False,
        otlp_endpoint=f"http://127.0.0.1:{port}",
    )
    telemetry = Telemetry("gpu_metrics", settings)
    instruments = FleetInstruments(
        lambda: view.hosts(CLOCK.monotonic()), clock=CLOCK, telemetry=telemetry
    )
    looking = asyncio.ensure_future(instruments.look())
    await asyncio.sleep(0)
    # Closing exports what there is.
    await asyncio.to_thread(telemetry.close)
    looking.cancel()
    async with asyncio.timeout(30):
        await receiver.came.wait()
    await server.stop(None)
    utilization = receiver.metrics["hw.gpu.utilization"]
    assert utilization.unit == "1"
    assert [point.as_double for point in utilization.gauge.data_points] == [0.375, 0.375]
    attributes = {a.key: a.value.string_value for a in utilization.gauge.data_points[0].attributes}
    assert attributes["hw.type"] == "gpu"
    assert attributes["host.id"] == "i-0"
    assert receiver.metrics["hw.energy"].sum.is_monotonic
    points = receiver.metrics["hw.temperature"].gauge.data_points
    # A figure that is missing gives no point.
    assert {a.value.string_value for p in points for a in p.attributes
            if a.key == "hw.sensor_location"} == {"memory"}  # fmt: skip


async def test_a_collector_serves_the_pages_where_it_is_told_to(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    environ = {
        **os.environ,
        "GAMEKEEPER_LISTEN_ADDRESS": "127.0.0.1:0",
        "GPU_METRICS_PROMETHEUS_ADDRESS": ":0",
        "GPU_METRICS_CLOUDWATCH_ENABLED": "false",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gpu_metrics", "collector"),
        env=environ,
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"prometheus_serving" not in (line := await process.stderr.readline()):
                assert line, "the collector ended"
            host, _, port = json.loads(line)["address"].rpartition(":")
            page, _ = await read(
                http, (host, int(port)), "/metrics", "application/openmetrics-text"
            )
        assert page.endswith("# EOF\n")
    finally:
        process.terminate()
        async with asyncio.timeout(60):
            _, _ = await process.communicate()
    assert (host, process.returncode) == ("127.0.0.1", 0)
