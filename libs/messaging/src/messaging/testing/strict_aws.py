"""SNS and SQS over HTTP, as strict as AWS where local imitations are not, and failing on demand.

Serves the operations the bus uses, in AWS's own wire formats (query protocol for SNS, JSON 1.0 for
SQS), so that the real SDK talks to it. What it holds to, by the services' API references:

- 1 to 10 entries a batch with distinct ids, 256 KiB together, at most 10 attributes in SQS, none
  of them empty, and no characters outside XML's;
- a message with more than 10 attributes never reaches a subscription with raw delivery;
- only the latest receipt of a message counts, and only while it is hidden;
- entries of a batch fail one by one, calls are throttled, slow, answered with errors after they
  took effect, and messages come twice, as its `FaultPlan` and `duplicate_share` say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

from aiohttp import web

from messaging.errors import BusRefused
from messaging.ports import ACCEPTED, BATCH_ENTRIES, EntryOutcome, OutgoingMessage
from messaging.testing.faults import Fault, FaultPlan
from messaging.testing.memory_bus import MemoryQueue, MemoryTopic
from messaging.testing.strict_wire import (
    ATTRIBUTE_LIMIT,
    Refusal,
    as_sqs,
    checked,
    json_answer,
    json_outcomes,
    query_attributes,
    refused,
    with_distinct_ids,
    wrong_content,
    wrong_for_a_queue,
    xml_answer,
    xml_outcomes,
)
from servicekit.clock import SystemClock

__all__ = ["StrictAws", "StrictQueue"]

_ACCOUNT = "123456789012"
_REGION = "us-east-1"
_REQUEST_LIMIT_BYTES = 8 * 1024 * 1024
_INSTEAD = {
    Fault.THROTTLED: Refusal("ThrottlingException", 429),
    Fault.SERVER_ERROR: Refusal("ServiceUnavailable", 503),
}
_PARTIAL = {Fault.PARTIAL: "InternalError", Fault.PARTIAL_THROTTLED: "Throttled"}


@dataclass(frozen=True, slots=True)
class StrictQueue:
    """A queue and where to reach it."""

    url: str
    state: MemoryQueue


Operation = Callable[[Mapping[str, Any], "Fault | None"], Awaitable[web.Response]]


class StrictAws:
    """One topic and its queues on a free loopback port; an async context manager.

    Attributes:
        faults: what goes wrong; may be replaced or planned at any time.
        duplicate_share: how many of the messages published come twice.
        topic: what was published; its `published` and `calls`.
        dropped: messages that SNS lost on their way to raw subscriptions.
        most_calls_at_once: how many calls were under way together at most.
    """

    def __init__(self, faults: FaultPlan | None = None, *, duplicate_share: float = 0.0) -> None:
        self.topic_arn = f"arn:aws:sns:{_REGION}:{_ACCOUNT}:events"
        self.reset()
        if faults is not None:
            self.faults = faults
        self.duplicate_share = duplicate_share
        self._runner: web.AppRunner | None = None
        self._endpoint = ""
        self._operations: dict[str, Operation] = {
            "PublishBatch": self._publish_batch,
            "AmazonSQS.SendMessageBatch": self._send_message_batch,
            "AmazonSQS.ReceiveMessage": self._receive_message,
            "AmazonSQS.DeleteMessageBatch": self._delete_message_batch,
            "AmazonSQS.ChangeMessageVisibilityBatch": self._change_visibility_batch,
        }

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=_REQUEST_LIMIT_BYTES)
        application.router.add_post("/{path:.*}", self._answer)
        # A client that goes away ends its long poll, as with AWS.
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        _, port, *_ = self._runner.addresses[0]
        self._endpoint = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def reset(self) -> None:
        """Forgets all messages, queues, subscriptions and faults, for the next test."""
        self.faults = FaultPlan()
        self.duplicate_share = 0.0
        self.topic = MemoryTopic()
        self.dropped = 0
        self.most_calls_at_once = 0
        self._calls_at_once = 0
        self._random = Random(11)  # noqa: S311  # repeatable, no secret
        self._queues: dict[str, MemoryQueue] = {}
        self._raw_subscriptions = 0

    @property
    def endpoint(self) -> str:
        """The address for `endpoint_url`."""
        return self._endpoint

    def add_queue(
        self,
        name: str,
        *,
        visibility_seconds: float = 30.0,
        dead_letters: StrictQueue | None = None,
        maximum_receives: int | None = None,
    ) -> StrictQueue:
        """Makes a queue; with `dead_letters`, messages go there after `maximum_receives`."""
        state = MemoryQueue(
            SystemClock(),
            visibility_seconds=visibility_seconds,
            dead_letters=dead_letters.state if dead_letters else None,
            maximum_receives=maximum_receives,
        )
        self._queues[name] = state
        return StrictQueue(f"{self._endpoint}/{_ACCOUNT}/{name}", state)

    def subscribe(self, queue: StrictQueue, *, raw: bool = True) -> None:
        """Sends the queue what is published from now on."""
        self._raw_subscriptions += raw
        self.topic.subscribe(queue.state, raw=raw)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self._calls_at_once += 1
        self.most_calls_at_once = max(self.most_calls_at_once, self._calls_at_once)
        try:
            return await self._answered(request)
        finally:
            self._calls_at_once -= 1

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        target = request.headers.get("X-Amz-Target")
        content = await request.text()
        fields: Mapping[str, Any] = (
            json.loads(content) if target else dict(parse_qsl(content, keep_blank_values=True))
        )
        name = target or str(fields.get("Action"))
        if name not in self._operations:
            return refused(Refusal("InvalidAction"), in_json=target is not None)
        fault = self.faults.next(name.rpartition(".")[2])
        if fault in _INSTEAD:
            return refused(_INSTEAD[fault], in_json=target is not None)
        if fault is Fault.SLOW:
            await asyncio.sleep(self.faults.slow_seconds)
        try:
            response = await self._operations[name](fields, fault)
        except Refusal as refusal:
            return refused(refusal, in_json=target is not None)
        if fault is Fault.ANSWER_LOST:
            return refused(Refusal("InternalError", 500), in_json=target is not None)
        if fault is Fault.GARBLED:
            return web.Response(text="<html>It works!", content_type="text/html")
        if fault is Fault.DISCONNECTED and request.transport is not None:
            request.transport.abort()
        return response

    # --- SNS ------------------------------------------------------------------------------------

    async def _publish_batch(self, fields: Mapping[str, Any], fault: Fault | None) -> web.Response:
        if fields.get("TopicArn") != self.topic_arn:
            raise Refusal("NotFound", 404)
        prefix = "PublishBatchRequestEntries.member."
        entries = [
            {
                "Id": fields[f"{prefix}{number}.Id"],
                "MessageBody": fields.get(f"{prefix}{number}.Message", ""),
                "MessageAttributes": query_attributes(fields, f"{prefix}{number}."),
            }
            for number in range(1, 1 + sum(k.startswith(prefix) for k in fields))
            if f"{prefix}{number}.Id" in fields
        ]
        messages = checked(entries)
        # SNS checks attributes when it takes the call, SQS entry by entry.
        if any(wrong_content(message) for message in messages):
            raise Refusal("InvalidParameter")
        outcomes = await _apply(messages, fault, self._publish)
        return xml_answer("PublishBatch", xml_outcomes(entries, outcomes))

    async def _publish(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        for message in messages:
            if len(message.attributes) > ATTRIBUTE_LIMIT:
                self.dropped += self._raw_subscriptions
        twice = [m for m in messages if self._random.random() < self.duplicate_share]
        outcomes = await self.topic.publish_batch(messages)
        if twice:
            await self.topic.publish_batch(twice)
        return outcomes

    # --- SQS ------------------------------------------------------------------------------------

    def _queue(self, fields: Mapping[str, Any]) -> MemoryQueue:
        queue = self._queues.get(str(fields.get("QueueUrl", "")).rpartition("/")[2])
        if queue is None:
            raise Refusal("QueueDoesNotExist")
        return queue

    async def _send_message_batch(
        self, fields: Mapping[str, Any], fault: Fault | None
    ) -> web.Response:
        queue, entries = self._queue(fields), fields.get("Entries", [])
        messages = checked(entries)
        outcomes = await _apply(messages, fault, queue.send_batch, check=wrong_for_a_queue)
        return json_answer(json_outcomes(entries, outcomes))

    async def _receive_message(
        self, fields: Mapping[str, Any], fault: Fault | None
    ) -> web.Response:
        maximum = fields.get("MaxNumberOfMessages", 1)
        wait_seconds = fields.get("WaitTimeSeconds", 0)
        visibility_seconds = fields.get("VisibilityTimeout")
        if not (1 <= maximum <= BATCH_ENTRIES and 0 <= wait_seconds <= 20):
            raise Refusal("InvalidParameterValue")
        received = await self._queue(fields).receive(maximum, wait_seconds=wait_seconds)
        if received and visibility_seconds is not None:
            await self._queue(fields).extend_visibility(
                [message.receipt for message in received],
                seconds=[visibility_seconds] * len(received),
            )
        return json_answer({"Messages": [as_sqs(message) for message in received]})

    async def _delete_message_batch(
        self, fields: Mapping[str, Any], fault: Fault | None
    ) -> web.Response:
        queue, entries = self._queue(fields), with_distinct_ids(fields.get("Entries", []))
        receipts = [entry["ReceiptHandle"] for entry in entries]
        outcomes = await _apply(receipts, fault, queue.delete_batch)
        return json_answer(json_outcomes(entries, outcomes))

    async def _change_visibility_batch(
        self, fields: Mapping[str, Any], fault: Fault | None
    ) -> web.Response:
        queue, entries = self._queue(fields), with_distinct_ids(fields.get("Entries", []))

        async def change(part: Sequence[Mapping[str, Any]]) -> list[EntryOutcome]:
            return await queue.extend_visibility(
                [entry["ReceiptHandle"] for entry in part],
                seconds=[entry["VisibilityTimeout"] for entry in part],
            )

        outcomes = await _apply(entries, fault, change)
        return json_answer(json_outcomes(entries, outcomes))


async def _apply(
    items: Sequence[Any],
    fault: Fault | None,
    call: Callable[[Sequence[Any]], Awaitable[list[EntryOutcome]]],
    *,
    check: Callable[[Any], str] = lambda item: "",
) -> list[EntryOutcome]:
    """Has `call` take the entries that are right and not meant to fail; returns all outcomes."""
    outcomes: list[EntryOutcome] = []
    for position, item in enumerate(items):
        if wrong := check(item):
            outcomes.append(EntryOutcome(accepted=False, error_code=wrong))
        elif fault in _PARTIAL and position % 2 == 0:
            outcomes.append(EntryOutcome(False, _PARTIAL[fault], retryable=True))
        else:
            outcomes.append(ACCEPTED)
    positions = [position for position, outcome in enumerate(outcomes) if outcome.accepted]
    if positions:
        try:
            results = await call([items[position] for position in positions])
        except BusRefused as error:
            raise Refusal("BatchRequestTooLong") from error
        for position, result in zip(positions, results, strict=True):
            outcomes[position] = result
    return outcomes
