"""A failed call as a typed exception: code, machine-readable reason, and when to try again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

__all__ = ["CallFailed", "calls_to"]

_STATUS_DETAILS = "grpc-status-details-bin"
_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class CallFailed(Exception):
    """A service refused a call or could not be reached; `__cause__` is the gRPC error.

    Attributes:
        service: which service.
        code: the gRPC status.
        reason: from `google.rpc.ErrorInfo`, for example `NO_CAPACITY`; empty when there is none.
        message: what the service said, for people.
        metadata: facts for programs.
        retry_after_seconds: when the service asks to try again; None when it does not say.
    """

    def __init__(self, service: str, error: grpc.aio.AioRpcError) -> None:
        self.service = service
        self.code = error.code()
        self.message = error.details() or error.code().name
        self.reason = ""
        self.metadata: Mapping[str, str] = MappingProxyType({})
        self.retry_after_seconds: float | None = None
        super().__init__(f"{service}: {self.code.name}: {self.message}")
        for key, value in error.trailing_metadata() or ():
            if key == _STATUS_DETAILS and isinstance(value, bytes):
                self._read(status_pb2.Status.FromString(value))

    @property
    def is_away(self) -> bool:
        """Whether the service is unreachable, too slow or too busy, rather than refusing."""
        return self.code in _AWAY

    def _read(self, status: status_pb2.Status) -> None:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in status.details:
            if detail.Unpack(info):
                self.reason = info.reason
                self.metadata = MappingProxyType(dict(info.metadata))
            elif detail.Unpack(retry):
                self.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()


@contextmanager
def calls_to(service: str) -> Iterator[None]:
    """Raises CallFailed for any gRPC error inside."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise CallFailed(service, error) from error
