"""The promises of a model server client, kept by the real one over HTTP and by the fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import pytest

from ai_router.adapters.openai_model_server import ModelServerTimeouts, OpenAiModelServer
from ai_router.domain.generation import FinishReason
from ai_router.ports import AnswerPiece, FailureKind, ModelServerClient, ModelServerFailure
from ai_router.testing.builders import request
from ai_router.testing.fake_model_servers import FakeModelServers, FakeServer
from ai_router.testing.scripted_model_server import Script, serve_script

TEXTS = ("The ", "lamp ", "burns.")
STATUSES = {
    FailureKind.REJECTED: 400,
    FailureKind.OVERLOADED: 503,
    FailureKind.FAILED: 500,
}


@dataclass(frozen=True, slots=True)
class Bench:
    """A client before one server, and whether that server is still at work."""

    client: ModelServerClient
    url: str
    running: Callable[[], int]


class Benches:
    """Makes the same situation for both clients."""

    def __init__(self, kind: str, stack: AsyncExitStack) -> None:
        self._kind = kind
        self._stack = stack

    async def answering(self) -> Bench:
        return await self._make(FakeServer(texts=TEXTS), Script(tokens=list(TEXTS)))

    async def failing(self, kind: FailureKind) -> Bench:
        return await self._make(FakeServer(failure=kind), Script(status=STATUSES[kind]))

    async def breaking_off(self) -> Bench:
        return await self._make(
            FakeServer(texts=TEXTS, failure=FailureKind.FAILED, fail_after=2),
            Script(tokens=list(TEXTS), break_after=2),
        )

    async def stopping_midway(self) -> Bench:
        fake = FakeServer(texts=TEXTS)
        return await self._make(fake, Script(tokens=list(TEXTS), hold_before=2))

    async def absent(self) -> Bench:
        if self._kind == "fake":
            return Bench(FakeModelServers(), "http://nobody", lambda: 0)
        return Bench(await self._real(), "http://127.0.0.1:9", lambda: 0)

    async def _make(self, fake: FakeServer, script: Script) -> Bench:
        if self._kind == "fake":
            return Bench(FakeModelServers(a=fake), "http://a", lambda: fake.running)
        server = await self._stack.enter_async_context(serve_script(script))
        return Bench(await self._real(), server.url, lambda: server.running)

    async def _real(self) -> OpenAiModelServer:
        client = OpenAiModelServer(ModelServerTimeouts(idle_seconds=5.0))
        return await self._stack.enter_async_context(client)


@pytest.fixture(params=["fake", "real"])
async def benches(request: pytest.FixtureRequest) -> AsyncIterator[Benches]:
    async with AsyncExitStack() as stack:
        yield Benches(str(request.param), stack)


async def read(bench: Bench, into: list[AnswerPiece]) -> None:
    async with aclosing(bench.client.stream(bench.url, "m", request(), 10.0)) as pieces:
        async for piece in pieces:
            into.append(piece)  # noqa: PERF401  # kept when the stream raises


async def until_idle(bench: Bench) -> None:
    async with asyncio.timeout(30):
        while bench.running():  # noqa: ASYNC110  # state of another party, polled
            await asyncio.sleep(0.005)


async def test_an_answer_is_its_text_and_one_end_last(benches: Benches) -> None:
    bench = await benches.answering()
    pieces: list[AnswerPiece] = []
    await read(bench, pieces)
    assert "".join(piece.text for piece in pieces) == "".join(TEXTS)
    assert pieces[0].text
    assert [piece.end is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    end = pieces[-1].end
    assert end is not None
    assert (end.finish_reason, end.output_tokens) == (FinishReason.STOP, len(TEXTS))
    assert end.prompt_tokens > 0
    await until_idle(bench)


@pytest.mark.parametrize("kind", list(STATUSES))
async def test_a_failure_says_of_what_kind_it_is(benches: Benches, kind: FailureKind) -> None:
    pieces: list[AnswerPiece] = []
    with pytest.raises(ModelServerFailure) as caught:
        await read(await benches.failing(kind), pieces)
    assert caught.value.kind is kind
    assert pieces == []


async def test_a_server_that_is_not_there_is_unreachable(benches: Benches) -> None:
    with pytest.raises(ModelServerFailure) as caught:
        await read(await benches.absent(), [])
    assert caught.value.kind is FailureKind.UNREACHABLE


async def test_an_answer_that_breaks_off_gives_its_text_and_then_the_failure(
    benches: Benches,
) -> None:
    pieces: list[AnswerPiece] = []
    with pytest.raises(ModelServerFailure) as caught:
        await read(await benches.breaking_off(), pieces)
    assert caught.value.kind is FailureKind.FAILED
    assert "".join(piece.text for piece in pieces) == "The lamp "
    assert all(piece.end is None for piece in pieces)


async def test_who_stops_reading_ends_the_work_on_the_server(benches: Benches) -> None:
    bench = await benches.stopping_midway()
    async with aclosing(bench.client.stream(bench.url, "m", request(), 10.0)) as pieces:
        first = await anext(pieces)
        assert first.end is None
    await until_idle(bench)
