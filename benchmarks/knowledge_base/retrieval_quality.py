"""How well lore is found: hybrid search against its two legs, on the project's graded questions.

    python benchmarks/knowledge_base/retrieval_quality.py            the settings' defaults
    python benchmarks/knowledge_base/retrieval_quality.py --sweep    other weights and lengths too

All figures of a run come from the same documents, chunks, vectors and questions. A result is a
section (document and heading); a section counts once, by its first chunk. nDCG has the gain
2^grade - 1 (Järvelin & Kekäläinen 2002); recall counts sections of any grade; hit@5 asks for a
section of grade 2. Questions without an answer are judged by how well the first score tells them
apart from the others (area under the ROC curve; 0.5 is chance).
"""

import argparse
import asyncio
import json
import math
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from knowledge_base.__main__ import connect
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.adapters.postgres_lore import PostgresLore
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.config import DatabaseSettings, EmbeddingSettings
from knowledge_base.domain.lore import RankingParameters, SearchMode, SearchQuery, SearchResult
from knowledge_base.embedding_cache import EmbeddingCache
from knowledge_base.ingest import LoreIngest
from knowledge_base.testing import SERVICE_ROLE, service_url
from localsuite.postgres import EmbeddedPostgres
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

SERVICE = Path(__file__).resolve().parents[2] / "services" / "knowledge_base"
CHUNKS_READ = 60  # enough for ten sections
KINDS = ("entity", "paraphrase", "policy", "multi_document")

Section = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the sections that answer it, by grade."""

    kind: str
    text: str
    grades: dict[Section, int]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a way of searching did with one question."""

    question: Question
    sections: tuple[Section, ...]
    first_score: float

    @property
    def ndcg(self) -> float:
        """Normalised discounted cumulative gain of the first ten sections."""
        ideal = sorted(self.question.grades.values(), reverse=True)[:10]
        found = [self.question.grades.get(section, 0) for section in self.sections[:10]]
        return gain(found) / gain(ideal)

    def recall(self, depth: int) -> float:
        """Share of the graded sections among the first `depth`."""
        grades = self.question.grades
        return sum(section in grades for section in self.sections[:depth]) / len(grades)

    @property
    def hit(self) -> float:
        """1 when a section of grade 2 is among the first five."""
        return float(any(self.question.grades.get(s) == 2 for s in self.sections[:5]))


def gain(grades: Sequence[int]) -> float:
    """Returns the discounted cumulative gain of sections with these grades, in this order."""
    return math.fsum((2**grade - 1) / math.log2(rank + 2) for rank, grade in enumerate(grades))


def read_questions() -> list[Question]:
    """Returns the graded questions."""
    lines = (SERVICE / "evaluation" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Question(
            row["kind"],
            row["question"],
            {(item["document"], item["heading"]): item["grade"] for item in row["relevant"]},
        )
        for row in map(json.loads, lines)
    ]


def sections_of(results: Sequence[SearchResult]) -> tuple[Section, ...]:
    """Returns the sections of the passages, each once, in the order of their first passage."""
    found = ((r.citation.path, (r.citation.heading_path or ("",))[-1]) for r in results)
    return tuple(dict.fromkeys(found))


class Searcher:
    """Asks every question in one way."""

    def __init__(
        self, lore: PostgresLore, embedder: EmbeddingCache, questions: list[Question]
    ) -> None:
        self._lore = lore
        self._embedder = embedder
        self._questions = questions

    async def judge(self, mode: SearchMode, parameters: RankingParameters) -> list[Judged]:
        """Returns what came of each question."""
        judged = []
        for question in self._questions:
            vector = await self._embedder.embed_query(question.text)
            results = await self._lore.search(
                SearchQuery(question.text, mode, CHUNKS_READ), vector, parameters
            )
            first_score = results[0].score if results else 0.0
            judged.append(Judged(question, sections_of(results), first_score))
        return judged


def mean(judged: Sequence[Judged], measure: Callable[[Judged], float]) -> float:
    """Returns the mean of a measure over the questions that have an answer."""
    values = [measure(item) for item in judged if item.question.grades]
    return sum(values) / len(values) if values else float("nan")


def separation(judged: Sequence[Judged]) -> float:
    """Returns how often an answerable question's first score is above an unanswerable one's."""
    good = [item.first_score for item in judged if item.question.grades]
    bad = [item.first_score for item in judged if not item.question.grades]
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad))


def show(name: str, judged: Sequence[Judged]) -> None:
    """Prints a row of figures."""
    kinds = "  ".join(
        f"{mean([j for j in judged if j.question.kind == kind], lambda j: j.ndcg):.3f}"
        for kind in KINDS
    )
    ndcg, hit = mean(judged, lambda j: j.ndcg), mean(judged, lambda j: j.hit)
    recall_5, recall_10 = mean(judged, lambda j: j.recall(5)), mean(judged, lambda j: j.recall(10))
    print(
        f"{name:<28} {ndcg:.3f}   {recall_5:.3f}     {recall_10:.3f}      {hit:.3f}"
        f"   {separation(judged):.3f}   {kinds}"
    )


async def documents() -> AsyncIterator[tuple[str, bytes]]:
    """Yields the lore."""
    for path in sorted((SERVICE / "lore").glob("*.md")):
        yield path.name, path.read_bytes()


async def measure(owner_url: str, *, sweep: bool) -> None:
    """Ingests the lore and prints the figures."""
    await migrate_schema(owner_url, service_url(owner_url), SERVICE_ROLE)
    settings = load_settings(
        DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": service_url(owner_url)}
    )
    cache = load_settings(EmbeddingSettings, {}).model_cache_directory.expanduser()
    async with OnnxEmbedder.from_package(cache) as model, connect(settings) as database:
        embedder = EmbeddingCache(model, 1000)
        lore = PostgresLore(database, SystemClock(), lock_wait_seconds=1.0)
        ingest = LoreIngest(lore, embedder, SystemClock())
        started = SystemClock().monotonic()
        async for update in ingest.ingest("lore", documents(), remove_missing=True):
            last = update
        print(f"{last.chunks} chunks ingested in {SystemClock().monotonic() - started:.1f} s\n")

        searcher = Searcher(lore, embedder, read_questions())
        defaults = RankingParameters()
        kinds = "  ".join(kind[:5] for kind in KINDS)
        print(f"{'':<28} nDCG@10 recall@5  recall@10  hit@5   separ.  nDCG@10 by kind: {kinds}")
        show("vector only", await searcher.judge(SearchMode.VECTOR, defaults))
        show("keyword only (BM25)", await searcher.judge(SearchMode.KEYWORD, defaults))
        show(
            f"hybrid, weight {defaults.vector_weight:g} (default)",
            await searcher.judge(SearchMode.HYBRID, defaults),
        )
        if not sweep:
            return
        print()
        for weight in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            parameters = RankingParameters(weight, defaults.k1, defaults.b)
            judged = await searcher.judge(SearchMode.HYBRID, parameters)
            show(f"hybrid, weight {weight:g}", judged)
        for k1, b in ((0.9, 0.4), (1.2, 0.4), (1.6, 0.75), (2.0, 0.75)):
            parameters = RankingParameters(defaults.vector_weight, k1, b)
            show(f"hybrid, k1 {k1:g} b {b:g}", await searcher.judge(SearchMode.HYBRID, parameters))


def main() -> None:
    """Runs on a PostgreSQL of its own, gone afterwards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sweep", action="store_true", help="also other weights")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-benchmark-"))
    try:
        with EmbeddedPostgres(directory, durable=False) as server:
            server.create_database("knowledge")
            asyncio.run(measure(server.url("knowledge"), sweep=arguments.sweep))
            location = server.location
        shutil.rmtree(location, ignore_errors=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
