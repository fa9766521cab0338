"""Rivals, each in a process of the environment that `make rivals` makes.

with Rival.started("langchain_store", url) as rival:
    rival.load(write_folder(directory, documents, queries))
    answer = rival.search([0, 1], mode="hybrid", limit=10)
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from knowledge_base.ports import Vector

__all__ = ["Answer", "Item", "Rival", "installed", "write_folder"]

_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = _ROOT / ".tool" / "rivals" / "bin" / "python"
_PROGRAMS = Path(__file__).resolve().parent / "rivals"
_EXIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Item:
    """Something to be searched; `scope` is what a search may be confined to."""

    id: str
    text: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rival found for each query, best first, and the seconds that each took."""

    ids: list[list[str]]
    each_seconds: list[float]
    seconds: float


def installed() -> bool:
    """Whether `make rivals` has been run."""
    return _PYTHON.exists()


def write_folder(
    folder: Path,
    items: Sequence[Item],
    vectors: Vector,
    queries: Sequence[str],
    query_vectors: Vector,
) -> Path:
    """Writes what a rival is given (rivals/exchange.py says how) and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as out:
        for item in items:
            row = {"id": item.id, "text": item.text, "scope": item.scope}
            out.write(json.dumps(row) + "\n")
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as out:
        for text in queries:
            out.write(json.dumps({"text": text}) + "\n")
    np.save(folder / "documents.npy", vectors)
    np.save(folder / "queries.npy", query_vectors)
    return folder


class Rival:
    """A rival's process; each method returns when the rival has done it.

    Methods raise RuntimeError when the process ended instead; what it said of that is on standard
    error.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @classmethod
    @contextmanager
    def started(cls, program: str, url: str) -> Iterator[Self]:
        """Runs `langchain_store` or `txtai_index` on the PostgreSQL at `url`, as its owner."""
        process = subprocess.Popen(
            [str(_PYTHON), str(_PROGRAMS / f"{program}.py"), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield cls(process)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def load(self, folder: Path) -> float:
        """Makes the rival's store anew from a folder; returns the seconds it took."""
        return float(self._tell({"do": "load", "folder": str(folder)})["seconds"])

    def attach(self, folder: Path) -> None:
        """Uses the store as it is filled."""
        self._tell({"do": "attach", "folder": str(folder)})

    def index(self) -> float:
        """Adds the library's approximate index; returns the seconds it took."""
        return float(self._tell({"do": "index"})["seconds"])

    def search(
        self,
        rows: Sequence[int],
        *,
        mode: str,
        limit: int,
        scope: str | None = None,
        clients: int = 1,
    ) -> Answer:
        """Searches for the queries in these rows of the folder, `clients` at a time."""
        answer = self._tell(
            {
                "do": "search",
                "rows": list(rows),
                "scope": scope,
                "mode": mode,
                "limit": limit,
                "clients": clients,
            }
        )
        return Answer(answer["ids"], answer["each_seconds"], answer["seconds"])

    def _tell(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the rival ended with {self._process.wait(_EXIT_SECONDS)}")
        answer: dict[str, Any] = json.loads(line)
        return answer
