"""The methods for lore."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import lore_pb2
from knowledge_base.domain.lore import IngestProgress, SearchQuery
from knowledge_base.ingest import LoreIngest
from knowledge_base.search import LoreSearch
from knowledge_base.wire.lore import (
    SEARCH_MODES,
    document_message,
    ingest_message,
    passage_message,
    search_result_message,
)
from servicekit.errors import InvalidRequest

__all__ = ["AGE_METADATA_KEY", "LoreMethods"]

# Trailing metadata of an answer that was given again because the database is away.
AGE_METADATA_KEY = "gamekeeper-answer-age-seconds"


class LoreMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for lore."""

    _ingest: LoreIngest
    _search: LoreSearch

    async def IngestDocuments(  # noqa: N802  # named by the proto
        self, request_iterator: AsyncIterator[lore_pb2.IngestDocumentsRequest], context: Any
    ) -> AsyncIterator[lore_pb2.IngestDocumentsResponse]:
        """Takes documents and streams what became of each."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("step") != "begin":
            raise InvalidRequest("The first message of an ingest must be `begin`.")
        updates = self._ingest.ingest(
            first.begin.collection,
            _documents(requests),
            remove_missing=first.begin.remove_missing,
        )
        # Closed at once when the caller leaves, so that the collection is free again.
        async with aclosing(updates):
            async for update in updates:
                if first.begin.progress or not isinstance(update, IngestProgress):
                    yield ingest_message(update)

    async def ListDocuments(  # noqa: N802  # named by the proto
        self, request: lore_pb2.ListDocumentsRequest, context: Any
    ) -> lore_pb2.ListDocumentsResponse:
        """Returns documents, ordered by path."""
        page = await self._search.list_documents(
            request.collection, request.page_size or 100, request.page_token
        )
        return lore_pb2.ListDocumentsResponse(
            documents=map(document_message, page.items), next_page_token=page.next_page_token
        )

    async def GetDocument(  # noqa: N802  # named by the proto
        self, request: lore_pb2.GetDocumentRequest, context: Any
    ) -> lore_pb2.GetDocumentResponse:
        """Returns one document."""
        document = await self._search.get_document(request.collection, request.path)
        return lore_pb2.GetDocumentResponse(
            document=document_message(document), concepts=document.concepts
        )

    async def ListConceptPassages(  # noqa: N802  # named by the proto
        self, request: lore_pb2.ListConceptPassagesRequest, context: Any
    ) -> lore_pb2.ListConceptPassagesResponse:
        """Returns the passages that speak of a concept."""
        page = await self._search.list_concept_passages(
            request.concept, request.collection, request.page_size or 50, request.page_token
        )
        return lore_pb2.ListConceptPassagesResponse(
            passages=map(passage_message, page.items), next_page_token=page.next_page_token
        )

    async def Search(  # noqa: N802  # named by the proto
        self, request: lore_pb2.SearchRequest, context: Any
    ) -> lore_pb2.SearchResponse:
        """Returns passages, best first."""
        answer = await self._search.search(
            SearchQuery(
                request.query,
                SEARCH_MODES[request.mode],
                request.limit or 10,
                tuple(request.collections),
                request.passages_per_section or 2,
                request.neighbours,
                request.minimum_answer_probability,
            )
        )
        if answer.age_seconds:
            context.set_trailing_metadata(((AGE_METADATA_KEY, f"{answer.age_seconds:.0f}"),))
        return lore_pb2.SearchResponse(
            results=map(search_result_message, answer.results),
            answer_probability=answer.probability,
        )


async def _documents(
    requests: AsyncIterator[lore_pb2.IngestDocumentsRequest],
) -> AsyncIterator[tuple[str, bytes]]:
    async for request in requests:
        if request.WhichOneof("step") != "document":
            raise InvalidRequest("`begin` comes once, first; then only documents follow.")
        yield request.document.path, request.document.content
