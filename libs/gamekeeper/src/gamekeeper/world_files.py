"""Worlds in files: what ExportWorld streams, written down, and read for ImportWorld.

A file is the line `gamekeeper-world-1`, then each WorldRecord with its length in front, four bytes,
big-endian. The trailer's checksum, which the knowledge base checks, tells whether it is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc, world_records_pb2

__all__ = ["NotAWorldFileError", "export_world", "import_world", "read_header", "read_records"]

_MAGIC = b"gamekeeper-world-1\n"
_LENGTH_BYTES = 4
_LARGEST_RECORD_BYTES = 4_000_000
_TRIES = 5
_FIRST_PAUSE_SECONDS = 0.5


class NotAWorldFileError(Exception):
    """A file is no exported world, or was cut; the text says so to people."""


async def export_world(
    stub: knowledge_base_pb2_grpc.KnowledgeBaseServiceAsyncStub,
    world_id: str,
    path: Path,
    *,
    timeout_seconds: float,
    hear: Callable[[int, int], None] = lambda sent, total: None,
) -> world_records_pb2.WorldTrailer:
    """Writes a world to a file, which is there whole or not at all; returns what it holds.

    A break of the connection is bridged: the export goes on after the last record that came.

    Args:
        stub: calls the knowledge base.
        world_id: which world.
        path: the file; beside it, `.partial` is written until it is whole.
        timeout_seconds: longest wait for one call.
        hear: told rows written and rows in all, after each record.

    Raises:
        grpc.aio.AioRpcError: the knowledge base refused, or stayed away.
        OSError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    trailer = world_records_pb2.WorldTrailer()
    token, failures = "", 0
    try:
        with partial.open("wb") as file:
            file.write(_MAGIC)
            while not trailer.checksum_sha256:
                request = world_records_pb2.ExportWorldRequest(
                    world_id=world_id, resume_token=token
                )
                try:
                    async for step in stub.ExportWorld(request, timeout=timeout_seconds):
                        record = step.record.SerializeToString()
                        file.write(len(record).to_bytes(_LENGTH_BYTES, "big") + record)
                        token, failures = step.resume_token, 0
                        trailer = step.record.trailer
                        hear(step.sent_rows, step.total_rows)
                except grpc.aio.AioRpcError as error:
                    failures += 1
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or failures >= _TRIES:
                        raise
                    await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2**failures)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return trailer


async def import_world(
    stub: knowledge_base_pb2_grpc.KnowledgeBaseServiceAsyncStub,
    path: Path,
    begin: world_records_pb2.ImportBegin,
    *,
    timeout_seconds: float,
    hear: Callable[[int, int], None] = lambda sent, total: None,
) -> world_records_pb2.ImportWorldResponse:
    """Has the knowledge base take a world in from a file, all of it or nothing.

    Args:
        stub: calls the knowledge base.
        path: the file.
        begin: its name and id there.
        timeout_seconds: longest wait.
        hear: told rows sent and rows in all, after each record.

    Raises:
        NotAWorldFileError: before anything is sent.
        grpc.aio.AioRpcError: the knowledge base refused or is away.
        OSError: the file cannot be read.
    """
    read_header(path)
    # Read once beforehand: a file that was cut is found before anything is sent.
    total = await asyncio.to_thread(
        lambda: sum(len(record.rows.rows) for record in read_records(path))
    )

    async def requests() -> AsyncIterator[world_records_pb2.ImportWorldRequest]:
        yield world_records_pb2.ImportWorldRequest(begin=begin)
        sent = 0
        for record in read_records(path):
            yield world_records_pb2.ImportWorldRequest(record=record)
            sent += len(record.rows.rows)
            hear(sent, total)

    return await stub.ImportWorld(requests(), timeout=timeout_seconds)


def read_header(path: Path) -> world_records_pb2.WorldHeader:
    """Returns what a file holds. Raises NotAWorldFileError, OSError."""
    first = next(read_records(path), None)
    if first is None or not first.HasField("header"):
        raise NotAWorldFileError(f"{path} holds no exported world")
    return first.header


def read_records(path: Path) -> Iterator[world_records_pb2.WorldRecord]:
    """Yields a file's records. Raises NotAWorldFileError, OSError."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise NotAWorldFileError(f"{path} holds no exported world")
        while prefix := file.read(_LENGTH_BYTES):
            length = int.from_bytes(prefix, "big")
            data = file.read(length) if length <= _LARGEST_RECORD_BYTES else b""
            if len(prefix) < _LENGTH_BYTES or len(data) < length:
                raise NotAWorldFileError(f"{path} was cut")
            try:
                record = world_records_pb2.WorldRecord.FromString(data)
            except DecodeError:
                raise NotAWorldFileError(f"{path} was damaged") from None
            yield record
