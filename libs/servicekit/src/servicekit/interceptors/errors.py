"""Turns whatever a handler raises into a status with details; no Python text gets out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from servicekit.errors import DeadlineExceeded, Internal, ServiceError, ShuttingDown
from servicekit.interceptors.call import Call

__all__ = ["ERROR_DOMAIN", "ErrorInterceptor", "status_of"]

ERROR_DOMAIN = "gamekeeper"
"""The domain in every `google.rpc.ErrorInfo` of the suite."""

_MAXIMUM_MESSAGE_CHARACTERS = 1000

log = structlog.get_logger(__name__)


class ErrorInterceptor:
    """Maps exceptions to gRPC statuses.

    A ServiceError keeps its code, reason and message. A timeout becomes DEADLINE_EXCEEDED. Anything
    else is logged with its traceback and becomes INTERNAL without a word of it.
    """

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Maps what is raised inside."""
        try:
            yield
        except ServiceError as error:
            await self._abort(call, error)
        except TimeoutError:
            await self._abort(call, DeadlineExceeded("The call took longer than its deadline."))
        except asyncio.CancelledError:
            if not call.ended_by_server:
                call.code, call.reason = "CANCELLED", "CLIENT_CANCELLED"
                raise
            # The server itself cancelled the handler to end the stream; this is its farewell.
            call.task.uncancel()
            await self._abort(
                call, ShuttingDown("This server is shutting down; open the stream again.")
            )
        except grpc.aio.AbortError:
            # Health and reflection abort by themselves; their status stands.
            call.code = _code_name(call.context.code())
            raise
        except Exception:  # the border of the process: nothing may pass it unmapped
            log.exception("rpc_failed", method=call.path)
            await self._abort(call, Internal("Something went wrong in the service; it was logged."))

    async def _abort(self, call: Call, error: ServiceError) -> None:
        call.code, call.reason = error.code.name, error.reason
        # abort() is used with the encoded status because grpc.aio has no abort_with_status.
        status = rpc_status.to_status(status_of(error))
        await call.context.abort(status.code, status.details, status.trailing_metadata)


def status_of(error: ServiceError) -> status_pb2.Status:
    """Returns `error` as the google.rpc.Status that travels in the trailers."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=ERROR_DOMAIN, metadata=dict(error.metadata)
        )
    ]
    if error.field_violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description
                    )
                    for violation in error.field_violations
                ]
            )
        )
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(0, round(error.retry_after_seconds * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code.name),
        message=error.message[:_MAXIMUM_MESSAGE_CHARACTERS],
        details=packed,
    )


def _code_name(code: object) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
