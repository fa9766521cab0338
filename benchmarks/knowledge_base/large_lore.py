"""Measures searches of lore of many passages, every one weighed and by the index.

    .venv/bin/python benchmarks/knowledge_base/large_lore.py
    .venv/bin/python benchmarks/knowledge_base/large_lore.py --passages 5000 10000 20000

Prints for each size p50 and p95 of keyword, vector and hybrid searches with questions of 3, 6 and
10 words beside their names, exact and by the index, the processor time that the database spends on
one, what share of the exact first ten the index finds, and how long the index takes to be made.
The searches are those of the service's own adapter, as its role. Takes about five minutes for
100,000 passages and keeps nothing.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import numpy as np
from large_lore_database import LIMIT, WORDS, Question, fill_lore, questions
from scale_database import database_cpu_seconds, open_as_service
from story_corpus import Corpus

from knowledge_base.adapters.database import RETRIEVAL_QUERIES
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.adapters.postgres_lore import PostgresLore
from knowledge_base.config import EmbeddingSettings
from knowledge_base.domain.lore import RankingParameters, SearchMode, SearchQuery
from knowledge_base.testing import service_url
from localsuite.postgres import EmbeddedPostgres
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

QUESTIONS = 40
WARMING = 3
NEVER = 10**9
# As a small database server would have them; the launcher's own are for a quiet desktop.
SETTINGS = {
    "shared_buffers": "3GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "synchronous_commit": "off",
    "autovacuum": "off",
}
ROUNDS = [
    *((SearchMode.KEYWORD, words) for words in WORDS),
    (SearchMode.VECTOR, WORDS[0]),
    *((SearchMode.HYBRID, words) for words in WORDS),
]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a round of searches took, and the texts that each found."""

    milliseconds: list[float]
    cpu_milliseconds: float
    found: list[set[str]]

    def __str__(self) -> str:
        p50, p95 = np.percentile(self.milliseconds, (50, 95))
        return f"p50 {p50:6.1f}  p95 {p95:6.1f}  CPU {self.cpu_milliseconds:6.1f} ms"


async def make_corpus() -> Corpus:
    """Returns the sentences with the model's vectors."""
    settings = load_settings(EmbeddingSettings, {})
    async with OnnxEmbedder.from_package(settings.model_cache_directory.expanduser()) as model:
        return await Corpus.made_with(model, model)


async def search_all(
    server: EmbeddedPostgres,
    lore: PostgresLore,
    mode: SearchMode,
    asked: Sequence[Question],
    model: str,
) -> Measured:
    """Asks one question after the other."""
    milliseconds, found = [], []
    cpu = 0.0
    for number, question in enumerate([*asked[:WARMING], *asked]):
        if number == WARMING:
            cpu = database_cpu_seconds(server)
        began = time.perf_counter()
        results = await lore.search(
            SearchQuery(question.text, mode, LIMIT),
            None if mode is SearchMode.KEYWORD else question.vector,
            RankingParameters(),
            model=model,
        )
        milliseconds.append((time.perf_counter() - began) * 1000)
        found.append({result.text for result in results})
    spent = (database_cpu_seconds(server) - cpu) * 1000 / len(asked)
    return Measured(milliseconds[WARMING:], spent, found[WARMING:])


async def index_from(owner: asyncpg.Connection, passages: int) -> None:
    """Gives the index another threshold."""
    await owner.execute(
        "CREATE OR REPLACE FUNCTION knowledge_base.lore_index_from() RETURNS bigint"
        f" LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {passages}"
    )


async def measure(server: EmbeddedPostgres, corpus: Corpus, passages: int, sentences: int) -> None:
    """Fills a database, measures, prints, and drops it."""
    name = f"lore_{passages}"
    server.create_database(name)
    url = server.url(name)
    began = time.monotonic()
    await fill_lore(url, corpus, passages, sentences=sentences)
    print(f"{passages} passages, stored in {time.monotonic() - began:.0f} s", flush=True)
    asked = {words: questions(corpus, QUESTIONS, words, sentences=sentences) for words in WORDS}
    owner = await asyncpg.connect(url)
    try:
        async with open_as_service(service_url(url)) as database:
            lore = PostgresLore(database, SystemClock(), lock_wait_seconds=1.0)
            await index_from(owner, NEVER)
            exact = [
                await search_all(server, lore, mode, asked[words], corpus.model)
                for mode, words in ROUNDS
            ]
            await index_from(owner, 1)
            began = time.monotonic()
            await owner.execute(RETRIEVAL_QUERIES.index_lore)
            took = time.monotonic() - began
            size = await owner.fetchval(
                "SELECT pg_size_pretty(pg_relation_size('knowledge_base.document_chunks_nearest'))"
            )
            print(f"  index made in {took:.1f} s, {size}", flush=True)
            for (mode, words), before in zip(ROUNDS, exact, strict=True):
                print(f"  {mode.value:7} {words:2} words  exact  {before}", flush=True)
                if mode is not SearchMode.KEYWORD:
                    after = await search_all(server, lore, mode, asked[words], corpus.model)
                    shares = [
                        len(one & other) / len(one)
                        for one, other in zip(before.found, after.found, strict=True)
                    ]
                    print(
                        f"{'':20} index  {after}  recall@{LIMIT} {np.mean(shares):.3f}"
                        f" (near {np.mean(shares[::2]):.3f}, asked {np.mean(shares[1::2]):.3f})",
                        flush=True,
                    )
    finally:
        await owner.close()
    server.drop_database(name)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--passages", type=int, nargs="+", default=[100_000], help="sizes; default 100000"
    )
    parser.add_argument(
        "--sentences",
        type=int,
        default=3,
        help="of which a passage is made; 1 makes lore of hundreds of near copies; default 3",
    )
    arguments = parser.parse_args()
    corpus = asyncio.run(make_corpus())
    with tempfile.TemporaryDirectory(prefix="large-lore-") as directory:
        # The server may run as another account.
        Path(directory).chmod(0o711)
        with EmbeddedPostgres(
            Path(directory) / "postgres", durable=False, settings=SETTINGS
        ) as server:
            for passages in arguments.passages:
                asyncio.run(measure(server, corpus, passages, arguments.sentences))


if __name__ == "__main__":
    main()
