"""Embedding by Amazon Titan on Bedrock: what is sent, what comes back, and what goes wrong.

The server here is a stub: it refuses what the API's documentation does not allow, so it proves the
shape of the calls and the handling of failures, not that AWS answers.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from knowledge_base.__main__ import offered_models
from knowledge_base.adapters.bedrock_embedder import BedrockEmbedder, open_bedrock_embedder
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.config import EmbeddingSettings
from knowledge_base.domain.embedding_models import EmbeddingRefused, EmbeddingUnavailable
from servicekit.clock import SystemClock
from servicekit.errors import Overloaded
from servicekit.settings import SettingsError, load_settings

RANDOM = Random(1)  # noqa: S311  # spreads delays
MODEL = "amazon.titan-embed-text-v2:0"
SIGNATURE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=AKIDTEST/\d{8}/eu-west-1/bedrock/aws4_request, "
    r"SignedHeaders=[a-z0-9;-]*host[a-z0-9;-]*, Signature=[0-9a-f]{64}"
)


class TitanStub:
    """Answers InvokeModel of Titan Text Embeddings V2 as its documentation says.

    `failures` are answered first, one a call; `hold` makes calls wait for it.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.failures: list[tuple[int, str]] = []
        self.hold: asyncio.Event | None = None
        self.in_flight = self.most_in_flight = 0
        self.broken_answer: bytes | None = None

    async def invoke(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != MODEL:
            return self._error(404, "ResourceNotFoundException")
        if not SIGNATURE.fullmatch(request.headers.get("Authorization", "")):
            return self._error(403, "InvalidSignatureException")
        if request.headers["Content-Type"] != "application/json":
            return self._error(400, "ValidationException")
        body = json.loads(await request.read())
        if not self._allowed(body):
            return self._error(400, "ValidationException")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.hold is not None:
                await self.hold.wait()
            if self.failures:
                return self._error(*self.failures.pop(0))
            if self.broken_answer is not None:
                return web.Response(body=self.broken_answer, content_type="application/json")
            self.texts.append(body["inputText"])
            vector = self.vector(body["inputText"], body["dimensions"])
            answer = {
                "embedding": vector,
                "inputTextTokenCount": len(body["inputText"].split()),
                "embeddingsByType": {"float": vector},
            }
            return web.json_response(answer)
        finally:
            self.in_flight -= 1

    @staticmethod
    def vector(text: str, dimensions: int) -> list[float]:
        vector = np.random.default_rng(len(text)).standard_normal(dimensions)
        unit: list[float] = (vector / np.linalg.norm(vector)).tolist()
        return unit

    @staticmethod
    def _allowed(body: dict[str, Any]) -> bool:
        return (
            set(body) <= {"inputText", "dimensions", "normalize", "embeddingTypes"}
            and isinstance(body["inputText"], str)
            and 0 < len(body["inputText"]) <= 50_000
            and body.get("dimensions", 1024) in (256, 512, 1024)
            and isinstance(body.get("normalize", True), bool)
            and body.get("embeddingTypes", ["float"]) in (["float"], ["binary"])
        )

    @staticmethod
    def _error(status: int, code: str) -> web.Response:
        return web.json_response(
            {"message": "a text that no caller shall see"},
            status=status,
            headers={"x-amzn-ErrorType": code},
        )


@pytest.fixture
async def titan(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[TitanStub, str]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    stub = TitanStub()
    application = web.Application()
    application.router.add_post("/model/{model}/invoke", stub.invoke)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield stub, f"http://{host}:{port}"
    await runner.cleanup()


Opened = Callable[..., Any]


@pytest.fixture
async def stub(titan: tuple[TitanStub, str]) -> TitanStub:
    return titan[0]


@pytest.fixture
async def opened(titan: tuple[TitanStub, str]) -> Opened:
    def open_it(*, timeout_seconds: float = 30.0, calls_at_once: int = 4) -> Any:
        return open_bedrock_embedder(
            region="eu-west-1",
            endpoint_url=titan[1],
            dimensions=512,
            calls_at_once=calls_at_once,
            timeout_seconds=timeout_seconds,
            clock=SystemClock(),
            rng=RANDOM,
        )

    return open_it


async def test_texts_become_the_vectors_that_titan_answers(stub: TitanStub, opened: Opened) -> None:
    embedder: BedrockEmbedder
    async with opened() as embedder:
        assert (embedder.model, embedder.dimensions) == (f"{MODEL}/512", 512)
        texts = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
        vectors = await embedder.embed_documents(texts)
        query = await embedder.embed_query("bb")
    assert vectors.shape == (6, 512)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(np.array(stub.vector(text, 512)), abs=1e-6)
    assert query == pytest.approx(vectors[1])


async def test_an_empty_and_a_too_long_text_are_embedded_all_the_same(
    stub: TitanStub, opened: Opened
) -> None:
    async with opened() as embedder:
        assert (await embedder.embed_query("")).shape == (512,)
        assert (await embedder.embed_query("x" * 60_000)).shape == (512,)
    assert [len(text) for text in stub.texts] == [1, 50_000]


@pytest.mark.parametrize(
    "failure",
    [
        (429, "ThrottlingException"),
        (408, "ModelTimeoutException"),
        (503, "ServiceUnavailableException"),
    ],
)
async def test_what_passes_is_tried_again(
    stub: TitanStub, opened: Opened, failure: tuple[int, str]
) -> None:
    stub.failures = [failure, failure]
    async with opened() as embedder:
        assert (await embedder.embed_query("a lamp")).shape == (512,)
    assert stub.texts == ["a lamp"]


@pytest.mark.parametrize(
    "failure",
    [(400, "ValidationException"), (403, "AccessDeniedException")],
)
async def test_what_does_not_pass_is_told_at_once_without_the_words_of_aws(
    stub: TitanStub, opened: Opened, failure: tuple[int, str]
) -> None:
    stub.failures = [failure]
    async with opened() as embedder:
        with pytest.raises(EmbeddingRefused) as refused:
            await embedder.embed_documents(["a lamp", "a key"])
        assert refused.value.metadata == {"error_code": failure[1]}
        assert "no caller" not in str(refused.value)


async def test_throttling_without_end_ends_with_the_time_granted(
    stub: TitanStub, opened: Opened
) -> None:
    stub.failures = [(429, "ThrottlingException")] * 1000
    async with opened(timeout_seconds=0.8) as embedder:
        with pytest.raises(EmbeddingUnavailable) as unavailable:
            await embedder.embed_query("a lamp")
    assert unavailable.value.retry_after_seconds
    # With delays that double from 0.2 s; a loop without them would have called hundreds of times.
    assert len(stub.failures) > 990


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"embedding": [1.0]}'])
async def test_an_answer_of_another_shape_is_no_vector(
    stub: TitanStub, opened: Opened, answer: bytes
) -> None:
    stub.broken_answer = answer
    async with opened(timeout_seconds=0.5) as embedder:
        with pytest.raises(EmbeddingUnavailable):
            await embedder.embed_query("a lamp")


async def test_a_server_that_does_not_answer_costs_the_time_granted_and_no_more(
    stub: TitanStub, opened: Opened
) -> None:
    stub.hold = asyncio.Event()
    async with opened(timeout_seconds=0.3) as embedder:
        with pytest.raises(EmbeddingUnavailable):
            await embedder.embed_query("a lamp")
        stub.hold.set()
        assert (await embedder.embed_query("a lamp")).shape == (512,)


async def test_calls_in_flight_and_waiting_queries_are_bounded(
    stub: TitanStub, opened: Opened
) -> None:
    stub.hold = asyncio.Event()
    async with opened(calls_at_once=4) as embedder, asyncio.TaskGroup() as group:
        documents = group.create_task(embedder.embed_documents([f"d{n}" for n in range(20)]))
        queries = [group.create_task(embedder.embed_query(f"q{n}")) for n in range(68)]
        async with asyncio.timeout(30):
            while stub.in_flight < 4:  # noqa: ASYNC110  # what is waited for is the stub's
                await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await embedder.embed_query("one too many")
        stub.hold.set()
        await asyncio.gather(documents, *queries)
    assert stub.most_in_flight == 4
    assert len(stub.texts) == 88


def offered(**environ: str) -> list[str]:
    settings = load_settings(EmbeddingSettings, environ)

    async def lend_model() -> OnnxEmbedder:
        raise AssertionError("a model is opened when it is first needed")

    return [model.name for model in offered_models(settings, lend_model, SystemClock(), RANDOM)]


def test_the_settings_choose_what_a_new_database_is_filled_with() -> None:
    assert offered() == ["all-MiniLM-L6-v2"]
    region = {"KNOWLEDGE_BASE_BEDROCK_REGION": "eu-west-1"}
    assert offered(**region) == ["all-MiniLM-L6-v2", f"{MODEL}/1024"]
    assert offered(
        KNOWLEDGE_BASE_EMBEDDER="bedrock", KNOWLEDGE_BASE_BEDROCK_DIMENSIONS="256", **region
    ) == [f"{MODEL}/256", "all-MiniLM-L6-v2"]
    with pytest.raises(SettingsError, match="KNOWLEDGE_BASE_BEDROCK_REGION"):
        offered(KNOWLEDGE_BASE_EMBEDDER="bedrock")


@pytest.mark.parametrize("name", ["hash", "hash-for-tests", "HashEmbedder", "test", ""])
def test_no_setting_selects_the_embedder_of_the_tests(name: str) -> None:
    try:
        names = offered(KNOWLEDGE_BASE_EMBEDDER=name, KNOWLEDGE_BASE_BEDROCK_REGION="eu-west-1")
    except SettingsError:
        return
    assert not [model for model in names if "hash" in model]
