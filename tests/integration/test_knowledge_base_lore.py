"""Ingest and search of lore over real gRPC and a real PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
import pytest

from gaming.knowledge_base.v1 import lore_pb2, worlds_pb2
from knowledge_base.testing import (
    HashEmbedder,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)

TIMEOUT_SECONDS = 20

WALL = "# The Wall\n\nWardens keep nine lamps.\n\n## Breach\n\nThe sea came in at Quern.\n"
BELL = "# The Bell\n\nOttoline cast a bell.\n"


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
async def running(
    knowledge_base_database: str, embedder: HashEmbedder
) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database, embedder=embedder) as running:
        yield running


def steps(
    documents: Iterable[tuple[str, str | bytes]],
    *,
    collection: str = "lore",
    remove_missing: bool = False,
) -> list[lore_pb2.IngestDocumentsRequest]:
    begin = lore_pb2.IngestBegin(collection=collection, remove_missing=remove_missing)
    return [
        lore_pb2.IngestDocumentsRequest(begin=begin),
        *(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(
                    path=path, content=text.encode() if isinstance(text, str) else text
                )
            )
            for path, text in documents
        ),
    ]


async def ingest(
    running: RunningKnowledgeBase,
    documents: Iterable[tuple[str, str | bytes]],
    *,
    collection: str = "lore",
    remove_missing: bool = False,
) -> list[lore_pb2.IngestDocumentsResponse]:
    requests = steps(documents, collection=collection, remove_missing=remove_missing)
    call = running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS)
    return [response async for response in call]


async def next_update(call: Any) -> lore_pb2.IngestDocumentsResponse:
    update = await call.read()
    assert isinstance(update, lore_pb2.IngestDocumentsResponse)
    return update


async def search(
    running: RunningKnowledgeBase, query: str, **options: Any
) -> list[lore_pb2.SearchResult]:
    response = await running.stub.Search(
        lore_pb2.SearchRequest(query=query, **options), timeout=TIMEOUT_SECONDS
    )
    return list(response.results)


async def test_ingest_reports_each_document_then_the_summary(running: RunningKnowledgeBase) -> None:
    *documents, last = await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    assert [(r.document.path, r.document.state, r.document.chunks) for r in documents] == [
        ("wall.md", lore_pb2.INGEST_STATE_STORED, 2),
        ("bell.md", lore_pb2.INGEST_STATE_STORED, 1),
    ]
    assert last.summary == lore_pb2.IngestSummary(stored_documents=2, chunks=3, embedded_chunks=3)


async def test_what_was_ingested_is_found_and_cited(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    best = (await search(running, "Who keeps the lamps?"))[0]
    assert best.text == "Wardens keep nine lamps."
    assert best.citation == lore_pb2.Citation(
        collection="lore", path="wall.md", heading_path=["The Wall"], start_line=3, end_line=3
    )
    assert 0 < best.score <= 1
    assert best.HasField("vector_score")
    assert best.HasField("keyword_score")


async def test_modes_set_only_their_own_scores(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    keyword = await search(running, "bells", mode=lore_pb2.SEARCH_MODE_KEYWORD)
    assert [result.citation.path for result in keyword] == ["bell.md"]  # stemmed: bells, bell
    assert not keyword[0].HasField("vector_score")
    vector = await search(running, "lamps", mode=lore_pb2.SEARCH_MODE_VECTOR)
    assert len(vector) == 3
    assert not any(result.HasField("keyword_score") for result in vector)


async def test_a_natural_question_needs_no_passage_with_all_its_words(
    running: RunningKnowledgeBase,
) -> None:
    await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    found = await search(
        running,
        "Tell me please, who on earth ever cast that famous old bell?",
        mode=lore_pb2.SEARCH_MODE_KEYWORD,
    )
    assert found[0].citation.path == "bell.md"


@pytest.mark.parametrize(
    "query", ["the of and", "?!", "' OR 1=1 --", "\u202e\U0001f514", "a" * 2000]
)
async def test_any_query_is_answered(running: RunningKnowledgeBase, query: str) -> None:
    await ingest(running, [("wall.md", WALL)])
    for mode in (
        lore_pb2.SEARCH_MODE_HYBRID,
        lore_pb2.SEARCH_MODE_KEYWORD,
        lore_pb2.SEARCH_MODE_VECTOR,
    ):
        results = await search(running, query, mode=mode)
        assert all(0 <= result.score <= 1 for result in results)


async def test_search_in_an_empty_knowledge_base_finds_nothing(
    running: RunningKnowledgeBase,
) -> None:
    assert await search(running, "anything") == []


async def test_collections_are_searched_alone_or_together(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("a.md", BELL)], collection="one")
    await ingest(running, [("a.md", BELL)], collection="two")
    assert len(await search(running, "bell")) == 2
    (only,) = await search(running, "bell", collections=["two"])
    assert only.citation.collection == "two"
    assert await search(running, "bell", collections=["three"]) == []


async def test_unchanged_documents_cost_no_embedding(
    running: RunningKnowledgeBase, embedder: HashEmbedder
) -> None:
    await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    embedder.embedded.clear()
    *documents, last = await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    assert {r.document.state for r in documents} == {lore_pb2.INGEST_STATE_UNCHANGED}
    assert last.summary == lore_pb2.IngestSummary(unchanged_documents=2, chunks=3)
    assert embedder.embedded == []


async def test_an_edited_paragraph_embeds_its_chunk_only(
    running: RunningKnowledgeBase, embedder: HashEmbedder
) -> None:
    await ingest(running, [("wall.md", WALL)])
    embedder.embedded.clear()
    first, last = await ingest(running, [("wall.md", WALL.replace("sea", "tide"))])
    assert (first.document.chunks, first.document.embedded_chunks) == (2, 1)
    assert last.summary.embedded_chunks == 1
    assert embedder.embedded == ["The Wall > Breach\n\nThe tide came in at Quern."]
    assert (await search(running, "tide"))[0].text == "The tide came in at Quern."
    assert await search(running, "sea", mode=lore_pb2.SEARCH_MODE_KEYWORD) == []


async def test_text_that_moves_to_another_file_is_not_embedded_again(
    running: RunningKnowledgeBase, embedder: HashEmbedder
) -> None:
    await ingest(running, [("old.md", WALL)])
    embedder.embedded.clear()
    await ingest(running, [("new.md", WALL)], remove_missing=True)
    assert embedder.embedded == []
    assert {r.citation.path for r in await search(running, "wall")} == {"new.md"}


async def test_missing_documents_vanish_only_when_asked(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    await ingest(running, [("other.md", BELL)], collection="other")
    await ingest(running, [("bell.md", BELL)])
    assert len(await search(running, "wardens lamps", mode=lore_pb2.SEARCH_MODE_KEYWORD)) == 1
    _, removed, last = await ingest(running, [("bell.md", BELL)], remove_missing=True)
    assert removed.document == lore_pb2.IngestedDocument(
        path="wall.md", state=lore_pb2.INGEST_STATE_REMOVED
    )
    assert last.summary == lore_pb2.IngestSummary(
        unchanged_documents=1, removed_documents=1, chunks=1
    )
    assert await search(running, "wardens lamps", mode=lore_pb2.SEARCH_MODE_KEYWORD) == []
    documents = await running.stub.ListDocuments(
        lore_pb2.ListDocumentsRequest(), timeout=TIMEOUT_SECONDS
    )
    assert [(d.collection, d.path) for d in documents.documents] == [
        ("lore", "bell.md"),
        ("other", "other.md"),
    ]


async def test_statistics_are_those_of_the_chunks_after_any_history(
    running: RunningKnowledgeBase,
) -> None:
    await ingest(running, [("a.md", WALL), ("b.md", BELL)])
    await ingest(running, [("a.md", BELL), ("c.md", WALL)], remove_missing=True)
    await ingest(running, [("c.md", WALL + WALL)])
    await ingest(running, [], collection="empty", remove_missing=True)
    (kept,) = await running.database.fetch(
        "SELECT chunk_count, term_count FROM knowledge_base.lore_statistics"
        " WHERE collection = 'lore'"
    )
    (counted,) = await running.database.fetch(
        "SELECT (SELECT count(*) FROM knowledge_base.document_chunks) AS chunk_count,"
        " (SELECT sum(frequency) FROM knowledge_base.chunk_terms) AS term_count"
    )
    assert tuple(kept) == tuple(counted)


async def test_a_document_that_cannot_be_stored_ends_the_ingest_and_keeps_the_rest(
    running: RunningKnowledgeBase,
) -> None:
    await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ingest(
            running,
            [("new.md", "# New\n\nA kite."), ("wall.md", b"# W\n\nold\0")],
            remove_missing=True,
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = failure_of(caught.value)
    assert info.reason == "INVALID_DOCUMENT"
    assert info.metadata == {"path": "wall.md", "byte": "8", "line": "3", "column": "4"}
    paths = {r.citation.path for r in await search(running, "kite lamps bell")}
    assert paths == {"new.md", "wall.md", "bell.md"}


async def test_an_ingest_that_is_broken_off_leaves_the_old_version(
    running: RunningKnowledgeBase,
) -> None:
    await ingest(running, [("wall.md", WALL), ("bell.md", BELL)])
    stored = asyncio.Event()

    async def requests() -> AsyncIterator[lore_pb2.IngestDocumentsRequest]:
        for step in steps([("wall.md", "# The Wall\n\nNow of glass.")], remove_missing=True):
            yield step
        await stored.wait()

    call = running.stub.IngestDocuments(requests(), timeout=TIMEOUT_SECONDS)
    assert (await next_update(call)).document.state == lore_pb2.INGEST_STATE_STORED
    call.cancel()
    stored.set()
    assert (await search(running, "glass"))[0].citation.path == "wall.md"
    assert (await search(running, "bell"))[0].citation.path == "bell.md"  # not removed
    # The collection is free again.
    await ingest(running, [("wall.md", WALL)])


async def test_ingests_of_one_collection_follow_each_other(running: RunningKnowledgeBase) -> None:
    texts = [[(f"{n}.md", f"# N\n\nword{n} from ingest {i}") for n in range(8)] for i in range(3)]
    await asyncio.gather(*(ingest(running, text, remove_missing=True) for text in texts))
    found = await search(running, "word ingest", limit=100)
    assert len(found) == 8
    assert len({result.text.split()[-1] for result in found}) == 1  # one ingest won whole


async def test_an_ingest_waits_for_another_one_only_so_long(knowledge_base_database: str) -> None:
    async with serve_knowledge_base(
        knowledge_base_database, KNOWLEDGE_BASE_INGEST_LOCK_WAIT_SECONDS="0"
    ) as running:
        release = asyncio.Event()

        async def held_open() -> AsyncIterator[lore_pb2.IngestDocumentsRequest]:
            for step in steps([("a.md", WALL)]):
                yield step
            await release.wait()

        first = running.stub.IngestDocuments(held_open(), timeout=TIMEOUT_SECONDS)
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(running, [("b.md", BELL)])
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert failure_of(caught.value).reason == "INGEST_IN_PROGRESS"
        await ingest(running, [("b.md", BELL)], collection="another")
        release.set()
        assert (await next_update(first)).WhichOneof("update") == "summary"


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [lore_pb2.IngestDocumentsRequest(document=lore_pb2.IngestDocument(path="a", content=b"a"))],
        [*steps([]), *steps([])],
        steps([("../a.md", "a")]),
        steps([("a.md", "a"), ("a.md", "a")]),
        steps([], collection="Not A Name"),
    ],
)
async def test_requests_out_of_order_are_refused(
    running: RunningKnowledgeBase, requests: list[lore_pb2.IngestDocumentsRequest]
) -> None:
    call = running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in call]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_documents_are_listed_page_by_page(running: RunningKnowledgeBase) -> None:
    names = [f"{n:02}.md" for n in range(7)]
    await ingest(running, [(name, f"# {name}\n\ntext") for name in reversed(names)])
    listed, token = [], ""
    while True:
        page = await running.stub.ListDocuments(
            lore_pb2.ListDocumentsRequest(collection="lore", page_size=3, page_token=token),
            timeout=TIMEOUT_SECONDS,
        )
        assert len(page.documents) <= 3
        listed += [document.path for document in page.documents]
        token = page.next_page_token
        if not token:
            break
    assert listed == names
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.ListDocuments(
            lore_pb2.ListDocumentsRequest(page_token="nonsense"), timeout=TIMEOUT_SECONDS
        )
    assert failure_of(caught.value).reason == "INVALID_PAGE_TOKEN"


async def test_hostile_text_is_only_text(running: RunningKnowledgeBase) -> None:
    text = "'); DROP TABLE knowledge_base.worlds; -- \\ $1 %s {0} \u202e \U0001f9ff & | ! <-> :*"
    await ingest(running, [("a.md", f"# {text}\n\n{text}")])
    (result,) = await search(running, text)
    assert result.text == text
    request = worlds_pb2.CreateWorldRequest(name="still there", request_id=str(uuid.uuid4()))
    assert (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id
