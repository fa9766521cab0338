"""How every AWS call of the event bus is made: bounded, timed, and its failures sorted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiobotocore
import aiohttp
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from botocore.parsers import ResponseParserError

from messaging.adapters.aws_sessions import open_session
from messaging.errors import BusRefused, BusUnavailable
from messaging.ports import ACCEPTED, EntryOutcome
from messaging.settings import MessagingSettings

__all__ = ["aws_call", "entry_outcomes", "message_attributes", "open_client"]

_CONNECT_TIMEOUT_SECONDS = 3.0
_USER_AGENT = f"gamekeeper-messaging aiobotocore/{aiobotocore.__version__}"
_ATTEMPTS = 3
_PASSING = (
    *("Throttl", "RequestLimitExceeded", "SlowDown", "TooManyRequests", "OverLimit"),
    *("ExpiredToken", "RequestTimeout"),
)
"""What the codes of failures contain that pass: too much at once, and credentials just renewed."""
_SERVER_ERROR = 500


@asynccontextmanager
async def open_client(
    service: str,
    settings: MessagingSettings,
    *,
    connections: int,
    read_timeout_seconds: float | None = None,
) -> AsyncIterator[Any]:
    """Yields a client of an AWS service with at most so many connections.

    Credentials come the AWS SDK's usual way. A call is tried three times in all, with the SDK's
    standard backoff; what outlasts that is the caller's to repeat.
    """
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=read_timeout_seconds or settings.call_timeout_seconds,
        max_pool_connections=connections,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        tcp_keepalive=True,
        # A sixth of a call's CPU time; what is sent is made here, and AWS checks it again.
        parameter_validation=False,
        # Given, it is not composed anew for every call, which takes a tenth of it.
        user_agent=_USER_AGENT,
        # Bucket names as host names exist on AWS only.
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
    )
    session = await open_session(service)
    async with session.create_client(
        service, region_name=settings.region, endpoint_url=settings.endpoint_url, config=config
    ) as client:
        yield client


@contextmanager
def _sorted_failures() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise BusUnavailable("AWS did not answer in time") from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        details = {"error_code": code or "UNKNOWN"}
        if status >= _SERVER_ERROR or is_passing(code):
            raise BusUnavailable("AWS cannot take the call now", metadata=details) from error
        raise BusRefused("AWS refuses the call", metadata=details) from error
    except ParamValidationError as error:
        raise BusRefused("AWS knows no such call") from error
    except (BotoCoreError, aiohttp.ClientError, OSError) as error:
        # No connection, no credentials yet, a connection that broke off.
        raise BusUnavailable("AWS cannot be reached") from error
    except (ResponseParserError, LookupError, ValueError) as error:
        # No answer of AWS's, or one without what its API promises: a proxy's, or half of one.
        raise BusUnavailable("AWS answered something that cannot be read") from error


@asynccontextmanager
async def aws_call(timeout_seconds: float) -> AsyncIterator[None]:
    """Limits an AWS call and its retries in time; raises BusUnavailable or BusRefused for it.

    The answer is read inside it as well, so that an answer of another shape is a failed call.
    """
    with _sorted_failures():
        async with asyncio.timeout(timeout_seconds):
            yield


def is_passing(code: str) -> bool:
    """Returns whether an error code says that the same call may work later."""
    return any(part in code for part in _PASSING)


def entry_outcomes(answer: Mapping[str, Any], entries: int) -> list[EntryOutcome]:
    """Returns the outcomes in a batch call's answer, whose entries' ids are their positions.

    An entry that the answer does not mention may be tried again.
    """
    outcomes = [EntryOutcome(accepted=False, error_code="NoAnswer", retryable=True)] * entries
    for entry in answer.get("Successful", ()):
        outcomes[int(entry["Id"])] = ACCEPTED
    for entry in answer.get("Failed", ()):
        code = str(entry.get("Code", ""))
        # Throttling is the sender's fault by AWS's reckoning, and passes all the same.
        retryable = not entry.get("SenderFault", False) or is_passing(code)
        outcomes[int(entry["Id"])] = EntryOutcome(False, code, retryable)
    return outcomes


def message_attributes(attributes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns attributes as SNS and SQS take them."""
    return {
        name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
    }


def numbered(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the entries of a batch call with their positions as ids."""
    return [{"Id": str(position), **entry} for position, entry in enumerate(entries)]
