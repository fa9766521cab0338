"""An ingest's progress counts what is done and says how long the rest takes."""

from gamekeeper.cli.lore_progress import IngestProgress
from gaming.knowledge_base.v1 import lore_pb2


def document(path: str, embedded: int = 0) -> lore_pb2.IngestDocumentsResponse:
    return lore_pb2.IngestDocumentsResponse(
        document=lore_pb2.IngestedDocument(path=path, embedded_chunks=embedded)
    )


def part(path: str, embedded: int, changed: int) -> lore_pb2.IngestDocumentsResponse:
    return lore_pb2.IngestDocumentsResponse(
        progress=lore_pb2.IngestProgress(
            path=path, changed_chunks=changed, embedded_chunks=embedded
        )
    )


def test_nothing_is_estimated_before_something_is_done() -> None:
    progress = IngestProgress({"a": 100, "b": 300})
    progress.hear(part("a", 0, 8))
    assert (progress.count, progress.words(2.0)) == ("0/2", "")


def test_the_rest_takes_as_long_by_byte_as_what_is_done() -> None:
    progress = IngestProgress({"a": 100, "b": 300})
    progress.hear(document("a", 8))
    assert (progress.count, progress.embedded) == ("1/2", 8)
    assert progress.seconds_left(10.0) == 30.0
    assert progress.words(10.0) == "about 30 s left"
    assert progress.words(100.0) == "about 5 min left"


def test_a_document_counts_as_far_as_it_is() -> None:
    progress = IngestProgress({"a": 100, "b": 300})
    progress.hear(document("a", 8))
    progress.hear(part("b", 16, 48))
    assert (progress.count, progress.embedded) == ("1/2", 24)
    assert progress.seconds_left(10.0) == 10.0
    progress.hear(document("b", 48))
    assert (progress.count, progress.embedded, progress.words(20.0)) == ("2/2", 56, "")


def test_a_document_that_vanished_is_none_of_those_sent() -> None:
    progress = IngestProgress({"a": 100})
    progress.hear(document("gone"))
    assert progress.count == "0/1"
