"""`gamekeeper events` against SNS and SQS as the local AWS has them."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gamekeeper.cli import app
from gaming.events import events_pb2
from localsuite.aws.testing import LocalAws
from messaging.codec import decode_event, encode_event, new_event
from messaging.dead_letters import ATTRIBUTE_REASON


@dataclass
class Bus:
    """A topic, a queue that is subscribed to it raw, and the queue's dead letters."""

    sns: Any
    sqs: Any
    topic_arn: str
    name: str
    queue_url: str
    dead_letter_url: str

    def receive(self, url: str) -> list[Any]:
        found = self.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        )
        return list(found.get("Messages", ()))

    def waiting(self, url: str) -> int:
        attributes = self.sqs.get_queue_attributes(
            QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"]
        )["Attributes"]
        return int(attributes["ApproximateNumberOfMessages"])

    def bury(self, body: str, reason: str = "") -> None:
        attributes = {}
        if reason:
            attributes[ATTRIBUTE_REASON] = {"DataType": "String", "StringValue": reason}
        self.sqs.send_message(
            QueueUrl=self.dead_letter_url, MessageBody=body, MessageAttributes=attributes
        )


@pytest.fixture
def bus(aws: LocalAws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bus:
    sns, sqs = aws.client("sns"), aws.client("sqs")
    name = f"readers-{uuid.uuid4().hex[:8]}"
    topic = sns.create_topic(Name=name)["TopicArn"]
    dead = sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    dead_arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    policy = {
        "deadLetterTargetArn": dead_arn["Attributes"]["QueueArn"],
        "maxReceiveCount": 3,
    }
    queue = sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": json.dumps(policy)})
    queue_url = queue["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=arn["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    for variable in list(os.environ):
        if variable.startswith(("AWS_", "GAMEKEEPER_")):
            monkeypatch.delenv(variable)
    for variable, value in {
        "AWS_ENDPOINT_URL": aws.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_EC2_METADATA_DISABLED": "true",
        "GAMEKEEPER_EVENTS_TOPIC_ARN": topic,
        "GAMEKEEPER_DATA_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(variable, value)
    return Bus(sns, sqs, topic, name, queue_url, dead)


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, ["events", *arguments], **options)


def storm(event_id: str = "e1") -> str:
    event = new_event(
        events_pb2.WEATHER_CHANGED,
        events_pb2.WeatherEvent(old_state="clear", new_state="storm"),
        source="weather-manager",
        event_id=event_id,
        timestamp_milliseconds=1_762_560_000_123,
        metadata={},
    )
    return encode_event(event)


def test_a_published_event_arrives_in_the_form_the_games_services_read(bus: Bus) -> None:
    payload = '{"old_state": "clear", "new_state": "storm", "intensity": 0.5}'
    result = run("publish", "weather.changed", payload, "--source", "ops", "-o", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    (message,) = bus.receive(bus.queue_url)
    attributes = {k: v["StringValue"] for k, v in message["MessageAttributes"].items()}
    assert attributes["event_type"] == "weather.changed"
    assert attributes["content_type"] == "application/x-protobuf"
    event = decode_event(message["Body"], attributes)
    assert event.event_id == told["event_id"]
    assert (event.source, event.event_type) == ("ops", events_pb2.WEATHER_CHANGED)
    weather = events_pb2.WeatherEvent.FromString(event.payload)
    assert (weather.new_state, weather.intensity) == ("storm", 0.5)


def test_a_payload_comes_from_a_file_or_standard_input_and_names_its_world(
    bus: Bus, tmp_path: Path
) -> None:
    file = tmp_path / "state.json"
    file.write_text('{"state": {"players_online": "812"}}')
    assert run("publish", "world_state.updated", f"@{file}", "--world", "w1").exit_code == 0
    assert run("publish", "time.changed", "-", input='{"hour": 5}').exit_code == 0
    first, second = (
        decode_event(m["Body"], {k: v["StringValue"] for k, v in m["MessageAttributes"].items()})
        for m in sorted(
            bus.receive(bus.queue_url) + bus.receive(bus.queue_url),
            key=lambda m: str(m["MessageAttributes"]["event_type"]["StringValue"]),
        )
    )
    assert events_pb2.TimeEvent.FromString(first.payload).hour == 5
    assert dict(second.metadata) == {"world_id": "w1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["weather.changd"], "gamekeeper events types"),
        (["weather.changed", "{oops"], "no JSON"),
        (["weather.changed", "[]"], "JSON object"),
        (["weather.changed", '{"mood": "grim"}'], "old_state, new_state"),
        (["weather.severe", '{"new_state": "x"}'], "no payload"),
        (["weather.changed", "@/does/not/exist"], "cannot be read"),
        (["weather.changed", "--metadata", "novalue"], "KEY=VALUE"),
    ],
)
def test_a_mistake_in_an_event_is_named_before_anything_is_sent(
    bus: Bus, arguments: list[str], said: str
) -> None:
    result = run("publish", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert bus.waiting(bus.queue_url) == 0


def test_a_topic_that_is_not_there_and_a_bus_that_is_nowhere_are_told_apart(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAMEKEEPER_EVENTS_TOPIC_ARN", bus.topic_arn + "-not")
    gone = run("publish", "weather.severe")
    assert (gone.exit_code, "no such topic" in gone.stderr) == (4, True)
    monkeypatch.delenv("GAMEKEEPER_EVENTS_TOPIC_ARN")
    unnamed = run("publish", "weather.severe")
    assert (unnamed.exit_code, "gamekeeper up" in unnamed.stderr) == (2, True)
    monkeypatch.setenv("GAMEKEEPER_EVENTS_TOPIC_ARN", bus.topic_arn)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GAMEKEEPER_EVENTS_PUBLISH_TIMEOUT_SECONDS", "1")
    away = run("publish", "weather.severe", "-o", "json")
    assert away.exit_code == 3
    assert json.loads(away.stderr)["error"]["reason"] == "BUS_UNAVAILABLE"


def test_the_bus_of_a_local_run_is_found_where_the_environment_names_none(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {
        name: os.environ[name]
        for name in ("AWS_ENDPOINT_URL", "GAMEKEEPER_EVENTS_TOPIC_ARN", "AWS_REGION")
    }
    (tmp_path / "addresses.json").write_text(json.dumps({"event_bus": variables}))
    for name in variables:
        monkeypatch.delenv(name)
    # Undone by monkeypatch only if it knows them.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    result = run("publish", "weather.severe")
    assert result.exit_code == 0, result.output
    assert len(bus.receive(bus.queue_url)) == 1


def test_dead_letters_are_listed_with_their_reasons_and_stay(bus: Bus) -> None:
    bus.bury(storm("e1"))
    bus.bury("neither hex nor anything", "not_hex_base64_or_json")
    for _ in range(2):
        result = run("dlq", "list", bus.name, "-o", "json")
        assert result.exit_code == 0, result.output
        found = sorted(json.loads(result.stdout), key=lambda each: str(each["reason"]))
        assert [each["reason"] for each in found] == [
            "not_hex_base64_or_json",
            "received_too_often",
        ]
        assert (found[1]["event_id"], found[1]["event_type"]) == ("e1", "weather.changed")
    chosen = run("dlq", "list", bus.name, "--reason", "received_too_often")
    assert "e1" in chosen.stdout
    assert "neither" not in chosen.stdout


def test_redriving_puts_back_what_has_the_reason_and_leaves_the_rest(bus: Bus) -> None:
    for number in range(23):
        bus.bury(storm(f"e{number}"))
    bus.bury("poison", "not_hex_base64_or_json")
    result = run("dlq", "redrive", bus.name, "--reason", "received_too_often", "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"sent": 23, "left": 1, "failed": 0}
    assert bus.waiting(bus.queue_url) == 23
    (left,) = bus.receive(bus.dead_letter_url)
    assert left["Body"] == "poison"


def test_redriving_stops_at_its_limit_and_takes_our_marks_off(bus: Bus) -> None:
    for number in range(3):
        bus.bury(storm(f"e{number}"), "bad_payload")
    result = run("dlq", "redrive", bus.queue_url, "--limit", "1")
    assert result.exit_code == 0, result.output
    assert "1 put back, 2 left as dead letters, 0 failed" in result.stdout
    (back,) = bus.receive(bus.queue_url)
    assert "MessageAttributes" not in back
    assert bus.waiting(bus.dead_letter_url) == 2


def test_a_letter_that_cannot_be_put_back_stays_a_dead_letter(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from messaging.adapters.sqs_queue import SqsQueue  # noqa: PLC0415  # slow to import
    from messaging.ports import EntryOutcome  # noqa: PLC0415  # as above

    async def refuse(self: SqsQueue, messages: list[Any]) -> list[EntryOutcome]:
        return [EntryOutcome(accepted=False, error_code="InternalError") for _ in messages]

    bus.bury(storm())
    monkeypatch.setattr(SqsQueue, "send_batch", refuse)
    result = run("dlq", "redrive", bus.name)
    assert result.exit_code == 1
    assert "0 put back, 0 left as dead letters, 1 failed" in result.stdout
    assert bus.waiting(bus.dead_letter_url) == 1


def test_a_queue_without_dead_letters_and_one_that_is_not_there_are_told_apart(bus: Bus) -> None:
    bus.sqs.create_queue(QueueName=f"{bus.name}-plain")
    plain = run("dlq", "list", f"{bus.name}-plain")
    assert (plain.exit_code, "redrive policy" in " ".join(plain.stderr.split())) == (4, True)
    gone = run("dlq", "list", f"{bus.name}-not")
    assert (gone.exit_code, "no such queue" in gone.stderr) == (4, True)
    unnamed = run("dlq", "list")
    assert (unnamed.exit_code, "name the queue" in unnamed.stderr) == (4, True)


@pytest.fixture
def tailing(bus: Bus) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # our own command line
            [sys.executable, "-m", "gamekeeper.cli", "events", "tail", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        assert "listening with the queue" in process.stderr.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_tail_shows_what_is_published_and_leaves_nothing_behind(
    bus: Bus, tailing: Callable[..., subprocess.Popen[str]]
) -> None:
    process = tailing("--type", "weather.severe", "-o", "json")
    assert process.stdout is not None
    assert run("publish", "time.changed", '{"hour": 5}').exit_code == 0
    assert run("publish", "weather.severe", "--event-id", "shown").exit_code == 0
    assert json.loads(process.stdout.readline())["event_id"] == "shown"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    queues = bus.sqs.list_queues(QueueNamePrefix="gamekeeper-tail-").get("QueueUrls", [])
    assert queues == []
    subscriptions = bus.sns.list_subscriptions_by_topic(TopicArn=bus.topic_arn)["Subscriptions"]
    assert len(subscriptions) == 1


def test_the_types_are_listed_with_their_fields() -> None:
    rows = {row["event_type"]: row for row in json.loads(run("types", "-o", "json").stdout)}
    assert rows["capacity.changed"]["number"] == 100
    assert "players_online" not in rows["world_state.updated"]["fields"]
    assert rows["world_state.updated"]["fields"] == ["state", "update_type"]
    assert rows["weather.severe"]["fields"] == []


def test_the_command_line_starts_without_the_aws_sdk() -> None:
    code = (
        "import sys, gamekeeper.cli; "
        "print([m for m in ('aioboto3', 'botocore', 'aiohttp', 'asyncpg') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
