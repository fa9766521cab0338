"""Alerts and events can be read, and their ids copied, however narrow the terminal is."""

import io

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from gamekeeper.cli.fleet_alerts import alerts_table, events_table
from gaming.gpu_metrics.v1 import alerts_pb2, events_pb2

HOST = "i-0f3a9c2d4e5b60001"
GPU = "GPU-5f1c0000-8a3e-4f7b-9c21-000000000001"
ID = "thermal-throttling-3f9a0c61d2e4b7a85f10"


def an_alert(**fields: object) -> alerts_pb2.Alert:
    alert = alerts_pb2.Alert(
        alert_id=ID,
        kind=alerts_pb2.ALERT_KIND_THERMAL_THROTTLING,
        severity=events_pb2.SEVERITY_WARNING,
        host_id=HOST,
        gpu_uuid=GPU,
        reason="GPU 3: its clocks are held back because it is hot, 87 degrees Celsius.",
        raise_time=Timestamp(seconds=1000),
    )
    alert.MergeFrom(alerts_pb2.Alert(**fields))  # type: ignore[arg-type]  # fields of an alert
    return alert


def printed(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def words(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_an_alert_is_whole_on_every_terminal(width: int) -> None:
    lines = printed(alerts_table([an_alert()]), width)
    assert max(map(len, lines)) <= width
    assert any(line.strip() == ID for line in lines)
    text = words(lines)
    assert "its clocks are held back because it is hot, 87 degrees Celsius." in text
    assert f"thermal throttling on {HOST}, {GPU}" in text
    assert "nobody looks after it" in text


def test_who_looks_after_an_alert_is_said_with_the_note() -> None:
    alert = an_alert(acknowledged_by="kim", note="replacing [the instance]")
    assert "looked after by kim: replacing [the instance]" in words(
        printed(alerts_table([alert]), 80)
    )
    ended = an_alert(clear_time=Timestamp(seconds=2000))
    assert ", ended " in words(printed(alerts_table([ended]), 80))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_an_event_is_whole_on_every_terminal(width: int) -> None:
    event = events_pb2.GpuEvent(
        kind=events_pb2.GPU_EVENT_KIND_XID,
        xid=79,
        xid_count=3,
        gpu_uuid=GPU,
        severity=events_pb2.SEVERITY_CRITICAL,
        description="GPU has fallen off the bus",
        recommended_action="reset the GPU, or replace the instance",
    )
    lines = printed(events_table([(HOST, event)]), width)
    assert max(map(len, lines)) <= width
    text = words(lines)
    assert "XID 79 (3.): GPU has fallen off the bus. reset the GPU, or replace the instance" in text
    assert HOST in text
    assert GPU in text
