"""What a failed call told its caller beside the status: reason, facts, wrong fields, when to retry.

The other end of `servicekit.interceptors.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from servicekit.errors import FieldViolation

__all__ = ["FailureDetails", "failure_details"]

_TRAILER = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FailureDetails:
    """The details of a failed call.

    Attributes:
        reason: from `google.rpc.ErrorInfo`, for example `NO_CAPACITY`; empty when there is none.
        metadata: facts for programs, from the same.
        field_violations: from `google.rpc.BadRequest`.
        retry_after_seconds: from `google.rpc.RetryInfo`; None when the service does not say.
    """

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    field_violations: tuple[FieldViolation, ...] = ()
    retry_after_seconds: float | None = None


def failure_details(error: grpc.aio.AioRpcError) -> FailureDetails:
    """Returns the details; empty ones when the call never reached a service of ours."""
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_seconds = None
    for key, value in error.trailing_metadata() or ():
        if key != _TRAILER or not isinstance(value, bytes):
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(retry):
                    retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
                elif not detail.Unpack(info):
                    detail.Unpack(request)
        except DecodeError:  # a proxy or a stranger wrote the trailer
            return FailureDetails()
    return FailureDetails(
        reason=info.reason,
        metadata=MappingProxyType(dict(info.metadata)),
        field_violations=tuple(
            FieldViolation(each.field, each.description) for each in request.field_violations
        ),
        retry_after_seconds=retry_after_seconds,
    )
