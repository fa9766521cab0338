"""What the programs in this folder say and are told: one JSON object a line, in and out.

They run in the environment that `make rivals` makes and know nothing of Gamekeeper. A folder hands
over what is searched; both sides thus use the same texts and the same vectors:

    documents.jsonl   {"id": "...", "text": "...", "scope": "..."}; scope may be absent
    documents.npy     float32 unit vectors, row by row of documents.jsonl
    queries.jsonl     {"text": "..."}
    queries.npy       float32 unit vectors, row by row of queries.jsonl

Told, one after another:

    {"do": "load", "folder": F}           makes the store anew and fills it in the library's way
    {"do": "attach", "folder": F}         uses the store as it is filled; reads the queries only
    {"do": "index"}                       adds the library's approximate index
    {"do": "search", "rows": [0, 1], "scope": S or null, "mode": "vector" or "hybrid",
     "limit": K, "clients": N}            searches, N at a time

Said after each: {"seconds": in all}, and for a search also "ids" and "each_seconds", by row.
"""

import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["Documents", "Queries", "Searched", "Store", "converse", "embedded"]


@dataclass(frozen=True, slots=True)
class Documents:
    """What a folder hands over to be searched."""

    ids: list[str]
    texts: list[str]
    scopes: list[str]
    vectors: Any


@dataclass(frozen=True, slots=True)
class Queries:
    """What a folder asks."""

    texts: list[str]
    vectors: Any


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found for each query, and how long each took."""

    ids: list[list[str]]
    each_seconds: list[float]


class Store(Protocol):
    """A library's store of vectors."""

    async def load(self, documents: Documents, queries: Queries) -> None:
        """Makes the store anew and fills it."""

    async def attach(self, queries: Queries) -> None:
        """Uses the store as it is."""

    async def index(self) -> None:
        """Adds the library's approximate index."""

    async def search(
        self, rows: list[int], scope: str | None, mode: str, limit: int, clients: int
    ) -> Searched:
        """Searches for the queries in these rows."""


def read_documents(folder: Path) -> Documents:
    """Returns the documents of a folder."""
    rows = _rows(folder / "documents.jsonl")
    return Documents(
        [row["id"] for row in rows],
        [row["text"] for row in rows],
        [row.get("scope", "") for row in rows],
        np.load(folder / "documents.npy"),
    )


def read_queries(folder: Path) -> Queries:
    """Returns the queries of a folder."""
    rows = _rows(folder / "queries.jsonl")
    return Queries([row["text"] for row in rows], np.load(folder / "queries.npy"))


def embedded(documents: Documents | None, queries: Queries) -> dict[str, Any]:
    """Returns the vector of each text, which stands for running the model."""
    found = dict(zip(queries.texts, queries.vectors, strict=True))
    if documents is not None:
        found.update(zip(documents.texts, documents.vectors, strict=True))
    return found


async def converse(store: Store) -> None:
    """Does what standard input says until it ends."""
    for line in sys.stdin:
        told = json.loads(line)
        started = time.perf_counter()
        answer: dict[str, Any] = {}
        match told["do"]:
            case "load":
                folder = Path(told["folder"])
                documents, queries = read_documents(folder), read_queries(folder)
                started = time.perf_counter()
                await store.load(documents, queries)
            case "attach":
                await store.attach(read_queries(Path(told["folder"])))
            case "index":
                await store.index()
            case "search":
                found = await store.search(
                    told["rows"], told["scope"], told["mode"], told["limit"], told["clients"]
                )
                answer = {"ids": found.ids, "each_seconds": found.each_seconds}
            case other:
                raise ValueError(f"no such thing to do: {other}")
        answer["seconds"] = time.perf_counter() - started
        print(json.dumps(answer), flush=True)


async def timed(search: Callable[[], Awaitable[list[str]]]) -> tuple[list[str], float]:
    """Returns what a search found and how long it took."""
    started = time.perf_counter()
    ids = await search()
    return ids, time.perf_counter() - started


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
