"""Sentence embeddings by Amazon Titan Text Embeddings V2 on Amazon Bedrock.

Request and response: Amazon Bedrock User Guide, "Amazon Titan Text Embeddings V2" (InvokeModel).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any

import aioboto3
import aiohttp
import numpy as np
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from knowledge_base.domain.embedding_models import (
    TITAN,
    EmbeddingRefused,
    EmbeddingUnavailable,
    titan_name,
)
from knowledge_base.ports import Vector
from servicekit.clock import Clock
from servicekit.errors import Overloaded

__all__ = ["BedrockEmbedder", "open_bedrock_embedder"]

# The model takes 8,192 tokens and 50,000 characters; longer texts are cut as the local model does.
_MAXIMUM_CHARACTERS = 50_000
_CONNECT_TIMEOUT_SECONDS = 3.0
_FIRST_BACKOFF_SECONDS = 0.2
_MAXIMUM_BACKOFF_SECONDS = 5.0
_QUERIES_WAITING = 64
# Of the calls at once, so many are left to queries while documents are embedded.
_CALLS_FOR_QUERIES = 2
# What a repeat may cure, by error code or HTTP status (Amazon Bedrock API Reference, InvokeModel).
_PASSING_CODES = frozenset(
    (
        "ThrottlingException",
        "ServiceQuotaExceededException",
        "ServiceUnavailableException",
        "ModelTimeoutException",
        "ModelNotReadyException",
        "InternalServerException",
    )
)
_SERVER_ERROR = 500


class BedrockEmbedder:
    """Embeds texts as unit vectors of `dimensions` float32, one call a text.

    A call that is throttled or fails for a passing reason is repeated with doubling, jittered
    delays until `timeout_seconds` are over for the text as a whole.

    Args:
        client: an aiobotocore client of `bedrock-runtime`; it must not repeat calls itself.
        dimensions: 256, 512 or 1024.
        calls_at_once: most calls in flight, two of them kept for queries.
        timeout_seconds: limit of one text, repeats included.
        rng: spreads the delays.
    """

    def __init__(
        self,
        client: Any,
        *,
        dimensions: int,
        calls_at_once: int,
        timeout_seconds: float,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._client = client
        self._dimensions = dimensions
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._rng = rng
        self._queries = asyncio.Semaphore(calls_at_once)
        self._documents = asyncio.Semaphore(max(1, calls_at_once - _CALLS_FOR_QUERIES))
        self._calls_at_once = calls_at_once
        self._queries_in_hand = 0

    @property
    def model(self) -> str:
        """The model's name with its dimensions: vectors of another length are another model's."""
        return titan_name(self._dimensions)

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return self._dimensions

    async def embed_query(self, text: str) -> Vector:
        """Returns the unit vector of one text, shape [dimensions].

        Raises Overloaded when too many queries wait, EmbeddingUnavailable, EmbeddingRefused.
        """
        if self._queries_in_hand >= self._calls_at_once + _QUERIES_WAITING:
            raise Overloaded("too many queries wait for their embedding; try again shortly")
        self._queries_in_hand += 1
        try:
            return await self._embed(text)
        finally:
            self._queries_in_hand -= 1

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the unit vectors of texts, shape [len(texts), dimensions], in the order given.

        Raises EmbeddingUnavailable, EmbeddingRefused; then no call goes on.
        """
        vectors = np.empty((len(texts), self._dimensions), dtype=np.float32)

        async def embed(row: int) -> None:
            async with self._documents:
                vectors[row] = await self._embed(texts[row])

        try:
            async with asyncio.TaskGroup() as group:
                for row in range(len(texts)):
                    group.create_task(embed(row))
        except ExceptionGroup as errors:
            told = errors.subgroup((EmbeddingUnavailable, EmbeddingRefused))
            if told is None:
                raise
            raise told.exceptions[0] from None
        return vectors

    async def _embed(self, text: str) -> Vector:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while True:
                    try:
                        async with self._queries:
                            return await self._invoke(text)
                    except _Passing:
                        # Full jitter: callers that were throttled together come back apart.
                        await self._clock.sleep(backoff_seconds * self._rng.uniform(0.5, 1.0))
                        backoff_seconds = min(2 * backoff_seconds, _MAXIMUM_BACKOFF_SECONDS)
        except TimeoutError:
            raise EmbeddingUnavailable(
                "The embedding model does not answer in time; try again in a moment.",
                retry_after_seconds=_MAXIMUM_BACKOFF_SECONDS,
            ) from None

    async def _invoke(self, text: str) -> Vector:
        # The model refuses an empty text.
        body = {
            "inputText": text[:_MAXIMUM_CHARACTERS] or " ",
            "dimensions": self._dimensions,
            "normalize": True,
            "embeddingTypes": ["float"],
        }
        with _sorted_failures():
            response = await self._client.invoke_model(
                modelId=TITAN,
                contentType="application/json",
                accept="application/json",
                body=json.dumps(body),
            )
            answer = json.loads(await response["body"].read())
            vector = np.array(answer["embedding"], dtype=np.float32)
            if vector.shape != (self._dimensions,):
                raise ValueError("a vector of another length")
        return vector


class _Passing(Exception):
    """The same call may work a little later."""


@contextmanager
def _sorted_failures() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _PASSING_CODES or status >= _SERVER_ERROR:
            raise _Passing from error
        raise EmbeddingRefused(
            "The embedding model refuses the call; the operator must look at the model's access.",
            metadata={"error_code": code or "UNKNOWN"},
        ) from error
    except (
        BotoCoreError,
        aiohttp.ClientError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
    ) as error:
        # No connection, one that broke off, or an answer that is not the model's.
        raise _Passing from error


@asynccontextmanager
async def open_bedrock_embedder(
    *,
    region: str,
    endpoint_url: str | None,
    dimensions: int,
    calls_at_once: int,
    timeout_seconds: float,
    clock: Clock,
    rng: Random,
) -> AsyncIterator[BedrockEmbedder]:
    """Yields an embedder on Bedrock; credentials come the AWS SDK's usual way.

    Nothing is called before the first text, so a service starts while Bedrock is away.
    """
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=timeout_seconds,
        max_pool_connections=calls_at_once,
        # Repeats are made here, where the caller's time is known.
        retries={"mode": "standard", "total_max_attempts": 1},
        tcp_keepalive=True,
    )
    async with aioboto3.Session().client(
        "bedrock-runtime", region_name=region, endpoint_url=endpoint_url, config=config
    ) as client:
        yield BedrockEmbedder(
            client,
            dimensions=dimensions,
            calls_at_once=calls_at_once,
            timeout_seconds=timeout_seconds,
            clock=clock,
            rng=rng,
        )
