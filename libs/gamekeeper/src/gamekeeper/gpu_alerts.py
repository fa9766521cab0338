"""Who looks after an alert of the GPU fleet, told to every collector.

    both = ["collector-1:50061", "collector-2:50061"]
    told = await acknowledge_alert(both, alert_id, note="on it")
    for each in told.untold:
        print(f"{each.collector} does not know: {each.failure}")

Each collector keeps that note itself, so all of them must be told. To tell one twice changes
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from gamekeeper.call_errors import CallFailed
from gaming.gpu_metrics.v1 import alerts_pb2, gpu_metrics_pb2_grpc
from servicekit.channels import ChannelSettings, open_channel

__all__ = ["AcknowledgedAlert", "Untold", "acknowledge_alert"]

_ALERTS_OF_A_HOST = 1000


@dataclass(frozen=True, slots=True)
class Untold:
    """A collector that could not be told, and why."""

    collector: str
    failure: CallFailed


@dataclass(frozen=True, slots=True)
class AcknowledgedAlert:
    """An alert that somebody looks after now.

    Attributes:
        alert: as the first collector that knows it has it.
        untold: the collectors at which it is not noted: those that cannot be reached, and those
            at which the condition does not stand.
    """

    alert: alerts_pb2.Alert
    untold: tuple[Untold, ...]


async def acknowledge_alert(
    collectors: Sequence[str],
    alert_id: str,
    *,
    note: str = "",
    settings: ChannelSettings | None = None,
    timeout_seconds: float = 10.0,
) -> AcknowledgedAlert:
    """Notes at every collector that the caller looks after an alert.

    A collector that was started while the condition held may have another id for it; there the
    alert of the same kind, host and part is noted.

    Args:
        collectors: `host:port` of each, at least one.
        alert_id: the alert, as any of them names it.
        note: what is being done, for others to read.
        settings: how to connect; the defaults without.
        timeout_seconds: how long a call may take.

    Raises:
        CallFailed: no collector knows the alert, or none can be reached.
    """
    calls = [_Collector(address, settings, timeout_seconds) for address in collectors]
    answers = await asyncio.gather(*(each.acknowledge(alert_id, note) for each in calls))
    alert = next((each for each in answers if isinstance(each, alerts_pb2.Alert)), None)
    failures = [each for each in answers if isinstance(each, CallFailed)]
    if alert is None:
        # One that answers says more than one that is away.
        raise next((each for each in failures if not each.is_away), failures[0])
    again = await asyncio.gather(
        *(
            call.acknowledge_same(alert, note, answer)
            for call, answer in zip(calls, answers, strict=True)
            if isinstance(answer, CallFailed)
        )
    )
    return AcknowledgedAlert(alert, tuple(each for each in again if each is not None))


class _Collector:
    """One collector, asked over a channel of its own."""

    def __init__(self, address: str, settings: ChannelSettings | None, timeout: float) -> None:
        self._address = address
        self._settings = settings
        self._timeout = timeout

    async def acknowledge(self, alert_id: str, note: str) -> alerts_pb2.Alert | CallFailed:
        """Returns the alert after it, or why it failed."""
        request = alerts_pb2.AcknowledgeAlertRequest(alert_id=alert_id, note=note)
        try:
            async with open_channel(self._address, self._settings) as channel:
                stub = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)
                answer = await stub.AcknowledgeAlert(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            return _failed(error)
        return answer.alert

    async def acknowledge_same(
        self, alert: alerts_pb2.Alert, note: str, failure: CallFailed
    ) -> Untold | None:
        """Tells a collector that did not know the id; returns why it still is not told."""
        if failure.code is not grpc.StatusCode.NOT_FOUND:
            return Untold(self._address, failure)
        request = alerts_pb2.ListAlertsRequest(host_id=alert.host_id, page_size=_ALERTS_OF_A_HOST)
        try:
            async with open_channel(self._address, self._settings) as channel:
                stub = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)
                listed = await stub.ListAlerts(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            return Untold(self._address, _failed(error))
        for each in listed.alerts:
            if _condition(each) == _condition(alert):
                answer = await self.acknowledge(each.alert_id, note)
                return Untold(self._address, answer) if isinstance(answer, CallFailed) else None
        return Untold(self._address, failure)


def _failed(error: grpc.aio.AioRpcError) -> CallFailed:
    failure = CallFailed("gpu_metrics", error)
    failure.__cause__ = error
    return failure


def _condition(alert: alerts_pb2.Alert) -> tuple[int, str, str, str, int]:
    return alert.kind, alert.host_id, alert.gpu_uuid, alert.server_id, alert.xid
