"""Documents and passages of lore on the wire."""

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from gaming.knowledge_base.v1 import lore_pb2
from knowledge_base.domain.lore import (
    Citation,
    ConceptPassage,
    Document,
    IngestedDocument,
    IngestProgress,
    IngestState,
    IngestSummary,
    SearchMode,
    SearchResult,
)
from knowledge_base.wire.times import stamp

__all__ = [
    "SEARCH_MODES",
    "citation_message",
    "document_message",
    "ingest_message",
    "passage_message",
    "search_result_message",
]

SEARCH_MODES = {
    lore_pb2.SEARCH_MODE_UNSPECIFIED: SearchMode.HYBRID,
    lore_pb2.SEARCH_MODE_HYBRID: SearchMode.HYBRID,
    lore_pb2.SEARCH_MODE_VECTOR: SearchMode.VECTOR,
    lore_pb2.SEARCH_MODE_KEYWORD: SearchMode.KEYWORD,
}


_INGEST_STATES = {
    IngestState.UNCHANGED: lore_pb2.INGEST_STATE_UNCHANGED,
    IngestState.STORED: lore_pb2.INGEST_STATE_STORED,
    IngestState.REMOVED: lore_pb2.INGEST_STATE_REMOVED,
}


def document_message(document: Document) -> lore_pb2.Document:
    """Returns a document."""
    return lore_pb2.Document(
        collection=document.collection,
        path=document.path,
        title=document.title,
        chunks=document.chunks,
        ingest_time=stamp(document.ingest_time),
        content_sha256=document.content_sha256.hex(),
        front_matter=ParseDict(dict(document.front_matter), Struct()),
    )


def ingest_message(
    update: IngestedDocument | IngestProgress | IngestSummary,
) -> lore_pb2.IngestDocumentsResponse:
    """Returns a step of an ingest's progress."""
    if isinstance(update, IngestProgress):
        progress = lore_pb2.IngestProgress(
            path=update.path,
            chunks=update.chunks,
            changed_chunks=update.changed_chunks,
            embedded_chunks=update.embedded_chunks,
        )
        return lore_pb2.IngestDocumentsResponse(progress=progress)
    if isinstance(update, IngestedDocument):
        document = lore_pb2.IngestedDocument(
            path=update.path,
            state=_INGEST_STATES[update.state],
            chunks=update.chunks,
            embedded_chunks=update.embedded_chunks,
        )
        return lore_pb2.IngestDocumentsResponse(document=document)
    summary = lore_pb2.IngestSummary(
        stored_documents=update.stored_documents,
        unchanged_documents=update.unchanged_documents,
        removed_documents=update.removed_documents,
        chunks=update.chunks,
        embedded_chunks=update.embedded_chunks,
    )
    return lore_pb2.IngestDocumentsResponse(summary=summary)


def search_result_message(result: SearchResult) -> lore_pb2.SearchResult:
    """Returns a passage with its citation."""
    return lore_pb2.SearchResult(
        text=result.text,
        citation=citation_message(result.citation),
        score=result.score,
        vector_score=result.vector_score,
        keyword_score=result.keyword_score,
        concepts=result.concepts,
        text_before=result.text_before,
        text_after=result.text_after,
        reranker_score=result.reranker_score,
    )


def passage_message(passage: ConceptPassage) -> lore_pb2.ConceptPassage:
    """Returns a passage with the concepts it speaks of."""
    return lore_pb2.ConceptPassage(
        text=passage.text,
        citation=citation_message(passage.citation),
        concepts=passage.concepts,
    )


def citation_message(citation: Citation) -> lore_pb2.Citation:
    """Returns where a passage stands."""
    return lore_pb2.Citation(
        collection=citation.collection,
        path=citation.path,
        heading_path=citation.heading_path,
        start_line=citation.start_line,
        end_line=citation.end_line,
    )
