"""How the fleet is drawn, from what a collector tells."""

import io
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from gamekeeper.cli.fleet_table import FleetSort, ShownFleet, bar, show_hosts, throttling
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, samples_pb2

NOW = Timestamp(seconds=1000)


def a_gpu(uuid: str = "GPU-1", **readings: Any) -> fleet_pb2.GpuSample:
    figures: dict[str, Any] = {
        "product_name": "NVIDIA A10G",
        "utilization_permille": 735,
        "memory_used_bytes": 6 * 2**30,
        "memory_total_bytes": 24 * 2**30,
        "power_milliwatts": 150_000,
    }
    return fleet_pb2.GpuSample(gpu_uuid=uuid, **{**figures, **readings})


def a_host(
    host_id: str, *gpus: fleet_pb2.GpuSample, stale: bool = False, servers: Any = ()
) -> fleet_pb2.HostView:
    return fleet_pb2.HostView(
        host=fleet_pb2.Host(host_id=host_id),
        gpus=gpus,
        servers=servers,
        freshness=fleet_pb2.FRESHNESS_STALE if stale else fleet_pb2.FRESHNESS_FRESH,
        receive_time=Timestamp(seconds=988 if stale else 999),
    )


def a_server(name: str, *uuids: str) -> fleet_pb2.ModelServerSample:
    return fleet_pb2.ModelServerSample(
        server_id=name,
        tier=tier_pb2.TIER_GOLD,
        state=fleet_pb2.MODEL_SERVER_STATE_READY,
        gpu_uuids=uuids,
    )


def shown(*hosts: fleet_pb2.HostView, width: int = 200, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        console.print(show_hosts(hosts, NOW, console, **options))
    return capture.get().splitlines()


def line_with(lines: list[str], text: str) -> str:
    return next(line for line in lines if text in line)


def test_a_gpu_is_a_row_with_bars_below_its_host() -> None:
    lines = shown(a_host("i-1", a_gpu(), servers=[a_server("gold-1", "GPU-1")]))
    assert lines[1].startswith("i-1  1.0 s ago")
    row = line_with(lines, "gold-1")
    assert "███████▍··  74 %" in row
    assert "25 % 6.0/24 GiB" in row
    assert "GPUs: 1, hosts: 1" in lines[-1]


def test_a_hung_gpu_says_so_and_shows_no_zero() -> None:
    gpu = a_gpu()
    gpu.ClearField("utilization_permille")
    gpu.missing.add(field="utilization_permille", reason=fleet_pb2.MISSING_REASON_HUNG)
    row = line_with(shown(a_host("i-1", gpu)), "A10G")
    assert "- hung" in row
    assert " 0 %" not in row


def test_a_silent_host_is_said_to_be_and_counted() -> None:
    lines = shown(a_host("i-1", a_gpu(), stale=True))
    assert "silent for 12 s" in lines[1]
    assert "of these silent: 1" in lines[-1]


def test_a_silent_host_is_greyed() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(show_hosts([a_host("i-1", a_gpu(), stale=True)], NOW, console))
    row = line_with(capture.get().splitlines(), "A10G")
    assert "\x1b[2m" in row
    assert "\x1b[33m" not in row  # the yellow of a busy GPU


def test_a_server_on_several_gpus_is_shown_once_and_one_without_in_a_row_of_its_own() -> None:
    servers = [a_server("gold-1", "GPU-1", "GPU-2"), a_server("cpu-1")]
    lines = shown(a_host("i-1", a_gpu("GPU-1"), a_gpu("GPU-2", index=1), servers=servers))
    assert sum("gold-1" in line for line in lines) == 1
    assert "%" not in line_with(lines, "cpu-1")


def test_the_highest_figure_comes_first_when_asked_for() -> None:
    hosts = [a_host("i-1", a_gpu()), a_host("i-2", a_gpu(utilization_permille=980))]
    lines = shown(*hosts, sort=FleetSort.UTILIZATION)
    order = [line.split()[0] for line in lines if line.startswith("i-")]
    assert order == ["i-2", "i-1"]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
def test_no_line_is_wider_than_the_terminal_and_utilization_is_always_there(width: int) -> None:
    lines = shown(a_host("i-1", a_gpu(), servers=[a_server("gold-1", "GPU-1")]), width=width)
    assert max(map(len, lines)) <= width
    assert any("74 %" in line for line in lines)


@pytest.mark.parametrize(
    ("reasons", "text"),
    [(0x0, ""), (0x1, ""), (0x4, "POWER"), (0x20, "HOT"), (0x44, "HOT POWER"), (0x8, "SLOWED")],
)
def test_what_holds_the_clocks_back_is_marked_and_idling_is_not(reasons: int, text: str) -> None:
    marks = throttling(fleet_pb2.GpuSample(clock_event_reasons=reasons))
    assert marks.plain.strip() == text


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, "····"), (0.5, "██··"), (0.53125, "██▏·"), (1, "████"), (7, "████"), (-1, "····")],
)
def test_bars_grow_by_eighths_and_stay_in_bounds(share: float, expected: str) -> None:
    assert bar(share, cells=4) == expected


def test_a_terminal_without_unicode_gets_plain_bars() -> None:
    assert bar(0.5, cells=4, plain=True) == "##.."


def test_a_followed_fleet_changes_and_forgets_hosts() -> None:
    fleet = ShownFleet(host="i-")
    fleet.replace([a_host("i-1", a_gpu()), a_host("i-2", a_gpu()), a_host("other", a_gpu())])
    fleet.change([a_host("i-1", a_gpu(utilization_permille=10))], ["i-2"])
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as capture:
        console.print(fleet.render(NOW, console))
    assert "  1 %" in line_with(capture.get().splitlines(), "A10G")
    assert "hosts: 1" in capture.get()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_whether_a_server_is_well_is_seen_on_every_terminal(width: int) -> None:
    server = a_server("gold-1", "GPU-1")
    server.state = fleet_pb2.MODEL_SERVER_STATE_UNHEALTHY
    row = line_with(shown(a_host("i-1", a_gpu(), servers=[server]), width=width), "gold-1")
    assert "unhealthy" in row
    assert "25 % 6.0/24 GiB" in row


def test_a_wide_terminal_shows_types_clocks_and_names_of_servers_whole() -> None:
    gpu = a_gpu(product_name="NVIDIA A100-SXM4-80GB", sm_clock_megahertz=1410)
    name = "gold-llama-3-8b-us-east-1a-17"
    row = line_with(shown(a_host("i-1", gpu, servers=[a_server(name, "GPU-1")])), "A100")
    assert "A100-SXM4-80GB " in row
    assert "1,410 MHz" in row
    assert name in row


def test_a_host_says_what_its_agent_costs_and_had_to_give_up() -> None:
    host = a_host("i-1", a_gpu())
    assert "agent:" not in line_with(shown(host), "i-1")
    host.agent_cost.CopyFrom(
        samples_pb2.AgentCost(
            driver_calls=1234,
            driver_time=Duration(seconds=2, nanos=500_000_000),
            cpu_time=Duration(seconds=7),
            resident_bytes=63_000_000,
        )
    )
    told = line_with(shown(host), "i-1")
    assert "agent: 7.0 s CPU, 2.5 s in 1,234 driver calls, 63 MB" in told
    assert "lost" not in told
    assert "replaced" not in told
    host.agent_cost.lost_events, host.agent_cost.replaced_reports = 1, 3
    # Where the terminal ends, what needs somebody is still there.
    assert "1 event lost  3 reports replaced" in line_with(shown(host, width=60), "i-1")
