"""How long calls last and how many run: deadlines, admission limits, cancellation by callers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from autoscaler.testing.partial_service import GOLD, answer_tier, autoscaler_stub, autoscaler_with
from gaming.autoscaler.v1 import autoscaler_pb2
from servicekit import method_policies
from servicekit.testing import details_of, failure_of, reason_of, serve_for_test

SOON_SECONDS = 30
"""Far more than the second that `test_attack_streams` holds a service to: here it is whether."""


def limit_interactive_calls(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:

    shortened = dict.fromkeys(method_policies.DEADLINE_SECONDS, seconds)
    monkeypatch.setattr(method_policies, "DEADLINE_SECONDS", shortened)


class TestDeadlines:
    async def test_a_caller_without_a_deadline_is_capped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        limit_interactive_calls(monkeypatch, 0.05)
        async with (
            serve_for_test([autoscaler_with(GetTier=endless)]) as (server, _),
            grpc.aio.insecure_channel(server.address) as bare,
        ):
            error = await failure_of(autoscaler_stub(bare).GetTier(GOLD))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "set a deadline" in (error.details() or "")
        assert ended.is_set()

    async def test_a_stream_that_reached_its_greatest_age_asks_to_be_resumed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def endless(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.1")
            await asyncio.Event().wait()

        limit_interactive_calls(monkeypatch, 0.05)
        async with (
            serve_for_test([autoscaler_with(WatchDecisions=endless)]) as (server, _),
            grpc.aio.insecure_channel(server.address) as bare,
        ):
            error = await failure_of(
                autoscaler_stub(bare).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            )
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "STREAM_EXPIRED"

    async def test_our_channel_sets_the_methods_deadline_when_the_caller_sets_none(self) -> None:
        seen: list[float] = []

        async def look(request: Any, context: Any) -> Any:
            seen.append(context.time_remaining())
            return autoscaler_pb2.GetTierResponse()

        async with serve_for_test([autoscaler_with(GetTier=look)]) as (_, channel):
            await autoscaler_stub(channel).GetTier(GOLD)
            await autoscaler_stub(channel).GetTier(GOLD, timeout=5)
        assert 5.5 < seen[0] < 10.5
        assert 0 < seen[1] < 5.5

    async def test_the_handler_ends_at_the_callers_deadline(self) -> None:
        ended = asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(GetTier=endless)]) as (_, channel):
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD, timeout=0.1))
            await asyncio.wait_for(ended.wait(), SOON_SECONDS)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


class TestLimits:
    async def test_more_calls_than_the_limit_are_told_when_to_come_back(self) -> None:
        entered, release = asyncio.Event(), asyncio.Event()

        async def hold(request: Any, context: Any) -> Any:
            entered.set()
            await release.wait()
            return autoscaler_pb2.GetTierResponse()

        async with serve_for_test(
            [autoscaler_with(GetTier=hold)], GAMEKEEPER_MAX_CONCURRENT_CALLS="1"
        ) as (_, channel):
            first = autoscaler_stub(channel).GetTier(GOLD)
            await entered.wait()
            error = await failure_of(autoscaler_stub(channel).GetTier(GOLD))
            release.set()
            await first
            await autoscaler_stub(channel).GetTier(GOLD)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(error) == "OVERLOADED"
        assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() == 1000

    async def test_streams_do_not_count_as_calls(self) -> None:
        async def stay(request: Any, context: Any) -> AsyncIterator[Any]:
            yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.0")
            await asyncio.Event().wait()

        request = autoscaler_pb2.WatchDecisionsRequest()
        async with serve_for_test(
            [autoscaler_with(GetTier=answer_tier, WatchDecisions=stay)],
            GAMEKEEPER_MAX_CONCURRENT_CALLS="1",
            GAMEKEEPER_MAX_CONCURRENT_STREAMS="1",
        ) as (_, channel):
            stream = autoscaler_stub(channel).WatchDecisions(request)
            await anext(aiter(stream))
            await autoscaler_stub(channel).GetTier(GOLD)
            error = await failure_of(autoscaler_stub(channel).WatchDecisions(request))
            stream.cancel()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_a_cancelled_stream_gives_its_place_back(self) -> None:
        left = asyncio.Event()

        async def stay(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.0")
                await asyncio.Event().wait()
            finally:
                left.set()

        request = autoscaler_pb2.WatchDecisionsRequest()
        async with serve_for_test(
            [autoscaler_with(WatchDecisions=stay)], GAMEKEEPER_MAX_CONCURRENT_STREAMS="1"
        ) as (_, channel):
            for _ in range(3):
                left.clear()
                stream = autoscaler_stub(channel).WatchDecisions(request)
                await anext(aiter(stream))
                stream.cancel()
                await asyncio.wait_for(left.wait(), SOON_SECONDS)


class TestCancellation:
    async def test_a_clients_cancel_reaches_a_unary_handler(self) -> None:
        entered, ended = asyncio.Event(), asyncio.Event()

        async def endless(request: Any, context: Any) -> Any:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(GetTier=endless)]) as (_, channel):
            call = autoscaler_stub(channel).GetTier(GOLD)
            await entered.wait()
            call.cancel()
            await asyncio.wait_for(ended.wait(), SOON_SECONDS)

    async def test_a_clients_cancel_ends_a_stream_whose_reader_does_not_read(self) -> None:
        """The handler is stuck in flow control then, not in its own code."""
        filling, ended = asyncio.Event(), asyncio.Event()
        large = autoscaler_pb2.Decision(summary="s" * 500_000)

        async def flood(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                for number in range(1000):
                    if number == 1:
                        filling.set()
                    yield autoscaler_pb2.WatchDecisionsResponse(decision=large)
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(WatchDecisions=flood)]) as (_, channel):
            stream = autoscaler_stub(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
            await anext(aiter(stream))
            await asyncio.wait_for(filling.wait(), SOON_SECONDS)
            assert not ended.is_set()
            stream.cancel()
            await asyncio.wait_for(ended.wait(), SOON_SECONDS)

    async def test_a_client_that_dies_ends_the_handler(self) -> None:
        ended = asyncio.Event()

        async def stay(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                yield autoscaler_pb2.WatchDecisionsResponse(resume_token="e.0")
                await asyncio.Event().wait()
            finally:
                ended.set()

        client = """
import sys, grpc
from gaming.autoscaler.v1 import autoscaler_pb2 as pb2, autoscaler_pb2_grpc as pb2_grpc
stub = pb2_grpc.AutoscalerServiceStub(grpc.insecure_channel(sys.argv[1]))
for response in stub.WatchDecisions(pb2.WatchDecisionsRequest()):
    print(response.resume_token, flush=True)
"""
        async with serve_for_test([autoscaler_with(WatchDecisions=stay)]) as (server, _):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", client, server.address), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 60) == b"e.0\n"
            assert not ended.is_set()
            process.kill()
            await process.communicate()
            await asyncio.wait_for(ended.wait(), SOON_SECONDS)
