"""What an ingest promises: few embeddings, declared concepts, clear refusals, no half documents."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict

from gaming.knowledge_base.v1 import concepts_pb2, lore_pb2
from knowledge_base.testing import (
    HashEmbedder,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)

TIMEOUT_SECONDS = 30
LORE = sorted((Path(__file__).parents[2] / "services/knowledge_base/lore").glob("*.md"))
DOCUMENTS = [(path.name, path.read_bytes()) for path in LORE]

PEOPLE = """---
title: People
version: 1.10
concepts:
  - name: Sabeth Onn
    kind: character
    description: Prime Reckoner.
    aliases: [the Prime Reckoner]
  - Black Ledger
---
# People

The Prime Reckoner keeps no key.

## The Ledger House {concept=faction}

It records lendings. It wants the Black Ledger back.
"""


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
    documents: Iterable[tuple[str, bytes]], **begin: Any
) -> list[lore_pb2.IngestDocumentsRequest]:
    return [
        lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore", **begin)),
        *(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(path=path, content=content)
            )
            for path, content in documents
        ),
    ]


async def ingest(
    running: RunningKnowledgeBase, documents: Iterable[tuple[str, bytes]], **begin: Any
) -> list[lore_pb2.IngestDocumentsResponse]:
    call = running.stub.IngestDocuments(iter(steps(documents, **begin)), timeout=TIMEOUT_SECONDS)
    return [response async for response in call]


async def concept(running: RunningKnowledgeBase, name: str) -> concepts_pb2.Concept:
    request = concepts_pb2.GetConceptRequest(name=name)
    return (await running.stub.GetConcept(request, timeout=TIMEOUT_SECONDS)).concept


async def passages(
    running: RunningKnowledgeBase, name: str, **options: Any
) -> lore_pb2.ListConceptPassagesResponse:
    request = lore_pb2.ListConceptPassagesRequest(concept=name, **options)
    return await running.stub.ListConceptPassages(request, timeout=TIMEOUT_SECONDS)


async def test_the_lore_again_costs_no_embedding_and_an_edit_one(
    running: RunningKnowledgeBase, embedder: HashEmbedder
) -> None:
    await ingest(running, DOCUMENTS)
    embedder.embedded.clear()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        *_, last = await ingest(running, DOCUMENTS)
        best = min(best, time.perf_counter() - started)
    assert last.summary.unchanged_documents == len(DOCUMENTS)
    assert last.summary.embedded_chunks == len(embedder.embedded) == 0
    assert best < 0.5

    name, content = DOCUMENTS[2]
    paragraph = b"The Ledger House records every lending"
    assert content.count(paragraph) == 1
    edited = content.replace(paragraph, b"As ever, the Ledger House records each single lending")
    *_, last = await ingest(running, [*DOCUMENTS[:2], (name, edited), *DOCUMENTS[3:]])
    assert (last.summary.stored_documents, last.summary.embedded_chunks) == (1, 1)
    assert "As ever, the Ledger House" in embedder.embedded[0]


async def test_progress_is_told_to_those_who_ask(running: RunningKnowledgeBase) -> None:
    updates = await ingest(running, [DOCUMENTS[0]], progress=True)
    *progress, document, summary = updates
    count = document.document.chunks
    assert progress[0].progress == lore_pb2.IngestProgress(
        path=DOCUMENTS[0][0], chunks=count, changed_chunks=count
    )
    assert summary.HasField("summary")
    quiet = await ingest(running, [(DOCUMENTS[0][0], DOCUMENTS[0][1] + b"\n\nMore.")])
    assert [update.WhichOneof("update") for update in quiet] == ["document", "summary"]


async def test_declared_concepts_are_recorded_and_linked(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("people.md", PEOPLE.encode())])
    listed = await running.stub.ListConcepts(
        concepts_pb2.ListConceptsRequest(), timeout=TIMEOUT_SECONDS
    )
    found = {c.name: c for c in listed.concepts}
    assert set(found) == {"Black Ledger", "Sabeth Onn", "The Ledger House"}
    assert found["Sabeth Onn"].kind == "character"
    assert found["Sabeth Onn"].attributes == {"aliases": "the Prime Reckoner"}
    assert found["The Ledger House"].kind == "faction"
    assert found["The Ledger House"].description.startswith("It records lendings.")
    assert {c.world_id for c in listed.concepts} == {""}

    (keeper,) = (await passages(running, "Sabeth Onn")).passages
    assert keeper.text == "The Prime Reckoner keeps no key."
    assert keeper.citation.start_line == 13
    search = await running.stub.Search(
        lore_pb2.SearchRequest(query="lendings"), timeout=TIMEOUT_SECONDS
    )
    assert list(search.results[0].concepts) == ["Black Ledger", "The Ledger House"]


async def test_a_concept_gets_a_version_only_when_what_is_said_of_it_changes(
    running: RunningKnowledgeBase,
) -> None:
    await ingest(running, [("people.md", PEOPLE.encode())])
    changed = PEOPLE.replace("Prime Reckoner.\n", "Prime Reckoner since TY 457.\n")
    await ingest(running, [("people.md", changed.encode())])
    assert (await concept(running, "Sabeth Onn")).version == 2
    assert (await concept(running, "The Ledger House")).version == 1
    # A document that only names a concept says nothing new about it, and is linked to it.
    other = b"---\nconcepts: [Sabeth Onn]\n---\n# Letter\n\nSabeth Onn wrote.\n"
    await ingest(running, [("letter.md", other)])
    assert (await concept(running, "Sabeth Onn")).version == 2
    found = (await passages(running, "Sabeth Onn")).passages
    assert [p.citation.path for p in found] == ["letter.md", "people.md"]


async def test_links_go_with_their_passages(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("people.md", PEOPLE.encode())])
    await ingest(running, [("other.md", b"# Other\n\nNothing.\n")], remove_missing=True)
    assert not (await passages(running, "Sabeth Onn")).passages
    assert (await concept(running, "Sabeth Onn")).version == 1  # what was known stays known


def twenty_concepts(ending: str, gate: str = "Shut at dusk.") -> bytes:
    said = [
        f"  - name: Gate {number}\n    kind: place\n    description: {said}\n"
        for number, said in enumerate([gate] + ["Shut."] * 19)
    ]
    return f"---\nconcepts:\n{''.join(said)}---\n# Gates\n\n{ending}\n".encode()


async def test_twenty_concepts_that_did_not_change_are_read_by_one_statement(
    running: RunningKnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest(running, [("gates.md", twenty_concepts("There are twenty."))])
    sent: list[str] = []
    fetch = running.database.pool.fetch_leaving_nothing

    async def counted(query: str, *arguments: Any, **options: Any) -> Any:
        sent.extend(re.findall(r"knowledge_base\.((?:get|put)_concept\w*)", query))
        return await fetch(query, *arguments, **options)

    monkeypatch.setattr(running.database.pool, "fetch_leaving_nothing", counted)
    await ingest(running, [("gates.md", twenty_concepts("There were always twenty."))])
    assert sent == ["get_concept_at"]
    # What differs costs one statement more, each.
    sent.clear()
    await ingest(running, [("gates.md", twenty_concepts("There are twenty.", "Open."))])
    assert sent == ["get_concept_at", "put_concept_version"]
    assert (await concept(running, "Gate 0")).version == 2
    assert (await concept(running, "Gate 1")).version == 1


async def test_passages_of_a_concept_come_page_by_page(running: RunningKnowledgeBase) -> None:
    text = "---\nconcepts: [bell]\n---\n" + "\n".join(
        f"## S{n}\n\nA bell, {n}.\n" for n in range(7)
    )
    await ingest(running, [("a.md", text.encode())])
    seen, token = [], ""
    while True:
        page = await passages(running, "bell", page_size=3, page_token=token)
        seen += [p.text for p in page.passages]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"A bell, {n}." for n in range(7)]


async def test_front_matter_is_given_back(running: RunningKnowledgeBase) -> None:
    await ingest(running, [("people.md", PEOPLE.encode())])
    request = lore_pb2.GetDocumentRequest(collection="lore", path="people.md")
    answer = await running.stub.GetDocument(request, timeout=TIMEOUT_SECONDS)
    front_matter = MessageToDict(answer.document.front_matter)
    assert front_matter["version"] == "1.10"
    assert front_matter["concepts"][0]["name"] == "Sabeth Onn"
    assert list(answer.concepts) == ["Black Ledger", "Sabeth Onn", "The Ledger House"]
    listed = await running.stub.ListDocuments(
        lore_pb2.ListDocumentsRequest(), timeout=TIMEOUT_SECONDS
    )
    assert listed.documents[0].front_matter["title"] == "People"
    request.path = "none.md"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.GetDocument(request, timeout=TIMEOUT_SECONDS)
    assert failure_of(caught.value).reason == "DOCUMENT_NOT_FOUND"


@pytest.mark.parametrize(
    "text",
    [
        "# \U0001f514 Bell\n\n\U0001f468\u200d\U0001f469\u200d\U0001f467 rings.",
        "# \u05e9\u05dc\u05d5\u05dd\n\n\u0645\u0631\u062d\u0628\u0627 \u200f(abc)\u200e",
        "# Cafe\u0301\n\nA\u0300\u0316\u0317 combining.",
        "\ufeff# Windows\r\n\r\nA line.\r\nAnother.",
    ],
)
async def test_any_unicode_comes_back_as_it_was(running: RunningKnowledgeBase, text: str) -> None:
    await ingest(running, [("a.md", text.encode())])
    answer = await running.stub.Search(
        lore_pb2.SearchRequest(query="bell"), timeout=TIMEOUT_SECONDS
    )
    stated = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n\n", 1)[1]
    assert [result.text for result in answer.results] == [stated]


async def test_a_document_too_large_is_refused_and_nothing_of_it_is_read(
    running: RunningKnowledgeBase,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ingest(running, [("a.md", b"x" * 1_000_001)])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "content" in failure_of(caught.value).text
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ingest(running, [("a.md", b"x" * 50_000_000)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (caught.value.details() or "")


async def test_two_ingests_of_one_document_at_once_leave_one_whole_version(
    running: RunningKnowledgeBase,
) -> None:
    versions = [
        "\n".join(f"## Part {part}\n\nWritten by {writer}.\n" for part in range(30)).encode()
        for writer in ("Ann", "Bo", "Cy")
    ]
    await asyncio.gather(*(ingest(running, [("a.md", text)]) for text in versions))
    answer = await running.stub.Search(
        lore_pb2.SearchRequest(query="written", limit=100), timeout=TIMEOUT_SECONDS
    )
    assert len(answer.results) == 30
    assert len({result.text for result in answer.results}) == 1


class StallingEmbedder(HashEmbedder):
    """Stops in the second group of passages until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def embed_documents(self, texts: Any) -> Any:
        if self.embedded:
            self.reached.set()
            await asyncio.Event().wait()
        return await super().embed_documents(texts)


LONG = "\n".join(f"## Part {n}\n\nThe new version of part {n}.\n" for n in range(60)).encode()


async def found_texts(running: RunningKnowledgeBase) -> list[str]:
    answer = await running.stub.Search(
        lore_pb2.SearchRequest(query="version", limit=100), timeout=TIMEOUT_SECONDS
    )
    return [result.text for result in answer.results]


async def test_a_client_that_dies_midway_leaves_the_old_version(
    knowledge_base_database: str,
) -> None:
    async with serve_knowledge_base(knowledge_base_database) as running:
        await ingest(running, [("a.md", b"# A\n\nThe old version.\n")])
    stalling = StallingEmbedder()
    async with serve_knowledge_base(knowledge_base_database, embedder=stalling) as running:
        call = running.stub.IngestDocuments(iter(steps([("a.md", LONG)])), timeout=TIMEOUT_SECONDS)
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait_for(stalling.reached.wait(), TIMEOUT_SECONDS)
        call.cancel()
        await asyncio.wait([reading])
        assert await found_texts(running) == ["The old version."]
    # The collection is free for the next one.
    async with serve_knowledge_base(knowledge_base_database) as running:
        await ingest(running, [("a.md", LONG)])
        assert len(await found_texts(running)) == 60


async def test_a_service_that_stops_midway_leaves_the_old_version(
    knowledge_base_database: str,
) -> None:
    async with serve_knowledge_base(knowledge_base_database) as running:
        await ingest(running, [("a.md", b"# A\n\nThe old version.\n")])
    stalling = StallingEmbedder()
    async with serve_knowledge_base(knowledge_base_database, embedder=stalling) as running:
        call = running.stub.IngestDocuments(iter(steps([("a.md", LONG)])), timeout=TIMEOUT_SECONDS)
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait_for(stalling.reached.wait(), TIMEOUT_SECONDS)
        # As a killed process: its connections are gone, whatever it was doing.
        await running.database.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = current_user AND pid <> pg_backend_pid()"
        )
        call.cancel()
        await asyncio.wait([reading])
    async with serve_knowledge_base(knowledge_base_database) as running:
        assert await found_texts(running) == ["The old version."]
        await ingest(running, [("a.md", LONG)])
        assert len(await found_texts(running)) == 60


async def planned_for(running: RunningKnowledgeBase) -> float:
    """Returns how many passages the planner takes there to be, -1 where it knows nothing."""
    return float(
        await running.database.fetch_value(
            "SELECT reltuples FROM pg_class WHERE oid = 'knowledge_base.document_chunks'::regclass"
        )
    )


async def test_the_planner_knows_at_once_how_much_was_ingested(
    running: RunningKnowledgeBase,
) -> None:
    *_, last = await ingest(running, DOCUMENTS[:4])
    assert await planned_for(running) == last.summary.chunks > 40


async def test_an_ingest_does_not_wait_for_who_cleans_up_the_tables(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    connection = await asyncpg.connect(knowledge_base_database)
    try:
        async with connection.transaction():
            await connection.execute(
                "LOCK TABLE knowledge_base.document_chunks IN SHARE UPDATE EXCLUSIVE MODE"
            )
            *_, last = await ingest(running, DOCUMENTS[:4])
            assert last.summary.stored_documents == 4
            assert await planned_for(running) != last.summary.chunks
    finally:
        await connection.close()
