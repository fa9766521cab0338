"""A failed call as a typed exception: code, machine-readable reason, and when to try again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from servicekit.failure_details import failure_details

__all__ = ["CallFailed", "calls_to"]

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
        told = failure_details(error)
        self.reason = told.reason
        self.metadata = told.metadata
        self.retry_after_seconds = told.retry_after_seconds
        super().__init__(f"{service}: {self.code.name}: {self.message}")

    @property
    def is_away(self) -> bool:
        """Whether the service is unreachable, too slow or too busy, rather than refusing."""
        return self.code in _AWAY


@contextmanager
def calls_to(service: str) -> Iterator[None]:
    """Raises CallFailed for any gRPC error inside."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise CallFailed(service, error) from error
