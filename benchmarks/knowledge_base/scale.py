"""Speed of the knowledge base with many worlds, against limits and against other stores.

    python benchmarks/knowledge_base/scale.py                  600 worlds, 60,000 events
    python benchmarks/knowledge_base/scale.py --full           10,000 worlds, 1,000,000 events too
    python benchmarks/knowledge_base/scale.py --full --plot docs/knowledge_base_scale.png

Sizes are skewed: most worlds have under a hundred events, some 5,000, single ones up to 50,000. A
world's rows lie scattered among those of the others. The databases are kept below .cache (4 GB for
a million events); the first full run takes a quarter of an hour more to fill them. Rivals are
measured where `make rivals` was run.

Wall times tell of the machine and whatever else runs on it. The CPU time of a search, of database
and client together, tells more; two cores over it is what two quiet cores could carry at best.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import rival_process
import uvloop
from scale_database import ScaleDatabase, open_scale_database
from scale_measures import Latency, Searcher, measure_rpc, open_searcher
from scale_plot import Growth, draw
from scale_rivals import Comparison, measure_rivals
from story_corpus import GROWTH_SIZES, Corpus, WorldPlan, plan_worlds
from vector_cache import DiskCachedEmbedder

from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.config import EmbeddingSettings
from servicekit.settings import load_settings

CACHE = Path(__file__).resolve().parents[2] / ".cache"
CLIENTS = 4

# What the knowledge base is held to.
RECALL_P95_MS = 10.0
SMALL_PER_SECOND = 5_000.0
LARGE_PER_SECOND = 800.0
RPC_P50_MS = 15.0
INGEST_SECONDS = 10.0


async def make_corpus() -> Corpus:
    """Returns the corpus; the model runs in the first run only."""
    settings = load_settings(EmbeddingSettings, {})
    async with OnnxEmbedder.from_package(settings.model_cache_directory.expanduser()) as model:
        cached = DiskCachedEmbedder(model, CACHE / "knowledge_base_scale" / "vectors.sqlite")
        try:
            return await Corpus.made_with(cached, model)
        finally:
            cached.close()


def of_size(worlds: Sequence[WorldPlan], events: int) -> list[WorldPlan]:
    """Returns the worlds with exactly this many events."""
    return [world for world in worlds if world.events == events]


def against(limit: float, measured: float, *, at_least: bool = False) -> str:
    """Returns how a figure stands to its limit."""
    ratio = measured / limit
    kept = ratio >= 1.0 if at_least else ratio <= 1.0
    return f"{'at least' if at_least else 'limit'} {limit:g}: {ratio:.2f} of it, " + (
        "kept" if kept else "MISSED"
    )


async def measure_growth(searcher: Searcher, worlds: Sequence[WorldPlan]) -> Growth:
    """Measures a search in worlds of ever more events."""
    found: dict[int, Latency] = {}
    for events in sorted({*GROWTH_SIZES, 100, 5_000}):
        chosen = of_size(worlds, events)[:20]
        if chosen:
            found[events] = await searcher.latency(chosen, max(20, min(100, 100_000 // events)))
    return Growth(len(worlds), sum(world.events for world in worlds), found)


async def measure_own(scale: ScaleDatabase, corpus: Corpus, worlds: Sequence[WorldPlan]) -> Growth:
    """Prints the limits' figures and how a search grows; returns the latter."""
    large, small = of_size(worlds, 5_000), of_size(worlds, 100)
    async with open_searcher(scale, corpus, clients=CLIENTS) as searcher:
        latency = await searcher.latency(large, 150)
        print(f"recall in a world of 5,000     {latency}")
        print(f"  p95, {against(RECALL_P95_MS, latency.percentile(95))}")
        for name, chosen, limit, searches in (
            ("100", small[:100], SMALL_PER_SECOND, 3_000),
            ("5,000", large[:10], LARGE_PER_SECOND, 400),
        ):
            rate = await searcher.throughput(chosen, searches, clients=CLIENTS, vectors_only=True)
            print(f"vectors in worlds of {name:<9} {rate}")
            print(f"  a second, {against(limit, rate.per_second, at_least=True)}")
        growth = await measure_growth(searcher, worlds)
    print("recall by events in the world:")
    for events, latency in growth.by_events.items():
        print(f"  {events:>7,}   {latency}")
    recalled, searched, ingest_seconds = await measure_rpc(scale, corpus, large[:10], 60)
    print(f"Recall, whole RPC              {recalled}")
    print(f"  p50, {against(RPC_P50_MS, recalled.percentile(50))}")
    print(f"Search, whole RPC              {searched}")
    print(f"  p50, {against(RPC_P50_MS, searched.percentile(50))}")
    print(f"ingest of the lore             {ingest_seconds:.1f} s")
    print(f"  seconds, {against(INGEST_SECONDS, ingest_seconds)}")
    return growth


def run(name: str, worlds: list[WorldPlan], corpus: Corpus) -> tuple[Growth, list[Comparison]]:
    """Measures everything in one database."""
    events = sum(world.events for world in worlds)
    print(f"\n{len(worlds):,} worlds, {events:,} events", flush=True)
    with open_scale_database(name, worlds, corpus) as scale:
        print(
            f"database {scale.bytes_on_disk / 1e9:.1f} GB; "
            f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            flush=True,
        )
        growth = uvloop.run(measure_own(scale, corpus, worlds))
        comparisons = []
        if rival_process.installed():
            comparisons = uvloop.run(
                measure_rivals(
                    scale, corpus, of_size(worlds, 5_000)[:10], of_size(worlds, 100)[:100]
                )
            )
            for comparison in comparisons:
                print(comparison)
        else:
            print("no rivals: run `make rivals` first")
        print(f"load of the machine {os.getloadavg()[0]:.1f} at the end", flush=True)
    return growth, comparisons


def main() -> None:
    """Runs on databases of its own, which are kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="a million events too")
    parser.add_argument("--full-only", action="store_true", help="a million events alone")
    parser.add_argument("--plot", type=Path, help="draw how cost grows into this PNG")
    arguments = parser.parse_args()
    corpus = asyncio.run(make_corpus())
    results = []
    if not arguments.full_only:
        results.append(
            run(
                "quick",
                plan_worlds(600, 60_000, large=4, hundreds=100, growth=(10, 30, 300, 1_000, 2_000)),
                corpus,
            )
        )
    if arguments.full or arguments.full_only:
        results.append(
            run("full", plan_worlds(10_000, 1_000_000, large=30, hundreds=1_000), corpus)
        )
    if arguments.plot:
        draw(arguments.plot, [growth for growth, _ in results], results[-1][1])
        print(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
