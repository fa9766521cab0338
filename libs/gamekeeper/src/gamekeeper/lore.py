"""Sends a directory of Markdown to the knowledge base, telling what became of each document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc, lore_pb2

__all__ = ["LARGEST_DOCUMENT_BYTES", "DocumentTooLargeError", "ingest_directory", "markdown_files"]

LARGEST_DOCUMENT_BYTES = 1_000_000
INGEST_DEADLINE_SECONDS = 1800.0


class DocumentTooLargeError(Exception):
    """A document is larger than the knowledge base takes; the text names it and its size."""


def markdown_files(directory: Path) -> list[Path]:
    """Returns the Markdown files below `directory`, hidden ones left out, in a stable order."""
    return sorted(
        path
        for path in directory.rglob("*.md")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )


async def ingest_directory(
    knowledge_base: knowledge_base_pb2_grpc.KnowledgeBaseServiceAsyncStub,
    directory: Path,
    *,
    collection: str = "lore",
    remove_missing: bool = True,
    progress: bool = False,
    timeout_seconds: float = INGEST_DEADLINE_SECONDS,
) -> AsyncIterator[lore_pb2.IngestDocumentsResponse]:
    """Yields the knowledge base's progress: each document, then the summary.

    With `remove_missing`, documents of the collection that are not in the directory vanish. With
    `progress`, it is also told how far a document is.

    Raises:
        DocumentTooLargeError: before anything is read or sent.
        grpc.aio.AioRpcError: the knowledge base refused or is away.
        OSError: a file cannot be read.
    """
    paths = markdown_files(directory)
    for path in paths:
        size = path.stat().st_size
        if size > LARGEST_DOCUMENT_BYTES:
            raise DocumentTooLargeError(
                f"{path} has {size:,} bytes; at most {LARGEST_DOCUMENT_BYTES:,} are taken"
            )
    responses = knowledge_base.IngestDocuments(
        _requests(
            directory,
            paths,
            lore_pb2.IngestBegin(
                collection=collection, remove_missing=remove_missing, progress=progress
            ),
        ),
        timeout=timeout_seconds,
    )
    async for response in responses:
        yield response


def _requests(
    directory: Path, paths: list[Path], begin: lore_pb2.IngestBegin
) -> Iterator[lore_pb2.IngestDocumentsRequest]:
    yield lore_pb2.IngestDocumentsRequest(begin=begin)
    for path in paths:
        with path.open("rb") as file:
            # One that has grown since it was measured is refused by the service.
            content = file.read(LARGEST_DOCUMENT_BYTES + 1)
        yield lore_pb2.IngestDocumentsRequest(
            document=lore_pb2.IngestDocument(
                path=path.relative_to(directory).as_posix(), content=content
            )
        )
