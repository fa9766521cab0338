"""What a failed call means to a person: one sentence, what to do, and an exit code for scripts."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from servicekit.failure_details import failure_details

__all__ = ["EXIT_CODES", "Failure", "explain_failure"]

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
    told = failure_details(error)
    exit_code = _EXITS.get(code, EXIT_FAILED)
    sentence = details.rstrip(".") or code.name
    advice = ""
    if code is grpc.StatusCode.UNAVAILABLE and not told.reason:
        sentence = f"{service} cannot be reached at {address}"
        advice = (
            "start the suite with `gamekeeper up`, or name the address with "
            f"--{service.replace('_', '-')} HOST:PORT"
        )
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        sentence = f"what listens at {address} is not {service}"
        advice = f"name the right address with --{service.replace('_', '-')} HOST:PORT"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        sentence = sentence if told.reason else f"{service} at {address} did not answer in time"
        advice = "try again, or allow more with --timeout SECONDS"
    elif told.field_violations:
        advice = "; ".join(f"{each.field}: {each.description}" for each in told.field_violations)
    elif told.retry_after_seconds is not None:
        advice = f"try again in {told.retry_after_seconds:g} s"
    return Failure(sentence, advice, told.reason, code.name, exit_code)
