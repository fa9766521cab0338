"""Sets of graded questions: the project's own, and those in a path, which is only read.

Known forms of a path:
- a directory with `docs.jsonl[.gz]` (id, title, text), `queries.jsonl[.gz]` (id, text) and
  `qrels.jsonl[.gz]` (q, d, rel): documents, each one an item; or the same in the names and columns
  of BEIR (`corpus.jsonl`, `queries.jsonl` with _id, `qrels/test.tsv`);
- a file `*.json[.gz]` with a list of LoCoMo conversations (Maharana et al. 2024): turns, each one
  an item; questions without evidence among the turns are left out.
"""

import csv
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ranking_measures import Question

__all__ = ["Conversation", "DocumentSet", "Turn", "own_set", "read_set"]

_SERVICE = Path(__file__).resolve().parents[2] / "services" / "knowledge_base"
_TURN_ID = re.compile(r"D\d+:\d+")
_LOCOMO_KINDS = {
    1: "several turns",
    2: "time",
    3: "open domain",
    4: "one turn",
    5: "wrong speaker",
}


@dataclass(frozen=True, slots=True)
class DocumentSet:
    """Documents to ingest, and questions whose answers are documents or sections of them.

    `by_section` says which: an item is (path, last heading), or the path alone.
    """

    name: str
    documents: dict[str, bytes]
    questions: tuple[Question, ...]
    by_section: bool

    def item(self, path: str, heading_path: tuple[str, ...]) -> Hashable:
        """Returns the item that a passage belongs to."""
        return (path, heading_path[-1] if heading_path else "") if self.by_section else path


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that was said."""

    turn_id: str
    speaker: str
    text: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Conversation:
    """Sessions of turns, and questions whose answers are turns."""

    name: str
    sessions: tuple[tuple[Turn, ...], ...]
    questions: tuple[Question, ...]


def own_set() -> DocumentSet:
    """Returns the lore and its graded questions."""
    lines = [
        line
        for name in ("questions.jsonl", "off_topic.jsonl")
        for line in (_SERVICE / "evaluation" / name).read_text(encoding="utf-8").splitlines()
    ]
    questions = tuple(
        Question(
            row["kind"],
            row["question"],
            {(item["document"], item["heading"]): item["grade"] for item in row["relevant"]},
            exponential_gain=True,
        )
        for row in map(json.loads, lines)
    )
    documents = {path.name: path.read_bytes() for path in sorted((_SERVICE / "lore").glob("*.md"))}
    return DocumentSet("lore", documents, questions, by_section=True)


def read_set(path: Path) -> DocumentSet | list[Conversation]:
    """Returns the set at a path. Raises ValueError when its form is not known."""
    if path.is_dir():
        return _documents(path)
    if ".json" in path.suffixes:
        return [
            _conversation(f"conversation {number}", item)
            for number, item in enumerate(json.loads(_text(path)), start=1)
        ]
    raise ValueError(f"{path} is neither a directory of documents nor a file of conversations")


def _documents(directory: Path) -> DocumentSet:
    documents = {
        f"{_value(row, 'id', '_id')}.md": f"# {row.get('title') or 'Untitled'}\n\n"
        f"{row['text']}".encode()
        for row in _rows(directory, "docs", "corpus")
    }
    grades: defaultdict[str, dict[Hashable, int]] = defaultdict(dict)
    for query, document, grade in _judgements(directory):
        if grade > 0:
            grades[query][f"{document}.md"] = grade
    questions = tuple(
        Question("all", row["text"], grades[query])
        for row in _rows(directory, "queries")
        if (query := str(_value(row, "id", "_id"))) in grades
    )
    return DocumentSet(directory.name, documents, questions, by_section=False)


def _judgements(directory: Path) -> Iterator[tuple[str, str, int]]:
    table = directory / "qrels" / "test.tsv"
    if table.exists():
        for row in csv.reader(table.read_text(encoding="utf-8").splitlines()[1:], delimiter="\t"):
            yield row[0], row[1], int(row[2])
        return
    for item in _rows(directory, "qrels"):
        yield str(item["q"]), str(item["d"]), int(item["rel"])


def _conversation(name: str, item: dict[str, Any]) -> Conversation:
    record = item["conversation"]
    numbers = sorted(
        int(match[1]) for key in record if (match := re.fullmatch(r"session_(\d+)", key))
    )
    sessions = []
    for number in numbers:
        time = datetime.strptime(
            record[f"session_{number}_date_time"], "%I:%M %p on %d %B, %Y"
        ).replace(tzinfo=UTC)
        turns = (
            Turn(turn["dia_id"], turn["speaker"], _said(turn), time)
            for turn in record[f"session_{number}"]
        )
        sessions.append(tuple(turn for turn in turns if turn.text))
    known = {turn.turn_id for session in sessions for turn in session}
    questions = []
    for question in item["qa"]:
        evidence = set(_TURN_ID.findall(" ".join(question["evidence"]))) & known
        if evidence:
            kind = _LOCOMO_KINDS.get(question["category"], "other")
            questions.append(Question(kind, question["question"], dict.fromkeys(evidence, 1)))
    return Conversation(name, tuple(sessions), tuple(questions))


def _said(turn: dict[str, Any]) -> str:
    """A picture is told by its caption, as the data set's own baselines do."""
    caption = turn.get("blip_caption")
    shown = f"[shares {caption}]" if caption else ""
    return f"{turn['text']} {shown}".strip()


def _rows(directory: Path, *names: str) -> Iterator[dict[str, Any]]:
    for name in names:
        for path in (directory / f"{name}.jsonl", directory / f"{name}.jsonl.gz"):
            if path.exists():
                yield from map(json.loads, _text(path).splitlines())
                return
    raise ValueError(f"{directory} holds no {names[0]}.jsonl")


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def _value(row: dict[str, Any], *names: str) -> Any:
    return next(row[name] for name in names if name in row)
