"""Failures of AWS calls are told apart: what passes is tried again, what does not is not."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from messaging.adapters.aws_calls import aws_call, entry_outcomes
from messaging.errors import BusRefused, BusUnavailable
from messaging.ports import ACCEPTED, EntryOutcome


def refusal(code: str, status: int) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "secret detail"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "Publish")


PASSING = [
    refusal("InternalError", 500),
    refusal("ServiceUnavailable", 503),
    refusal("ThrottlingException", 400),
    refusal("Throttled", 429),
    refusal("RequestThrottled", 403),
    refusal("SlowDown", 503),
    refusal("OverLimit", 403),
    refusal("ExpiredTokenException", 403),
    EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
    ConnectTimeoutError(endpoint_url="http://127.0.0.1:1"),
    ReadTimeoutError(endpoint_url="http://127.0.0.1:1"),
    NoCredentialsError(),
    ResponseParserError("<html>"),
    aiohttp.ClientPayloadError(),
    ConnectionResetError(),
    TimeoutError(),
    KeyError("MessageId"),
    ValueError("half a document"),
]
LASTING = [
    refusal("NotFound", 404),
    refusal("AuthorizationError", 403),
    refusal("InvalidParameter", 400),
    refusal("QueueDoesNotExist", 400),
    refusal("", 400),
    ParamValidationError(report="unknown parameter"),
]


@pytest.mark.parametrize("failure", PASSING, ids=repr)
async def test_what_passes_is_unavailable(failure: Exception) -> None:
    with pytest.raises(BusUnavailable):
        async with aws_call(10):
            raise failure


@pytest.mark.parametrize("failure", LASTING, ids=repr)
async def test_what_does_not_pass_is_refused(failure: Exception) -> None:
    with pytest.raises(BusRefused):
        async with aws_call(10):
            raise failure


@pytest.mark.parametrize("failure", [*PASSING, *LASTING], ids=repr)
async def test_no_text_of_the_failure_reaches_the_caller(failure: Exception) -> None:
    with pytest.raises((BusUnavailable, BusRefused)) as raised:
        async with aws_call(10):
            raise failure
    assert "AWS" in raised.value.message
    for part in ("secret", "<html>", "127.0.0.1", "parameter"):
        assert part not in raised.value.message


async def test_a_call_without_an_answer_ends_in_time() -> None:
    with pytest.raises(BusUnavailable):
        async with aws_call(0.01):
            await asyncio.Event().wait()


async def test_being_cancelled_is_no_failure_of_aws() -> None:
    async def call() -> None:
        async with aws_call(10):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_each_entry_of_a_batch_has_its_own_outcome() -> None:
    answer = {
        "Successful": [{"Id": "2"}],
        "Failed": [
            {"Id": "0", "Code": "InternalError", "SenderFault": False},
            {"Id": "1", "Code": "InvalidParameter", "SenderFault": True},
            {"Id": "3", "Code": "Throttled", "SenderFault": True},
        ],
    }
    assert entry_outcomes(answer, 5) == [
        EntryOutcome(False, "InternalError", retryable=True),
        EntryOutcome(False, "InvalidParameter", retryable=False),
        ACCEPTED,
        EntryOutcome(False, "Throttled", retryable=True),
        EntryOutcome(False, "NoAnswer", retryable=True),
    ]
