"""How well the knowledge base finds what answers a question, through the service's own RPCs.

    make eval                                      the project's 120 graded questions, gated
    make eval ARGS="--set PATH [--set PATH]"       other sets too; see evaluation_sets.py
    make eval ARGS="--accept"                      the figures become the committed reference

Each set is ingested or recorded by RPC into a PostgreSQL of its own and searched by RPC; the
baselines run on the same server, texts and vectors; LangChain's store, too, which `make eval`
installs.
For documents `bm25` is the service's own search by words alone. nDCG@10 gains 2^grade - 1 on the
project's questions and the grade itself on the others (as trec_eval's ndcg_cut_10 does); recall
counts items of any grade; hit@5 asks for an item of the best grade. An item is a section of a
document, a document, or a turn of a conversation, and counts once, by its first passage. What the
model makes of texts is kept in .cache, texts are not.

Exit status 1: nDCG@10 on the project's own questions is more than 0.02 below the reference.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import rival_process
from evaluation_sets import Conversation, DocumentSet, own_set, read_set
from google.protobuf.timestamp_pb2 import Timestamp
from ranking_baselines import Baselines
from ranking_measures import Judged, Question, area_under_roc, mean_measures
from vector_cache import DiskCachedEmbedder, DiskCachedReranker

from gaming.knowledge_base.v1 import lore_pb2, story_pb2, worlds_pb2
from knowledge_base.adapters.late_interaction import LateInteraction
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.config import EmbeddingSettings
from knowledge_base.domain.chunking import chunk_document
from knowledge_base.domain.late_interaction import COARSE
from knowledge_base.ports_reranker import Rerankers
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base
from localsuite.postgres import EmbeddedPostgres
from servicekit.settings import load_settings

_ROOT = Path(__file__).resolve().parents[2]
_REFERENCE = _ROOT / "services" / "knowledge_base" / "evaluation" / "reference.json"
_CACHE = _ROOT / ".cache" / "evaluation" / "vectors.sqlite3"
_ALLOWED_DROP = 0.02
_HALF = 0.5
# Passages or events that a caller asks for when it does not say how many.
_FIRST = 10
_PRODUCT = "knowledge_base"
_WORDS = "bm25"
_THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
# Enough passages for ten items.
_PASSAGES = 60
_EVENTS_PER_CALL = 100
_TIMEOUT_SECONDS = 120.0
_INGEST_SECONDS = 1800.0

Results = dict[str, list[Judged]]


class Evaluation:
    """Asks the questions of sets, of the service and of the baselines."""

    def __init__(
        self,
        running: RunningKnowledgeBase,
        embedder: DiskCachedEmbedder,
        reranker: DiskCachedReranker,
        baselines: Baselines,
    ) -> None:
        self._running = running
        self._embedder = embedder
        self._reranker = reranker
        self._baselines = baselines
        # What is asked for is relevance; a caller who wants a story's latest adds the others.
        self._weights = story_pb2.RecallWeights(relevance=1)

    async def documents(self, documents: DocumentSet) -> Results:
        """Ingests a set and returns what came of its questions, by way of searching."""
        chunks = [
            (documents.item(path, chunk.heading_path), chunk.search_text)
            for path, content in documents.documents.items()
            for chunk in chunk_document(path, content).chunks
        ]
        # Read together, texts of like length share runs of the model; the ingest finds them read.
        await self._reranker.prepare([text for _, text in chunks])
        steps = [
            lore_pb2.IngestDocumentsRequest(
                begin=lore_pb2.IngestBegin(collection="evaluation", remove_missing=True)
            ),
            *(
                lore_pb2.IngestDocumentsRequest(
                    document=lore_pb2.IngestDocument(path=path, content=content)
                )
                for path, content in documents.documents.items()
            ),
        ]
        async for _ in self._running.stub.IngestDocuments(iter(steps), timeout=_INGEST_SECONDS):
            pass
        await self._load_baselines(
            [item for item, _ in chunks], [text for _, text in chunks], documents.questions
        )
        results: Results = {name: [] for name in (*self._baselines.names, _WORDS, _PRODUCT)}
        for question in documents.questions:
            await self._ask_baselines(question, results)
            for name, mode in (
                (_WORDS, lore_pb2.SearchMode.SEARCH_MODE_KEYWORD),
                (_PRODUCT, lore_pb2.SearchMode.SEARCH_MODE_HYBRID),
            ):
                answer = await self._running.stub.Search(
                    lore_pb2.SearchRequest(
                        query=question.text, mode=mode, limit=_PASSAGES, collections=["evaluation"]
                    ),
                    timeout=_TIMEOUT_SECONDS,
                )
                found = [
                    documents.item(result.citation.path, tuple(result.citation.heading_path))
                    for result in answer.results
                ]
                scored = zip(found, (result.score for result in answer.results), strict=True)
                results[name].append(
                    Judged(
                        question,
                        tuple(dict.fromkeys(found)),
                        answer.answer_probability,
                        tuple(scored)[:_FIRST],
                    )
                )
        return results

    async def conversation(self, conversation: Conversation) -> Results:
        """Records a conversation in a world and returns what came of its questions."""
        world = await self._running.stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name=str(uuid.uuid4()), request_id=str(uuid.uuid4())),
            timeout=_TIMEOUT_SECONDS,
        )
        world_id = world.world.world_id
        turn_of: dict[str, str] = {}
        for session in conversation.sessions:
            for start in range(0, len(session), _EVENTS_PER_CALL):
                turns = session[start : start + _EVENTS_PER_CALL]
                recorded = await self._running.stub.RecordEvents(
                    story_pb2.RecordEventsRequest(
                        world_id=world_id,
                        request_id=str(uuid.uuid4()),
                        events=[
                            story_pb2.StoryEvent(
                                text=turn.text,
                                kind="dialogue",
                                participants=[turn.speaker],
                                occur_time=_stamp(turn.time.timestamp()),
                            )
                            for turn in turns
                        ],
                    ),
                    timeout=_TIMEOUT_SECONDS,
                )
                turn_of.update(
                    (event.event_id, turn.turn_id)
                    for event, turn in zip(recorded.events, turns, strict=True)
                )
        everything = [turn for session in conversation.sessions for turn in session]
        await self._load_baselines(
            [turn.turn_id for turn in everything],
            [f"{turn.speaker}: {turn.text}" for turn in everything],
            conversation.questions,
        )
        results: Results = {name: [] for name in (*self._baselines.names, _PRODUCT)}
        for question in conversation.questions:
            await self._ask_baselines(question, results)
            answer = await self._running.stub.Recall(
                story_pb2.RecallRequest(
                    world_id=world_id,
                    query=question.text,
                    limit=10,
                    weights=self._weights,
                ),
                timeout=_TIMEOUT_SECONDS,
            )
            found = tuple(turn_of[recalled.event.event_id] for recalled in answer.events)
            scores = (recalled.score for recalled in answer.events)
            scored = tuple(zip(found, scores, strict=True))
            results[_PRODUCT].append(Judged(question, found, scored=scored))
        return results

    async def _load_baselines(
        self, items: Sequence[object], texts: Sequence[str], questions: Sequence[Question]
    ) -> None:
        asked = [question.text for question in questions]
        await self._baselines.load(
            items,
            texts,
            await self._embedder.embed_documents(texts),
            asked,
            await self._embedder.embed_documents(asked),
        )

    async def _ask_baselines(self, question: Question, results: Results) -> None:
        (vector,) = await self._embedder.embed_documents([question.text])
        found = await self._baselines.search(question.text, vector)
        for name, items in found.items():
            results[name].append(Judged(question, items))


def _stamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds))


def show(name: str, results: Results) -> None:
    """Prints the figures of a set: all questions, then nDCG@10 and recall@10 by kind."""
    count = sum(bool(judged.question.grades) for judged in results[_PRODUCT])
    print(f"\n{name}: {count} questions with an answer")
    print(f"{'':<18}" + "".join(f"{column:>11}" for column in mean_measures([])))
    for way, judged in results.items():
        figures = mean_measures(judged).values()
        print(f"{way:<18}" + "".join(f"{figure:>11.3f}" for figure in figures))
    kinds = sorted({judged.question.kind for judged in results[_PRODUCT] if judged.question.grades})
    for kind in kinds if len(kinds) > 1 else ():
        of_kind = [judged for judged in results[_PRODUCT] if judged.question.kind == kind]
        figures = mean_measures(of_kind).values()
        label = f"  {kind} ({len(of_kind)})"
        print(f"{label:<18.29}" + "".join(f"{figure:>11.3f}" for figure in figures))


def show_separation(judged: Sequence[Judged]) -> None:
    """Prints how well questions without an answer are told apart."""
    answered = [item.answerable for item in judged if item.question.grades]
    for kind in ("unanswerable", "off_topic"):
        other = [item.answerable for item in judged if item.question.kind == kind]
        right = sum(value >= _HALF for value in answered) + sum(value < _HALF for value in other)
        print(
            f"told from {kind}: area under the ROC curve "
            f"{area_under_roc(answered, other):.3f} (0.5 is chance), "
            f"{sum(value < _HALF for value in other)} of {len(other)} refused at probability 0.5, "
            f"{right} of {len(answered) + len(other)} right"
        )


def show_thresholds(judged: Sequence[Judged]) -> None:
    """Prints what a least score would keep of the first ten passages or events of each answer."""
    print("a least score of" + "".join(f"{least:>7}" for least in _THRESHOLDS))
    answered = [item for item in judged if item.question.grades]
    graded = [
        score for item in answered for found, score in item.scored if found in item.question.grades
    ]
    every = [score for item in answered for _, score in item.scored]
    rows = {"keeps of what is graded": graded, "keeps of all that is found": every}
    for kind in ("unanswerable", "off_topic"):
        of_kind = [item for item in judged if item.question.kind == kind]
        if of_kind:
            rows[f"keeps for {kind}"] = [score for item in of_kind for _, score in item.scored]
    for name, scores in rows.items():
        shares = (sum(score >= least for score in scores) / len(scores) for least in _THRESHOLDS)
        print(f"  {name:<28}" + "".join(f"{share:>7.3f}" for share in shares))


def gate(judged: Sequence[Judged], *, accept: bool, kept: Path = _REFERENCE) -> bool:
    """Compares nDCG@10 with the reference `kept` in a file; returns whether it holds."""
    present = {name: round(value, 4) for name, value in mean_measures(judged).items()}
    if accept:
        kept.write_text(json.dumps(present, indent=2) + "\n", encoding="utf-8")
    reference = json.loads(kept.read_text(encoding="utf-8"))
    # To the four digits that are kept: a drop of just 0.02 holds, whatever its binary fraction.
    drop = round(reference["ndcg@10"] - present["ndcg@10"], 4)
    holds = bool(drop <= _ALLOWED_DROP)
    print(
        f"nDCG@10 {present['ndcg@10']:.3f}, reference {reference['ndcg@10']:.3f}, "
        f"allowed drop {_ALLOWED_DROP}: {'held' if holds else 'NOT HELD'}"
    )
    return holds


async def evaluate(owner_url: str, sets: Sequence[Path], *, accept: bool) -> bool:
    """Prints all figures; returns whether the reference holds."""
    model_cache = load_settings(EmbeddingSettings, {}).model_cache_directory.expanduser()
    connection = await asyncpg.connect(owner_url)
    try:
        async with OnnxEmbedder.from_package(model_cache, document_runs=2) as model:
            embedder = DiskCachedEmbedder(model, _CACHE)
            codes = _CACHE.with_name("codes.sqlite3")
            reranker = DiskCachedReranker(LateInteraction(model), embedder, codes)
            memory_reranker = DiskCachedReranker(LateInteraction(model, COARSE), embedder, codes)
            async with serve_knowledge_base(
                owner_url, embedder=embedder, rerankers=Rerankers(reranker, memory_reranker)
            ) as running:
                with _langchain(owner_url) as langchain:
                    baselines = Baselines(connection, langchain, _PASSAGES)
                    evaluation = Evaluation(running, embedder, reranker, baselines)
                    lore = await evaluation.documents(own_set())
                    show("lore (sections)", lore)
                    show_separation(lore[_PRODUCT])
                    show_thresholds(lore[_PRODUCT])
                    holds = gate(lore[_PRODUCT], accept=accept)
                    for path in sets:
                        await _evaluate_set(evaluation, path)
            reranker.close()
            memory_reranker.close()
            embedder.close()
    finally:
        await connection.close()
    return holds


@contextmanager
def _langchain(owner_url: str) -> Iterator[rival_process.Rival | None]:
    if not rival_process.installed():
        print("LangChain's store takes no part: it is installed by `make rivals`")
        yield None
        return
    with rival_process.Rival.started("langchain_store", owner_url) as rival:
        yield rival


async def _evaluate_set(evaluation: Evaluation, path: Path) -> None:
    found = read_set(path)
    if isinstance(found, DocumentSet):
        show(f"{found.name} (documents)", await evaluation.documents(found))
        return
    together: Results = {}
    for conversation in found:
        results = await evaluation.conversation(conversation)
        for way, judged in results.items():
            together.setdefault(way, []).extend(judged)
    show(f"{path.name} ({len(found)} conversations, turns)", together)
    show_thresholds(together[_PRODUCT])


def main() -> int:
    """Runs on a PostgreSQL of its own, gone afterwards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], type=Path, help="another set's path")
    parser.add_argument("--accept", action="store_true", help="rewrite the reference")
    arguments = parser.parse_args()
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-eval-"))
    try:
        with EmbeddedPostgres(directory, durable=False) as server:
            server.create_database("knowledge")
            holds = asyncio.run(
                evaluate(server.url("knowledge"), arguments.set, accept=arguments.accept)
            )
            location = server.location
        shutil.rmtree(location, ignore_errors=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"took {time.monotonic() - started:.0f} s")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
