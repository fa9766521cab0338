"""The lore and its graded questions agree with each other and keep their promised shape."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

SERVICE = Path(__file__).resolve().parents[1]
LORE = SERVICE / "lore"
QUESTIONS = SERVICE / "evaluation" / "questions.jsonl"

KINDS = ("entity", "paraphrase", "policy", "multi_document", "unanswerable")
QUESTIONS_PER_KIND = 24
DOCUMENTS = 13

# Words too common to say anything about a passage.
COMMON = frozenset(
    [
        "about",
        "been",
        "could",
        "does",
        "each",
        "from",
        "have",
        "into",
        "made",
        "make",
        "might",
        "must",
        "over",
        "should",
        "some",
        "than",
        "that",
        "their",
        "them",
        "then",
        "there",
        "they",
        "this",
        "under",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "whom",
        "will",
        "with",
        "would",
        "your",
    ]
)


@dataclass(frozen=True, slots=True)
class Reference:
    document: str
    heading: str
    grade: int


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    kind: str
    text: str
    relevant: tuple[Reference, ...]


def sections(text: str) -> list[tuple[int, str, str]]:
    """Return (level, heading, body up to the next heading) in order; fenced code is body."""
    found: list[tuple[int, str, list[str]]] = []
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        # What declares a concept is no part of the heading.
        match = None if fenced else re.fullmatch(r"(#{1,6}) (.+?)(?: \{concept=\w+\})?", line)
        if match:
            found.append((len(match[1]), match[2], []))
        elif found:
            found[-1][2].append(line)
    assert not fenced, "a code fence is left open"
    return [(level, heading, "\n".join(body)) for level, heading, body in found]


def read_questions() -> list[Question]:
    questions = []
    for line in QUESTIONS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row.keys() == {"id", "kind", "question", "relevant"}
        for reference in row["relevant"]:
            assert reference.keys() == {"document", "heading", "grade"}
        references = tuple(Reference(**reference) for reference in row["relevant"])
        questions.append(Question(row["id"], row["kind"], row["question"], references))
    return questions


def content_words(text: str) -> set[str]:
    words = re.findall(r"[a-z']{4,}", text.lower())
    return {re.sub(r"(ing|ed|es|s|'s)$", "", word) for word in words if word not in COMMON}


DOCUMENT_PATHS = sorted(LORE.iterdir())
SECTIONS = {path.name: sections(path.read_text(encoding="utf-8")) for path in DOCUMENT_PATHS}
ASKED = read_questions()


def test_lore_is_thirteen_numbered_documents() -> None:
    assert len(DOCUMENT_PATHS) == DOCUMENTS
    for number, path in enumerate(DOCUMENT_PATHS, start=1):
        assert re.fullmatch(rf"{number:02d}-[a-z0-9-]+\.md", path.name)


def test_lore_is_between_100_and_300_kilobytes() -> None:
    sizes = [path.stat().st_size for path in DOCUMENT_PATHS]
    assert 100_000 <= sum(sizes) <= 300_000
    assert min(sizes) >= 8_000


@pytest.mark.parametrize("path", DOCUMENT_PATHS, ids=lambda path: path.name)
def test_document_has_front_matter_with_title_kind_and_version(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    match = re.match(r"---\ntitle: (.+)\nkind: ([a-z]+)\nversion: (\d+)\n---\n\n# (.+)\n", text)
    assert match is not None
    assert match[1] == match[4], "the title and the first heading are the same"


@pytest.mark.parametrize("name", SECTIONS)
def test_heading_levels_descend_one_at_a_time(name: str) -> None:
    levels = [level for level, _, _ in SECTIONS[name]]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("name", SECTIONS)
def test_every_innermost_section_says_something(name: str) -> None:
    rows = SECTIONS[name]
    for index, (level, heading, body) in enumerate(rows):
        is_innermost = index + 1 == len(rows) or rows[index + 1][0] <= level
        if is_innermost:
            assert len(body.split()) >= 20, f"{heading!r} is nearly empty"


@pytest.mark.parametrize("path", [*DOCUMENT_PATHS, QUESTIONS], ids=lambda path: path.name)
def test_text_has_no_control_characters_absolute_paths_or_addresses(path: Path) -> None:
    text = path.read_bytes().decode("utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]", text)
    assert not re.search(r"(?<![\w.])/(?:[a-z0-9_.-]+/)+|[A-Za-z]:\\|https?://", text)
    assert text.endswith("\n")


@pytest.mark.parametrize("path", DOCUMENT_PATHS, ids=lambda path: path.name)
def test_tables_have_the_same_number_of_cells_in_every_row(path: Path) -> None:
    width = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = line.count("|")
        assert width in (None, cells), line
        width = cells


def test_questions_are_24_of_each_kind_with_unique_ids_and_texts() -> None:
    assert Counter(question.kind for question in ASKED) == dict.fromkeys(KINDS, QUESTIONS_PER_KIND)
    assert len({question.id for question in ASKED}) == len(ASKED)
    assert len({question.text.casefold() for question in ASKED}) == len(ASKED)
    for question in ASKED:
        assert re.fullmatch(rf"{question.kind.replace('_', '-')}-\d{{2}}", question.id)
        assert question.text.endswith(("?", "."))


@pytest.mark.parametrize("question", ASKED, ids=lambda question: question.id)
def test_every_reference_names_exactly_one_section(question: Question) -> None:
    assert len(set(question.relevant)) == len(question.relevant)
    pairs = [(reference.document, reference.heading) for reference in question.relevant]
    assert len(set(pairs)) == len(pairs), "a section is graded once"
    for reference in question.relevant:
        headings = [heading for _, heading, _ in SECTIONS[reference.document]]
        assert headings.count(reference.heading) == 1
        assert reference.grade in (1, 2)


@pytest.mark.parametrize("question", ASKED, ids=lambda question: question.id)
def test_references_fit_the_kind_of_question(question: Question) -> None:
    answering = [reference for reference in question.relevant if reference.grade == 2]
    if question.kind == "unanswerable":
        assert question.relevant == ()
        return
    assert answering
    if question.kind == "multi_document":
        assert len({reference.document for reference in question.relevant}) >= 2
        assert len(answering) >= 2


def test_every_document_answers_some_question() -> None:
    answering = {ref.document for asked in ASKED for ref in asked.relevant if ref.grade == 2}
    assert answering == set(SECTIONS)


def shared_word_ratio(question: Question) -> float:
    """Return the largest share of the question's words that an answering section uses."""
    asked = content_words(question.text)
    ratios = [
        len(asked & content_words(f"{heading} {body}")) / len(asked)
        for reference in question.relevant
        if reference.grade == 2
        for _, heading, body in SECTIONS[reference.document]
        if heading == reference.heading
    ]
    return max(ratios)


def test_paraphrases_avoid_the_words_of_the_passage_they_ask_for() -> None:
    paraphrases = [shared_word_ratio(asked) for asked in ASKED if asked.kind == "paraphrase"]
    entities = [shared_word_ratio(asked) for asked in ASKED if asked.kind == "entity"]
    assert max(paraphrases) <= 0.34
    assert sum(paraphrases) / len(paraphrases) <= 0.12
    assert sum(entities) / len(entities) >= 0.5
