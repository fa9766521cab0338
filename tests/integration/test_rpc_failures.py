"""What a caller learns when a call fails in its handler or is refused for what it carries."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import DecodeError

from autoscaler.testing.partial_service import (
    GOLD,
    SERVICE,
    answer_tier,
    autoscaler_stub,
    autoscaler_with,
)
from gaming.autoscaler.v1 import autoscaler_pb2
from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.errors import FieldViolation, InvalidRequest, NotFound
from servicekit.interceptors.call import Call
from servicekit.server import ServiceRegistration
from servicekit.testing import details_of, failure_of, reason_of, serve_for_test, servicer_with

SECRET = "the database password is hunter2"


def collector_with(**methods: Any) -> ServiceRegistration:
    return ServiceRegistration.of(
        gpu_metrics_pb2_grpc.add_GpuReportServiceServicer_to_server,
        servicer_with(gpu_metrics_pb2_grpc.GpuReportServiceServicer, **methods),
        gpu_metrics_pb2.DESCRIPTOR.services_by_name["GpuReportService"],
    )


def raw(channel: Any, path: str, kind: str = "unary_unary") -> Any:
    """A method that sends bytes as they are."""
    return getattr(channel, kind)(path)


class TestErrors:
    async def test_a_service_error_arrives_with_code_message_and_details(self) -> None:
        async def missing(request: Any, context: Any) -> Any:
            raise NotFound("There is no tier gold.", metadata={"tier": "gold"})

        async with serve_for_test([autoscaler_with(GetTier=missing)]) as (_, channel):
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "There is no tier gold."
        info = details_of(error)["ErrorInfo"]
        assert (info.reason, info.domain, dict(info.metadata)) == (
            "NOT_FOUND",
            "gamekeeper",
            {"tier": "gold"},
        )

    async def test_a_handler_without_memory_sends_its_caller_elsewhere(self) -> None:
        async def starved(request: Any, context: Any) -> Any:
            raise MemoryError

        async def strange(request: Any, context: Any) -> Any:
            raise TypeError(SECRET)

        service = autoscaler_with(GetTier=starved, ListTiers=strange)
        async with (
            serve_for_test([service]) as (server, _),
            # It repeats nothing by itself, so that the first answer is seen at once.
            grpc.aio.insecure_channel(
                server.address, options=[("grpc.enable_retries", 0)]
            ) as channel,
        ):
            stub = autoscaler_stub(channel)
            request = autoscaler_pb2.ListTiersRequest()
            before = await failure_of(stub.ListTiers(request))
            error = await failure_of(stub.GetTier(GOLD))
            after = await failure_of(stub.ListTiers(request))
        assert before.code() is grpc.StatusCode.INTERNAL
        # What fails in ways of its own after that is no more a fault of ours.
        for each in (error, after):
            assert each.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(each) == "OUT_OF_MEMORY"
            assert "RetryInfo" in details_of(each)

    async def test_a_message_for_which_there_is_no_memory_is_no_fault_of_its_caller(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def parse(_: bytes) -> Any:
            raise DecodeError("Error parsing message with type 'X': Arena alloc failed")

        monkeypatch.setattr(autoscaler_pb2.GetTierRequest, "FromString", parse)
        async with (
            serve_for_test([autoscaler_with(GetTier=answer_tier)]) as (server, _),
            # It repeats nothing by itself, so that the first answer is seen at once.
            grpc.aio.insecure_channel(
                server.address, options=[("grpc.enable_retries", 0)]
            ) as channel,
        ):
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "OUT_OF_MEMORY"

    async def test_refused_calls_are_freed_without_the_garbage_collector(self) -> None:
        """Otherwise a wave of refusals fills the memory until it comes by."""

        async def missing(request: Any, context: Any) -> Any:
            raise NotFound("There is no tier gold.")

        async with serve_for_test([autoscaler_with(GetTier=missing)]) as (_, channel):
            await failure_of(autoscaler_stub(channel).GetTier(GOLD))
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    await failure_of(autoscaler_stub(channel).GetTier(GOLD))
                await asyncio.sleep(0.05)  # the last one's task ends after its status left
                assert sum(isinstance(each, Call) for each in gc.get_objects()) <= 1
            finally:
                gc.enable()

    async def test_an_unexpected_error_says_nothing_of_itself(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(request: Any, context: Any) -> Any:
            raise RuntimeError(SECRET)

        async with serve_for_test([autoscaler_with(GetTier=broken)]) as (_, channel):
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert reason_of(error) == "INTERNAL"
        assert "hunter2" not in repr(error) + str(error.trailing_metadata())
        assert "RuntimeError" not in repr(error)

    async def test_an_unexpected_error_in_the_middle_of_a_stream_says_nothing_of_itself(
        self,
    ) -> None:
        async def breaks(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.1")
            raise KeyError(SECRET)

        async with serve_for_test([autoscaler_with(WatchDecisions=breaks)]) as (_, channel):
            call = autoscaler_stub(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            assert (await anext(aiter(call))).resume_token == "e.1"
            error = await failure_of(call)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in repr(error)

    async def test_a_service_error_in_the_middle_of_a_stream_keeps_its_details(self) -> None:
        async def breaks(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.1")
            raise NotFound("The tier is gone.")

        async with serve_for_test([autoscaler_with(WatchDecisions=breaks)]) as (_, channel):
            error = await failure_of(
                autoscaler_stub(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            )
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert reason_of(error) == "NOT_FOUND"

    async def test_an_error_in_a_handlers_task_group_is_mapped_like_any_other(self) -> None:
        async def fail() -> None:
            raise NotFound("There is no tier gold.")

        async def grouped(request: Any, context: Any) -> Any:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())

        async with serve_for_test([autoscaler_with(GetTier=grouped)]) as (_, channel):
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.NOT_FOUND

    async def test_a_timeout_inside_a_handler_is_a_deadline_exceeded(self) -> None:
        async def slow(request: Any, context: Any) -> Any:
            raise TimeoutError(SECRET)

        async with serve_for_test([autoscaler_with(GetTier=slow)]) as (_, channel):
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "hunter2" not in repr(error)

    async def test_an_error_too_large_for_the_trailers_still_arrives_as_itself(self) -> None:
        async def verbose(request: Any, context: Any) -> Any:
            raise InvalidRequest(
                "ü" * 5000,
                metadata={"much": "m" * 5000},
                field_violations=[FieldViolation(f"field_{i}", "é" * 400) for i in range(50)],
            )

        async with serve_for_test([autoscaler_with(GetTier=verbose)]) as (_, channel):
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(error) == "INVALID_REQUEST"

    async def test_an_unknown_method_is_unimplemented(self) -> None:
        async with serve_for_test([autoscaler_with()]) as (_, channel):
            error = await failure_of(raw(channel, f"/{SERVICE}/Nothing")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


class TestRequests:
    async def test_malformed_bytes_are_an_invalid_argument_without_python_text(self) -> None:
        async with serve_for_test([autoscaler_with(GetTier=answer_tier)]) as (_, channel):
            error = await failure_of(raw(channel, f"/{SERVICE}/GetTier")(b"\xff\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(error) == "INVALID_REQUEST"
        for python_text in ("DecodeError", "Traceback", "Exception", "parsing", "google"):
            assert python_text not in (error.details() or "")

    async def test_malformed_bytes_in_a_request_stream_are_an_invalid_argument(self) -> None:
        async def read(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for _ in requests:
                yield gpu_metrics_pb2.StreamReportsResponse()

        registration = collector_with(StreamReports=read)
        async with serve_for_test([registration]) as (_, channel):
            path = f"/{registration.full_name}/StreamReports"
            error = await failure_of(raw(channel, path, "stream_stream")(iter([b"\xff\xff\xff"])))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_validation_lists_every_wrong_field(self) -> None:
        request = autoscaler_pb2.SetOverrideRequest(
            override=autoscaler_pb2.Override(reason="", set_by="x" * 300), request_id="no-uuid"
        )
        async with serve_for_test([autoscaler_with()]) as (_, channel):
            error = await failure_of(autoscaler_stub(channel).SetOverride(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        fields = {item.field for item in details_of(error)["BadRequest"].field_violations}
        assert {
            "tier",
            "override.kind",
            "override.reason",
            "override.expire_time",
            "override.set_by",
            "request_id",
        } <= fields

    async def test_an_oversized_message_is_refused(self) -> None:
        async with serve_for_test([autoscaler_with(GetTier=answer_tier)]) as (_, channel):
            error = await failure_of(
                raw(channel, f"/{SERVICE}/GetTier")(b"\x00" * (1024 * 1024 + 1))
            )
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_oversized_metadata_is_refused(self) -> None:
        async with serve_for_test([autoscaler_with(GetTier=answer_tier)]) as (_, channel):
            error = await failure_of(
                autoscaler_stub(channel).GetTier(GOLD, metadata=[("x-much", "m" * 20_000)])
            )
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
