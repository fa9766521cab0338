"""Alerts reach who asks: listed by gravity, followed from their cause on, acknowledged."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from gamekeeper.call_errors import CallFailed
from gamekeeper.gpu_alerts import acknowledge_alert
from gaming.gpu_metrics.v1 import alerts_pb2, events_pb2, fleet_pb2, gpu_metrics_pb2
from gpu_metrics.domain.alerts import AlertKind, AlertPolicy
from gpu_metrics.testing import CollectorForTest, collector_for_test
from servicekit.testing import reason_of

WAIT_SECONDS = 60
AT_ONCE = AlertPolicy(
    raise_seconds=dict.fromkeys(AlertKind, 0.0),
    clear_seconds=dict.fromkeys(AlertKind, 0.0) | {AlertKind.XID: 900.0},
)
# A slow machine makes no host silent.
PATIENT: dict[str, Any] = {
    "alert_policy": AT_ONCE,
    "stale_after_seconds": 300.0,
    "expire_after_seconds": 600.0,
}


class Agent:
    """One report stream of one host."""

    def __init__(self, collector: CollectorForTest, host_id: str) -> None:
        self._host_id = host_id
        self._sequence = 0
        self._events = 0
        self._call: grpc.aio.StreamStreamCall[Any, Any] = collector.reports.StreamReports(
            timeout=WAIT_SECONDS
        )

    async def report(
        self, *gpus: fleet_pb2.GpuSample, xids: tuple[int, ...] = (), **fields: Any
    ) -> None:
        self._sequence += 1
        request = gpu_metrics_pb2.StreamReportsRequest(
            boot_id="boot", sequence=self._sequence, gpus=gpus, journal_id="j", **fields
        )
        request.host.host_id = self._host_id
        request.sample_time.GetCurrentTime()
        for code in xids:
            self._events += 1
            event = request.events.add(
                sequence=self._events,
                kind=events_pb2.GPU_EVENT_KIND_XID,
                xid=code,
                gpu_uuid="GPU-1",
                severity=events_pb2.SEVERITY_CRITICAL,
                description=f"error {code}",
            )
            event.time.GetCurrentTime()
        await self._call.write(request)
        assert await self._call.read() is not grpc.aio.EOF


def hot(gpu_uuid: str = "GPU-1") -> fleet_pb2.GpuSample:
    return fleet_pb2.GpuSample(
        gpu_uuid=gpu_uuid, utilization_permille=900, clock_event_reasons=0x40
    )


def cool() -> fleet_pb2.GpuSample:
    return fleet_pb2.GpuSample(gpu_uuid="GPU-1", utilization_permille=900, clock_event_reasons=0)


def followed(
    collector: CollectorForTest, token: str = ""
) -> AsyncIterator[alerts_pb2.WatchAlertsResponse]:
    request = alerts_pb2.WatchAlertsRequest(resume_token=token)
    return aiter(collector.fleet.WatchAlerts(request, timeout=WAIT_SECONDS))


async def changed(stream: AsyncIterator[alerts_pb2.WatchAlertsResponse]) -> alerts_pb2.Alert:
    """The next message with alerts, which must be one."""
    async for message in stream:
        if message.alerts:
            (alert,) = message.alerts
            return alert
    raise AssertionError("the stream ended")


async def test_an_alert_is_seen_from_its_beginning_to_its_end_and_can_be_looked_after() -> None:
    async with collector_for_test(**PATIENT, heartbeat_seconds=0.2) as collector:
        agent = Agent(collector, "i-1")
        await agent.report(cool())
        stream = followed(collector)
        snapshot = await anext(stream)
        assert (snapshot.snapshot, len(snapshot.alerts)) == (True, 0)
        await agent.report(hot())
        raised = await changed(stream)
        assert raised.kind == alerts_pb2.ALERT_KIND_THERMAL_THROTTLING
        assert raised.runbook_url == "deploy/runbooks/gpu/thermal-throttling.md"
        assert (raised.host_id, raised.gpu_uuid) == ("i-1", "GPU-1")
        request = alerts_pb2.AcknowledgeAlertRequest(alert_id=raised.alert_id, note="on it")
        answer = await collector.fleet.AcknowledgeAlert(request)
        assert (answer.alert.acknowledged_by, answer.alert.note) == ("loopback", "on it")
        assert await changed(stream) == answer.alert
        assert (await collector.fleet.AcknowledgeAlert(request)).alert == answer.alert
        token = ""
        await agent.report(cool())
        async for message in stream:
            if message.alerts:
                token = message.resume_token
                break
        assert message.alerts[0].HasField("clear_time")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collector.fleet.AcknowledgeAlert(request)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # Who goes on after that hears of it no more, and has a heartbeat instead.
        assert not (await anext(followed(collector, token))).alerts
        listed = await collector.fleet.ListAlerts(
            alerts_pb2.ListAlertsRequest(include_cleared=True)
        )
        assert [alert.alert_id for alert in listed.alerts] == [raised.alert_id]
        assert not (await collector.fleet.ListAlerts(alerts_pb2.ListAlertsRequest())).alerts


async def test_alerts_are_listed_page_by_page_the_gravest_and_newest_first() -> None:
    async with collector_for_test(**PATIENT) as collector:
        agent, other = Agent(collector, "i-1"), Agent(collector, "i-2")
        await other.report(hot("GPU-9"))
        await agent.report(hot(), xids=(48,))
        await agent.report(hot(), xids=(79,))
        listed: list[alerts_pb2.Alert] = []
        token = ""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(listed) < 4:
                page = await collector.fleet.ListAlerts(
                    alerts_pb2.ListAlertsRequest(page_size=2, page_token=token)
                )
                listed = [*listed, *page.alerts] if token else list(page.alerts)
                token = page.next_page_token
        assert [alert.xid for alert in listed] == [79, 48, 0, 0]
        assert len({alert.alert_id for alert in listed}) == 4
        assert token == ""
        of_host = await collector.fleet.ListAlerts(alerts_pb2.ListAlertsRequest(host_id="i-2"))
        assert [alert.gpu_uuid for alert in of_host.alerts] == ["GPU-9"]


async def test_two_collectors_that_hear_the_same_give_an_alert_the_same_id() -> None:
    ids = []
    async with (
        collector_for_test(**PATIENT) as first,
        collector_for_test(**PATIENT) as second,
    ):
        request = gpu_metrics_pb2.StreamReportsRequest(
            boot_id="boot", sequence=1, journal_id="j", gpus=[hot()]
        )
        request.host.host_id = "i-1"
        request.sample_time.GetCurrentTime()
        for collector in (first, second):
            stream = followed(collector)
            await anext(stream)
            reports = collector.reports.StreamReports(timeout=WAIT_SECONDS)
            await reports.write(request)
            ids.append((await changed(stream)).alert_id)
    assert ids[0] == ids[1]


async def test_who_looks_after_an_alert_is_told_to_all_collectors_whatever_they_call_it() -> None:
    async with (
        collector_for_test(**PATIENT) as first,
        collector_for_test(**PATIENT) as second,
    ):
        alerts = []
        for collector in (first, second):
            # A report of its own each, as where one was started while it was hot.
            stream = followed(collector)
            await anext(stream)
            await Agent(collector, "i-1").report(hot())
            alerts.append(await changed(stream))
        assert alerts[0].alert_id != alerts[1].alert_id
        nobody = "127.0.0.1:1"
        told = await acknowledge_alert(
            [nobody, first.address, second.address], alerts[1].alert_id, note="on it"
        )
        assert told.alert.alert_id == alerts[1].alert_id
        assert [(each.collector, each.failure.is_away) for each in told.untold] == [(nobody, True)]
        for collector, alert in zip((first, second), alerts, strict=True):
            listed = await collector.fleet.ListAlerts(alerts_pb2.ListAlertsRequest())
            assert [(each.alert_id, each.note) for each in listed.alerts] == [
                (alert.alert_id, "on it")
            ]
        with pytest.raises(CallFailed) as refused:
            await acknowledge_alert([nobody, first.address], "xid-0")
        assert refused.value.reason == "ALERT_NOT_FOUND"


async def test_an_unknown_alert_and_a_token_of_another_run_are_refused() -> None:
    async with collector_for_test() as collector:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collector.fleet.AcknowledgeAlert(
                alerts_pb2.AcknowledgeAlertRequest(alert_id="xid-0")
            )
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert reason_of(refused.value) == "ALERT_NOT_FOUND"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(followed(collector, "another.7"))
        assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_the_command_line_shows_alerts_and_events_and_takes_a_note() -> None:
    async with collector_for_test(**PATIENT) as collector:
        await Agent(collector, "i-1").report(hot(), xids=(79,))

        at = ("--gpu-metrics", collector.address)

        async def command(*words: str) -> str:
            result = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "gamekeeper.cli", *at, "gpus", *words],
                env={"PATH": os.environ["PATH"], "COLUMNS": "200"},
                capture_output=True,
                text=True,
                timeout=WAIT_SECONDS,
                check=True,
            )
            return str(result.stdout)

        listed = json.loads(await command("alerts", "-o", "json"))["alerts"]
        xid = next(alert for alert in listed if alert["kind"] == "ALERT_KIND_XID")
        shown, told, events = await asyncio.gather(
            command("alerts", "--host", "i-1"),
            command("alerts", "ack", xid["alertId"], "--note", "on it"),
            command("events"),
        )
        assert "XID 79: error 79." in shown
        assert "deploy/runbooks/gpu/xid.md" in shown
        assert told.startswith(f"{xid['alertId']}: loopback since")
        assert "XID 79" in events
        assert "error 79" in events
