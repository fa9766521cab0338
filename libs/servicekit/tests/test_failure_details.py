"""What a service says of a failure is what its caller reads."""

from __future__ import annotations

import grpc
import grpc.aio
from grpc_status import rpc_status

from servicekit.errors import FieldViolation, InvalidRequest, Overloaded, ServiceError
from servicekit.failure_details import FailureDetails, failure_details
from servicekit.interceptors.errors import status_of


def as_received(*trailers: tuple[str, str | bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), "away"
    )


def sent(error: ServiceError) -> FailureDetails:
    status = rpc_status.to_status(status_of(error))
    return failure_details(as_received(*status.trailing_metadata))


def test_reason_facts_and_wrong_fields_arrive() -> None:
    wrong = FieldViolation("override.reason", "must not be empty")
    details = sent(InvalidRequest("No.", metadata={"tier": "gold"}, field_violations=[wrong]))
    assert details == FailureDetails("INVALID_REQUEST", {"tier": "gold"}, (wrong,), None)


def test_the_pause_that_is_asked_for_arrives() -> None:
    details = sent(Overloaded("Too much.", retry_after_seconds=1.5))
    assert (details.reason, details.retry_after_seconds) == ("OVERLOADED", 1.5)


def test_a_failure_of_nobodys_making_has_no_details() -> None:
    assert failure_details(as_received()) == FailureDetails()
    assert failure_details(as_received(("x-other", "text"))) == FailureDetails()


def test_a_trailer_that_is_not_ours_has_no_details() -> None:
    assert failure_details(as_received(("grpc-status-details-bin", b"\xff"))) == FailureDetails()
