"""What our channel does for callers: repeated tries, resumed watches, traces carried on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from autoscaler.testing.partial_service import GOLD, autoscaler_stub, autoscaler_with
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.streams import ResumableLog
from servicekit.testing import failure_of, serve_for_test, servicer_with
from servicekit.watching import watch


class TestRetries:
    """The first tries fail inside a raw server, without response headers, so gRPC may retry."""

    async def tries(self, method: str, request: Any) -> tuple[int, grpc.aio.AioRpcError | None]:
        count = 0

        async def flaky(request: Any, context: Any) -> Any:
            nonlocal count
            count += 1
            if count < 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            kind = getattr(autoscaler_pb2, f"{method}Response")
            return kind()

        server = grpc.aio.server()
        autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server(
            servicer_with(autoscaler_pb2_grpc.AutoscalerServiceServicer, **{method: flaky}), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with open_channel(f"127.0.0.1:{port}") as channel:
                await getattr(autoscaler_stub(channel), method)(request)
                return count, None
        except grpc.aio.AioRpcError as error:
            return count, error
        finally:
            await server.stop(0)

    async def test_a_method_that_may_be_repeated_is(self) -> None:
        assert await self.tries("GetTier", GOLD) == (3, None)

    async def test_a_mutation_with_a_request_id_is_repeated(self) -> None:
        request = autoscaler_pb2.ClearOverrideRequest(tier=tier_pb2.TIER_GOLD, request_id="r")
        assert await self.tries("ClearOverride", request) == (3, None)

    async def test_a_method_that_must_not_be_repeated_is_not(self) -> None:

        count = 0

        async def away(request: Any, context: Any) -> Any:
            nonlocal count
            count += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

        server = grpc.aio.server()
        ai_router_pb2_grpc.add_AiRouterServiceServicer_to_server(
            servicer_with(ai_router_pb2_grpc.AiRouterServiceServicer, GenerateOnce=away), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            router: Any = ai_router_pb2_grpc.AiRouterServiceStub(channel)
            await failure_of(router.GenerateOnce(ai_router_pb2.GenerateOnceRequest()))
        await server.stop(0)
        assert count == 1


async def read_desired(messages: AsyncIterator[Any]) -> int:
    return int((await anext(messages)).decision.desired)


class TestWatching:
    """watch() and ResumableLog, joined by a real connection."""

    async def test_a_restarted_server_loses_nothing_that_its_successor_knows(self) -> None:
        log: ResumableLog[int] = ResumableLog(clock=SystemClock(), epoch="run1")

        async def feed(request: Any, context: Any) -> AsyncIterator[Any]:
            async for step in log.subscribe(request.resume_token):
                decision = autoscaler_pb2.Decision(desired=step.item) if step.item else None
                yield autoscaler_pb2.WatchDecisionsResponse(
                    resume_token=step.token, decision=decision
                )

        registration = autoscaler_with(WatchDecisions=feed)
        first_token = log.latest_token
        log.publish(1)
        async with serve_for_test([registration]) as (server, _):
            address = server.address
            channel = open_channel(address)
            messages = watch(
                lambda token: autoscaler_stub(channel).WatchDecisions(
                    autoscaler_pb2.WatchDecisionsRequest(resume_token=token or first_token)
                ),
                token_of=lambda message: message.resume_token,
                clock=SystemClock(),
                name="decisions",
            )
            assert (await anext(messages)).decision.desired == 1
        log.publish(2)  # while no server is there
        waiting = asyncio.ensure_future(read_desired(messages))
        async with serve_for_test([registration], GAMEKEEPER_LISTEN_ADDRESS=address):
            assert await asyncio.wait_for(waiting, 30) == 2
            log.publish(3)
            assert await asyncio.wait_for(read_desired(messages), 30) == 3
            await messages.aclose()
            await channel.close()

    async def test_ending_a_watch_cancels_the_call_on_the_server(self) -> None:
        log: ResumableLog[int] = ResumableLog(clock=SystemClock(), epoch="run1")
        ended = asyncio.Event()

        async def feed(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for step in log.subscribe(request.resume_token):
                    yield autoscaler_pb2.WatchDecisionsResponse(resume_token=step.token)
            finally:
                ended.set()

        async with serve_for_test([autoscaler_with(WatchDecisions=feed)]) as (_, channel):
            messages = watch(
                lambda token: autoscaler_stub(channel).WatchDecisions(
                    autoscaler_pb2.WatchDecisionsRequest(resume_token=token or "run1.0")
                ),
                token_of=lambda message: message.resume_token,
                clock=SystemClock(),
                name="decisions",
            )
            log.publish(1)
            await anext(messages)
            assert not ended.is_set()
            await messages.aclose()
            await asyncio.wait_for(ended.wait(), 30)

    async def test_a_silent_stream_is_cancelled_on_the_server(self) -> None:
        opened, ended = asyncio.Queue[None](), asyncio.Queue[None]()

        async def mute(request: Any, context: Any) -> AsyncIterator[Any]:
            opened.put_nowait(None)
            try:
                yield autoscaler_pb2.WatchDecisionsResponse(resume_token="run1.1")
                await asyncio.Event().wait()
            finally:
                ended.put_nowait(None)

        async with serve_for_test([autoscaler_with(WatchDecisions=mute)]) as (_, channel):
            messages = watch(
                lambda token: autoscaler_stub(channel).WatchDecisions(
                    autoscaler_pb2.WatchDecisionsRequest(resume_token=token)
                ),
                token_of=lambda message: message.resume_token,
                clock=SystemClock(),
                name="decisions",
                idle_timeout_seconds=0.2,
            )
            await anext(messages)
            waiting = asyncio.ensure_future(read_desired(messages))
            async with asyncio.timeout(30):
                await ended.get()
                await opened.get()
                await opened.get()
                await waiting
            await messages.aclose()


class TestTracing:
    async def test_the_callers_trace_goes_through_a_service_to_the_next(self) -> None:
        seen: list[str] = []

        async def last(request: Any, context: Any) -> Any:
            seen.append(dict(context.invocation_metadata())["traceparent"])
            return autoscaler_pb2.GetTierResponse()

        async with serve_for_test([autoscaler_with(GetTier=last)]) as (_, onward):

            async def pass_on(request: Any, context: Any) -> Any:
                return await autoscaler_stub(onward).GetTier(request)

            async with serve_for_test([autoscaler_with(GetTier=pass_on)]) as (_, channel):
                traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
                await autoscaler_stub(channel).GetTier(
                    GOLD, metadata=[("traceparent", traceparent)]
                )
        assert seen[0].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
