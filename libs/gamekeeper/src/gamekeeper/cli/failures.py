"""What a failed call means to a person: one sentence, what to do, and an exit code for scripts."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

__all__ = ["EXIT_CODES", "Failure", "explain_failure"]

_STATUS_DETAILS = "grpc-status-details-bin"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_NOT_FOUND = 4
EXIT_NOT_ALLOWED = 5
EXIT_OVERLOADED = 6
EXIT_TOO_LATE = 7

EXIT_CODES: dict[int, str] = {
    0: "it worked",
    EXIT_FAILED: "the service failed, or its present state does not allow it",
    EXIT_USAGE: "the command or its arguments are wrong",
    EXIT_UNREACHABLE: "the service cannot be reached, or is not ready",
    EXIT_NOT_FOUND: "what was named does not exist",
    EXIT_NOT_ALLOWED: "the caller may not do this",
    EXIT_OVERLOADED: "too much at once, or no capacity; try again later",
    EXIT_TOO_LATE: "the answer did not come in time",
}

_EXITS = {
    grpc.StatusCode.INVALID_ARGUMENT: EXIT_USAGE,
    grpc.StatusCode.OUT_OF_RANGE: EXIT_USAGE,
    grpc.StatusCode.UNAVAILABLE: EXIT_UNREACHABLE,
    grpc.StatusCode.NOT_FOUND: EXIT_NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED: EXIT_NOT_ALLOWED,
    grpc.StatusCode.UNAUTHENTICATED: EXIT_NOT_ALLOWED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: EXIT_OVERLOADED,
    grpc.StatusCode.DEADLINE_EXCEEDED: EXIT_TOO_LATE,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call in words, its machine-readable reason, and the exit code it gets."""

    sentence: str
    advice: str
    reason: str
    status: str
    exit_code: int

    def as_json(self) -> dict[str, object]:
        """Returns the failure for `-o json`."""
        return {
            "error": {
                "status": self.status,
                "reason": self.reason,
                "message": self.sentence,
                "advice": self.advice,
            }
        }


def explain_failure(error: grpc.aio.AioRpcError, *, service: str, address: str) -> Failure:
    """Returns what the error of a call to `service` at `address` means."""
    code = error.code()
    details = error.details() or ""
    info, violations, retry_seconds = _rich_details(error)
    exit_code = _EXITS.get(code, EXIT_FAILED)
    sentence = details.rstrip(".") or code.name
    advice = ""
    if code is grpc.StatusCode.UNAVAILABLE and not info:
        sentence = f"{service} cannot be reached at {address}"
        advice = (
            "start the suite with `gamekeeper up`, or name the address with "
            f"--{service.replace('_', '-')} HOST:PORT"
        )
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        sentence = f"what listens at {address} is not {service}"
        advice = f"name the right address with --{service.replace('_', '-')} HOST:PORT"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        sentence = sentence if info else f"{service} at {address} did not answer in time"
        advice = "try again, or allow more with --timeout SECONDS"
    elif violations:
        advice = "; ".join(violations)
    elif retry_seconds is not None:
        advice = f"try again in {retry_seconds:g} s"
    return Failure(sentence, advice, info, code.name, exit_code)


def _rich_details(error: grpc.aio.AioRpcError) -> tuple[str, list[str], float | None]:
    """Picks reason, field violations and pause out of google.rpc.Status, where there is one."""
    reason, violations, retry_seconds = "", [], None
    for key, value in error.trailing_metadata() or ():
        if key != _STATUS_DETAILS or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            request = error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(request):
                violations += [
                    f"{each.field}: {each.description}" for each in request.field_violations
                ]
            elif detail.Unpack(retry):
                retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return reason, violations, retry_seconds
