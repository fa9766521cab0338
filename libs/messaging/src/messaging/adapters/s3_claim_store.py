"""An S3 bucket that holds events too large for a message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from messaging.adapters.aws_calls import aws_call, open_client
from messaging.errors import BusRefused, ClaimMissing
from messaging.settings import MessagingSettings

__all__ = ["S3ClaimStore", "open_s3_claim_store"]

_CONNECTIONS = 4
_NOT_THERE = frozenset({"NoSuchKey", "404"})


class S3ClaimStore:
    """Stores contents as objects; the bucket's lifecycle rule deletes them one day."""

    def __init__(self, client: Any, bucket: str, *, timeout_seconds: float) -> None:
        self._client = client
        self._bucket = bucket
        self._timeout_seconds = timeout_seconds

    async def put(self, key: str, content: bytes) -> None:
        """Stores `content`; it can be read when this returns. Raises BusUnavailable, BusRefused."""
        async with aws_call(self._timeout_seconds):
            await self._client.put_object(Bucket=self._bucket, Key=key, Body=content)

    async def get(self, key: str, *, maximum_bytes: int) -> bytes:
        """Returns what was stored.

        Raises:
            ClaimMissing: nothing is stored there, or more than `maximum_bytes`.
            BusUnavailable: not now.
            BusRefused: reading is not permitted.
        """
        try:
            async with aws_call(self._timeout_seconds):
                answer = await self._client.get_object(Bucket=self._bucket, Key=key)
                async with answer["Body"] as stream:
                    if answer["ContentLength"] > maximum_bytes:
                        raise ClaimMissing("the stored payload is larger than events are")
                    return bytes(await stream.read())
        except BusRefused as error:
            if error.metadata.get("error_code") in _NOT_THERE:
                raise ClaimMissing("the stored payload is gone") from None
            raise


@asynccontextmanager
async def open_s3_claim_store(settings: MessagingSettings) -> AsyncIterator[S3ClaimStore | None]:
    """Yields the claim store of the settings; None without a bucket."""
    if not settings.claim_bucket:
        yield None
        return
    async with open_client("s3", settings, connections=_CONNECTIONS) as client:
        yield S3ClaimStore(
            client, settings.claim_bucket, timeout_seconds=settings.call_timeout_seconds
        )
