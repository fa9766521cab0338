"""Turns whatever a handler raises into a status with details; no Python text gets out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from servicekit.errors import (
    DeadlineExceeded,
    Internal,
    OutOfMemory,
    ServiceError,
    ShuttingDown,
)
from servicekit.interceptors.call import Call, Proceed

__all__ = ["ERROR_DOMAIN", "ErrorInterceptor", "Trailer", "status_of", "trailer_of"]

ERROR_DOMAIN = "gamekeeper"
"""The domain in every `google.rpc.ErrorInfo` of the suite."""

# Statuses travel in the trailers, and clients take 8 KiB of metadata (the message goes twice,
# once percent-encoded). A status too large would reach the caller as a puzzling transport error.
_MAXIMUM_ENCODED_MESSAGE_BYTES = 1500
_MAXIMUM_DETAILS_BYTES = 3000
_DETAILS = "grpc-status-details-bin"
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_KEPT_TRAILERS = 64
_STATUS_SECONDS = 5.0

log = structlog.get_logger(__name__)

# An overloaded server says the same to thousands: encoding it took more time than to send it.
_sent_lately: dict[tuple[object, ...], Trailer] = {}


@dataclass(frozen=True, slots=True)
class Trailer:
    """A failed call's last words, encoded.

    Attributes:
        code: the status.
        message: its text.
        metadata: what goes with it, the whole google.rpc.Status.
    """

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, bytes], ...]


class ErrorInterceptor:
    """Maps exceptions to gRPC statuses.

    A ServiceError keeps its code, reason and message, also out of an exception group. A timeout
    becomes DEADLINE_EXCEEDED. Anything else is logged with its traceback and becomes INTERNAL
    without a word of it.

    Args:
        on_out_of_memory: called when a handler found no memory. What a process does after that is
            nobody's promise, so it should end and be started again.
    """

    def __init__(self, on_out_of_memory: Callable[[], None] = lambda: None) -> None:
        self._on_out_of_memory = on_out_of_memory
        self._has_memory = True

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Maps what is raised inside."""
        try:
            return await proceed(call)
        except ServiceError as error:
            await _abort(call, error)
        except TimeoutError:
            await _abort(call, DeadlineExceeded("The call took longer than its deadline."))
        except MemoryError:
            log.critical("out_of_memory", method=call.path)
            self._has_memory = False
            self._on_out_of_memory()
            await _abort(call, _out_of_memory())
        except asyncio.CancelledError:
            if not call.ended_by_server:
                _note_cancellation(call)
                raise
            # The server itself cancelled the handler to end the stream; this is its farewell.
            call.task.uncancel()
            await _abort(call, ShuttingDown("This server is shutting down; open the stream again."))
        except grpc.aio.AbortError:
            # Health and reflection abort by themselves; their status stands.
            call.code = _code_name(call.context.code())
            raise
        except ExceptionGroup as group:
            # A handler's TaskGroup wraps what its tasks raise.
            known = _only_service_error(group)
            if known is None:
                log.exception("rpc_failed", method=call.path)
            await _abort(call, known or _unexpected())
        except Exception:  # the border of the process: nothing may pass it unmapped
            log.exception("rpc_failed", method=call.path)
            # Without memory libraries fail in ways of their own.
            await _abort(call, _unexpected() if self._has_memory else _out_of_memory())


async def _abort(call: Call, error: ServiceError) -> None:
    call.interruptible = False
    call.code, call.reason = error.code.name, error.reason
    # abort() is used with the encoded status because grpc.aio has no abort_with_status. Setting the
    # status and returning would send headers first, and what has headers is not tried again.
    trailer = trailer_of(error)
    try:
        # A peer that does not read its stream must not keep the task for ever.
        async with asyncio.timeout(_STATUS_SECONDS):
            await call.context.abort(trailer.code, trailer.message, trailer.metadata)
    except grpc.aio.AbortError as aborted:
        # gRPC keeps it and raises it anew once the handler has returned. What it knows would hold
        # the call in a cycle, and a wave of refusals fill the memory until the collector comes by.
        aborted.__traceback__ = aborted.__context__ = None
    except TimeoutError:
        log.warning("status_not_read", method=call.path, peer=call.context.peer())
        raise asyncio.CancelledError from None


def _note_cancellation(call: Call) -> None:
    remaining = call.context.time_remaining()
    if remaining is not None and remaining <= 0:
        call.code, call.reason = "DEADLINE_EXCEEDED", "CLIENT_DEADLINE_EXCEEDED"
    else:
        call.code, call.reason = "CANCELLED", "CLIENT_CANCELLED"


def _only_service_error(group: ExceptionGroup[Exception]) -> ServiceError | None:
    known, others = group.split(ServiceError)
    if known is None or others is not None:
        return None
    first: BaseException = known
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, ServiceError) else None


def _out_of_memory() -> OutOfMemory:
    return OutOfMemory("This server has no memory left; try another one.")


def _unexpected() -> Internal:
    return Internal("Something went wrong in the service; it was logged.")


def status_of(error: ServiceError) -> status_pb2.Status:
    """Returns `error` as the google.rpc.Status that travels in the trailers.

    What does not fit into the trailers is left out: the end of the message, the last violations,
    metadata that alone exceeds the room.
    """
    room = _MAXIMUM_DETAILS_BYTES
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    for key, value in error.metadata.items():
        room -= len(key.encode()) + len(value.encode()) + 8
        if room < 0:
            break
        info.metadata[key] = value
    details: list[Message] = [info]
    violations = []
    for violation in error.field_violations:
        room -= len(violation.field.encode()) + len(violation.description.encode()) + 8
        if room < 0:
            break
        violations.append(
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field, description=violation.description
            )
        )
    if violations:
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        # Never shorter than it is: whoever waits as long as told must not come too early.
        delay.FromNanoseconds(max(0, math.ceil(error.retry_after_seconds * 1e9)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    return status_pb2.Status(
        code=error.code.value, message=_shortened(error.message), details=packed
    )


def trailer_of(error: ServiceError) -> Trailer:
    """Returns `error` as it is sent. What was sent lately is not encoded again."""
    if error.field_violations:
        return _encoded(error)
    alike = (type(error), error.message, error.retry_after_seconds, *error.metadata.items())
    trailer = _sent_lately.pop(alike, None) or _encoded(error)
    _sent_lately[alike] = trailer
    if len(_sent_lately) > _KEPT_TRAILERS:
        del _sent_lately[next(iter(_sent_lately))]
    return trailer


def _encoded(error: ServiceError) -> Trailer:
    status = status_of(error)
    return Trailer(
        _STATUS_CODES[status.code], status.message, ((_DETAILS, status.SerializeToString()),)
    )


def _shortened(message: str) -> str:
    if len(message) * 12 <= _MAXIMUM_ENCODED_MESSAGE_BYTES:  # four bytes, three characters each
        return message
    message = message[:_MAXIMUM_ENCODED_MESSAGE_BYTES]
    while len(quote(message, safe=" ")) > _MAXIMUM_ENCODED_MESSAGE_BYTES:
        message = message[: len(message) * 3 // 4]
    return message


def _code_name(code: object) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
