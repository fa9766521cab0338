"""Services as processes on the game's event bus: SNS and SQS of a local AWS, a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from autoscaler.testing.running import quick_environment
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from gaming.events import events_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gaming.knowledge_base.v1 import (
    knowledge_base_pb2_grpc,
    story_pb2,
    subscriptions_pb2,
    worlds_pb2,
)
from knowledge_base.testing import service_url
from localsuite.aws.account import seed_account
from localsuite.aws.event_bus import (
    DEAD_LETTERS_SUFFIX,
    OBSERVER_QUEUE,
    BusQueue,
    queue_url,
    seed_event_bus,
    topic_arn,
)
from localsuite.aws.testing import LocalAws
from localsuite.ports import free_ports
from messaging.codec import decode_event, encode_event, new_event
from messaging.dead_letters import ATTRIBUTE_REASON
from servicekit.channels import open_channel

START_SECONDS = 90
REGION = "us-east-1"


class Bus:
    """The local AWS's topic, a reader's queue of this test, and an observer's."""

    def __init__(self, aws: LocalAws, *, raw: bool) -> None:
        # moto's queues outlive a test.
        suffix = f"-{random.getrandbits(32):08x}"
        self.reader = BusQueue(f"reader{suffix}", raw=raw)
        self.observer = BusQueue(f"{OBSERVER_QUEUE}{suffix}")
        self.endpoint = aws.endpoint
        seed_event_bus(aws.endpoint, (self.reader, self.observer), region_name=REGION)
        self._sns, self._sqs = aws.client("sns"), aws.client("sqs")

    @property
    def environment(self) -> dict[str, str]:
        """What a service is told."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
            "GAMEKEEPER_EVENTS_TOPIC_ARN": topic_arn(REGION),
            "GAMEKEEPER_EVENTS_QUEUE_URL": queue_url(self.endpoint, self.reader.name),
            "GAMEKEEPER_EVENTS_DEAD_LETTER_QUEUE_URL": self._dead_letters,
            "GAMEKEEPER_EVENTS_RECEIVE_WAIT_SECONDS": "1",
        }

    @property
    def _dead_letters(self) -> str:
        return queue_url(self.endpoint, self.reader.name + DEAD_LETTERS_SUFFIX)

    def publish(self, text: str, event_type: str, *, content_type: str = "x-protobuf") -> None:
        attributes = {
            "event_type": event_type,
            "source": "a-game-service",
            "content_type": f"application/{content_type}",
        }
        self._sns.publish(
            TopicArn=topic_arn(REGION),
            Message=text,
            MessageAttributes={
                name: {"DataType": "String", "StringValue": value}
                for name, value in attributes.items()
            },
        )

    def _receive(self, url: str) -> list[Any]:
        found = self._sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages", ())
        for message in found:
            self._sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return list(found)

    def observed(self, event_type: int) -> list[events_pb2.GameEvent]:
        """The events of a type that passed since the last look."""
        events = [
            decode_event(message["Body"], {})
            for message in self._receive(queue_url(self.endpoint, self.observer.name))
        ]
        return [event for event in events if event.event_type == event_type]

    def reasons_of_dead_letters(self) -> list[str]:
        return [
            message["MessageAttributes"][ATTRIBUTE_REASON]["StringValue"]
            for message in self._receive(self._dead_letters)
        ]


@asynccontextmanager
async def process(
    service: str, environ: Mapping[str, str], log: Path, *, kill: bool = False
) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "GAMEKEEPER_"))}
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", *service.split()),
            env={**inherited, **environ, "GAMEKEEPER_LISTEN_ADDRESS": address},
            stdout=output,
            stderr=output,
        )
    try:
        async with open_channel(address) as channel:
            yield channel
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        async with asyncio.timeout(START_SECONDS):
            await child.wait()
    assert child.returncode == (-signal.SIGKILL if kill else 0), await asyncio.to_thread(
        log.read_text
    )


async def until(condition: Callable[[], Awaitable[object]], *, seconds: float = 60.0) -> Any:
    """Waits for what another process does, and returns the first true answer."""
    async with asyncio.timeout(seconds):
        while not (found := await condition()):  # noqa: ASYNC110  # what is waited for is elsewhere
            await asyncio.sleep(0.1)
        return found


def players(online: str) -> str:
    event = new_event(
        events_pb2.WORLD_STATE_UPDATED,
        events_pb2.StateUpdate(state={"players_online": online}, update_type="delta"),
        source="game-state-manager",
        event_id=str(uuid.uuid4()),
        timestamp_milliseconds=0,
        metadata={},
    )
    return encode_event(event)


async def test_the_autoscaler_hears_players_in_sns_envelopes_and_tells_of_capacity(
    aws: LocalAws, postgres_database: str, tmp_path: Path
) -> None:
    bus = Bus(aws, raw=False)
    seed_account(aws.endpoint, region_name=REGION)
    environ = quick_environment(
        **bus.environment,
        AUTOSCALER_DATABASE_URL=postgres_database,
        AUTOSCALER_COLLECTOR="127.0.0.1:9",
        AUTOSCALER_ROUTERS="127.0.0.1:9",
    )
    async with process("autoscaler", environ, tmp_path / "log") as channel:
        stub = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
        await stub.GetStatus(
            autoscaler_pb2.GetStatusRequest(), timeout=START_SECONDS, wait_for_ready=True
        )
        bus.publish(players("4711"), "world_state.updated")
        bus.publish(players("a crowd"), "world_state.updated")

        async def knows_the_players() -> bool:
            status = await stub.GetStatus(autoscaler_pb2.GetStatusRequest(), timeout=20)
            return bool(status.players_online == 4711)

        await until(knows_the_players)

        async def dead_letters() -> list[str]:
            return await asyncio.to_thread(bus.reasons_of_dead_letters)

        assert await until(dead_letters) == ["bad_payload"]

        pin = autoscaler_pb2.Override(
            kind=autoscaler_pb2.OVERRIDE_KIND_PIN, desired=3, reason="a show"
        )
        pin.expire_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=10))
        await stub.SetOverride(
            autoscaler_pb2.SetOverrideRequest(
                tier=tier_pb2.TIER_SILVER, override=pin, request_id=str(uuid.uuid4())
            ),
            timeout=20,
        )

        async def changes() -> list[events_pb2.GameEvent]:
            return await asyncio.to_thread(bus.observed, events_pb2.CAPACITY_CHANGED)

        (event, *_) = await until(changes)
        change = events_pb2.CapacityChangedEvent.FromString(event.payload)
        assert (change.tier, change.desired, change.rule) == (tier_pb2.TIER_SILVER, 3, "OVERRIDE")
        explained = await stub.ExplainDecision(
            autoscaler_pb2.ExplainDecisionRequest(decision_id=change.decision_id), timeout=20
        )
        assert explained.decision.summary == change.reason


async def test_the_knowledge_base_hears_the_world_raw_and_tells_of_memories(
    aws: LocalAws, postgres_database: str, tmp_path: Path
) -> None:
    bus = Bus(aws, raw=True)
    environ = {
        **bus.environment,
        "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": postgres_database,
        "KNOWLEDGE_BASE_DATABASE_URL": service_url(postgres_database),
    }
    async with process("knowledge_base", environ, tmp_path / "log") as channel:
        stub = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
        made = await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="w", request_id=str(uuid.uuid4())),
            timeout=START_SECONDS,
            wait_for_ready=True,
        )
        world_id = made.world.world_id
        await stub.SetEventSubscription(
            subscriptions_pb2.SetEventSubscriptionRequest(
                world_id=world_id,
                subscription=subscriptions_pb2.EventSubscription(
                    event_types=[events_pb2.WEATHER_CHANGED]
                ),
                request_id=str(uuid.uuid4()),
            ),
            timeout=20,
        )
        # As the game's development publishers send it, and twice.
        event_id = str(uuid.uuid4())
        document = {
            "event_id": event_id,
            "event_type": "weather.changed",
            "source": "weather-manager",
            "timestamp": 1_762_560_000_123,
            "data": {"old_state": "clear", "new_state": "storm"},
        }
        for _ in range(2):
            bus.publish(json.dumps(document), "weather.changed", content_type="json")

        async def told() -> list[events_pb2.GameEvent]:
            return await asyncio.to_thread(bus.observed, events_pb2.STORY_EVENT_RECORDED)

        (event,) = await until(told)
        recorded = events_pb2.StoryEventRecordedEvent.FromString(event.payload)
        assert (recorded.world_id, recorded.kind) == (world_id, "weather")
        assert recorded.cause_event_id == event_id
        listed = await stub.ListEvents(story_pb2.ListEventsRequest(world_id=world_id), timeout=20)
        assert [each.text for each in listed.events] == ["The weather turned from clear to storm."]
        assert listed.events[0].event_id == recorded.story_event_id


async def test_the_collector_tells_of_a_host_that_falls_silent_and_of_its_return(
    aws: LocalAws, tmp_path: Path
) -> None:
    bus = Bus(aws, raw=True)
    environ = {
        **bus.environment,
        "GPU_METRICS_CLOUDWATCH_ENABLED": "false",
        "GPU_METRICS_STALE_AFTER_SECONDS": "1",
        "GPU_METRICS_EXPIRE_AFTER_SECONDS": "600",
    }
    told: list[events_pb2.GpuAlertEvent] = []

    async def hears(state: events_pb2.GpuAlertState.ValueType) -> bool:
        for event in await asyncio.to_thread(bus.observed, events_pb2.GPU_ALERT):
            assert event.source == "gpu_metrics"
            told.append(events_pb2.GpuAlertEvent.FromString(event.payload))
        return any(alert.state == state for alert in told)

    async with process("gpu_metrics collector", environ, tmp_path / "log") as channel:
        stub = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel)
        reports = stub.StreamReports(timeout=START_SECONDS * 3, wait_for_ready=True)
        report = gpu_metrics_pb2.StreamReportsRequest(
            host=fleet_pb2.Host(host_id="i-1", instance_type="g5.xlarge"), boot_id="boot"
        )
        for state in (events_pb2.GPU_ALERT_STATE_RAISED, events_pb2.GPU_ALERT_STATE_CLEARED):
            report.sequence += 1
            report.sample_time.GetCurrentTime()
            await reports.write(report)
            await until(partial(hears, state), seconds=START_SECONDS)
        reports.cancel()
    assert {(alert.kind, alert.host_id) for alert in told} == {
        (events_pb2.GPU_ALERT_KIND_HOST_SILENT, "i-1")
    }


async def test_a_bus_that_is_away_stops_no_service(postgres_database: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environ = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "GAMEKEEPER_EVENTS_TOPIC_ARN": topic_arn(REGION),
        "GAMEKEEPER_EVENTS_QUEUE_URL": "http://127.0.0.1:9/123456789012/nowhere",
        "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": postgres_database,
        "KNOWLEDGE_BASE_DATABASE_URL": service_url(postgres_database),
    }
    async with process("knowledge_base", environ, log) as channel:
        stub = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
        made = await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="w", request_id=str(uuid.uuid4())),
            timeout=START_SECONDS,
            wait_for_ready=True,
        )
        await until(lambda: asyncio.to_thread(lambda: "receive_failed" in log.read_text()))
        recorded = await stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=made.world.world_id,
                events=[story_pb2.StoryEvent(text="Mira came home.")],
                request_id=str(uuid.uuid4()),
            ),
            timeout=20,
        )
        assert len(recorded.events) == 1


@pytest.mark.endurance
async def test_each_event_is_remembered_and_told_once_however_often_the_service_is_killed(
    aws: LocalAws, postgres_database: str, tmp_path: Path
) -> None:
    bus = Bus(aws, raw=True)
    environ = {
        **bus.environment,
        "GAMEKEEPER_EVENTS_VISIBILITY_SECONDS": "3",
        "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": postgres_database,
        "KNOWLEDGE_BASE_DATABASE_URL": service_url(postgres_database),
    }
    world_id = ""
    events = [
        new_event(
            events_pb2.WEATHER_CHANGED,
            events_pb2.WeatherEvent(old_state="clear", new_state=f"storm number {number}"),
            source="weather-manager",
            event_id=str(uuid.uuid4()),
            timestamp_milliseconds=1_762_560_000_000 + number,
            metadata={},
        )
        for number in range(60)
    ]
    told: dict[str, events_pb2.StoryEventRecordedEvent] = {}

    async def hear_what_is_told() -> bool:
        for event in await asyncio.to_thread(bus.observed, events_pb2.STORY_EVENT_RECORDED):
            told[event.event_id] = events_pb2.StoryEventRecordedEvent.FromString(event.payload)
        return len(told) >= wanted

    for life in range(4):
        last = life == 3
        async with process("knowledge_base", environ, tmp_path / f"log{life}", kill=not last) as (
            channel
        ):
            stub = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
            if not world_id:
                made = await stub.CreateWorld(
                    worlds_pb2.CreateWorldRequest(name="w", request_id=str(uuid.uuid4())),
                    timeout=START_SECONDS,
                    wait_for_ready=True,
                )
                world_id = made.world.world_id
                await stub.SetEventSubscription(
                    subscriptions_pb2.SetEventSubscriptionRequest(
                        world_id=world_id,
                        subscription=subscriptions_pb2.EventSubscription(
                            event_types=[events_pb2.WEATHER_CHANGED]
                        ),
                        request_id=str(uuid.uuid4()),
                    ),
                    timeout=20,
                )
            # Twenty new ones a life, and one of them twice; the killed ones stop in their middle.
            for event in (*events[20 * life : 20 * life + 20], *events[20 * life : 20 * life + 1]):
                await asyncio.to_thread(bus.publish, encode_event(event), "weather.changed")
            wanted = len(events) if last else 20 * life + 7
            await until(hear_what_is_told, seconds=90)
            if last:
                listed = await stub.ListEvents(
                    story_pb2.ListEventsRequest(world_id=world_id, page_size=200),
                    timeout=START_SECONDS,
                    wait_for_ready=True,
                )

    assert sorted(recorded.cause_event_id for recorded in told.values()) == sorted(
        event.event_id for event in events
    )
    assert {event.event_id for event in listed.events} == set(told)
    assert len(listed.events) == len(events)
