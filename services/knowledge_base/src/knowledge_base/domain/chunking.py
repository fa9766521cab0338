"""Cuts documents into chunks that are found, embedded and cited one by one.

A chunk never spans two headings, so its citation is exact. A paragraph, a table or a fenced block
is a chunk of its own, together with the short blocks that lead to it; so where chunks begin and end
does not depend on how long other paragraphs are, and an edit changes the chunk it is in. Tables and
fenced code stay whole; only what is too long to be read as one is cut, prose at sentence ends, code
at line ends, tables at row ends with the header repeated.

Long runs (of sentences, of rows, of one-line paragraphs) are halved again and again at the unit
whose opening words have the smallest hash among those in the middle. Packing them in order instead
would move every later cut when one unit grows; this way a change moves none but the cuts beside it.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from knowledge_base.domain.declared_concepts import (
    DeclaredConcept,
    PassageText,
    declared_concepts,
)
from knowledge_base.domain.errors import InvalidDocument
from knowledge_base.domain.front_matter import FieldValue
from knowledge_base.domain.markdown import Block, BlockKind, Section, parse_markdown

__all__ = ["CHUNKING", "Chunk", "ChunkedDocument", "chunk_document"]

# Names this way of cutting; a new name makes every document be chunked anew.
CHUNKING = "chunks-2"

# The embedding model reads 256 tokens, some four characters each, heading path included.
_LONGEST_PROSE_CHARACTERS = 1100
# The model reads only the beginning of a table this long: the rest is found by its words.
_LONGEST_TABLE_OR_CODE_CHARACTERS = 8000
# A block below this says little by itself; it goes with its neighbours.
_SHORT_CHARACTERS = 200
_LONGEST_LEAD_CHARACTERS = 300
_LONGEST_RUN_CHARACTERS = 900
# What of a unit decides whether it begins a run: few, so that an edit seldom meets them.
_OPENING_CHARACTERS = 12

_UNIT_END = re.compile(
    r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]|\n(?=\s*(?:[-*+]|\d+[.)])\s)"
)
_LINE_END = re.compile(r"\n")
_BLANK = re.compile(r"\s+")
_JOINERS = frozenset("\u200d\ufe0e\ufe0f")
# Longer clusters of combining characters are cut all the same.
_LONGEST_CLUSTER = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document; lines count from 1, both ends inclusive."""

    heading_path: tuple[str, ...]
    start_line: int
    end_line: int
    text: str

    @property
    def search_text(self) -> str:
        """What is embedded and indexed: the passage below its headings, which give it context."""
        return "\n\n".join(part for part in (" > ".join(self.heading_path), self.text) if part)

    @property
    def search_text_sha256(self) -> bytes:
        """Tells whether the passage must be embedded again."""
        return hashlib.sha256(self.search_text.encode()).digest()


@dataclass(frozen=True, slots=True)
class ChunkedDocument:
    """A document ready to be stored; the concepts count its chunks from 0."""

    title: str
    front_matter: Mapping[str, FieldValue]
    chunks: tuple[Chunk, ...]
    concepts: tuple[DeclaredConcept, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    start_line: int
    end_line: int
    text: str


def chunk_document(path: str, content: bytes) -> ChunkedDocument:
    """Returns the document's title and chunks; the same bytes always give the same chunks.

    The title is the front matter's `title`, else the first heading, else the file's name.

    Raises InvalidDocument when the content is not UTF-8 or holds U+0000, naming the position, or
    when it declares a concept that cannot be recorded.
    """
    text = _decode(path, content)
    markdown = parse_markdown(text)
    chunks = tuple(chunk for section in markdown.sections for chunk in _chunks(section))
    stated = markdown.front_matter.get("title")
    headings = (section.heading_path[0] for section in markdown.sections if section.heading_path)
    title = stated if isinstance(stated, str) and stated else next(headings, "")
    concepts = declared_concepts(
        path,
        markdown.front_matter.get("concepts"),
        markdown.concept_headings,
        [PassageText(chunk.heading_path, chunk.text) for chunk in chunks],
    )
    return ChunkedDocument(
        title or path.rsplit("/", 1)[-1], markdown.front_matter, chunks, concepts
    )


def _decode(path: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        position, problem = error.start, "a byte that is not UTF-8"
    else:
        position, problem = content.find(b"\0"), "a NUL byte"
        if position < 0:
            return text
    line = content.count(b"\n", 0, position) + 1
    before = content[content.rfind(b"\n", 0, position) + 1 : position]
    column = len(before.decode("utf-8", "replace").removeprefix("\ufeff")) + 1
    raise InvalidDocument(
        f"The document {path!r} holds {problem} at byte {position}, line {line}, column {column}; "
        "only UTF-8 text without NUL can be ingested.",
        metadata={"path": path, "byte": str(position), "line": str(line), "column": str(column)},
    )


def _chunks(section: Section) -> Iterator[Chunk]:
    """Yields the section's chunks: each long piece with the short ones that lead to it."""
    groups: list[list[_Piece]] = []
    lead: list[_Piece] = []
    for piece in (piece for block in section.blocks for piece in _pieces(block)):
        if len(piece.text) < _SHORT_CHARACTERS:
            lead.append(piece)
        elif _size(lead) <= _LONGEST_LEAD_CHARACTERS:
            groups.append([*lead, piece])
            lead = []
        else:
            groups += [*_short_runs(lead), [piece]]
            lead = []
    if groups and _size(lead) <= _LONGEST_LEAD_CHARACTERS:
        groups[-1] += lead
    else:
        groups += _short_runs(lead)
    for group in groups:
        yield Chunk(
            section.heading_path,
            group[0].start_line,
            group[-1].end_line,
            "\n\n".join(piece.text for piece in group),
        )


def _size(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.text) for piece in pieces)


def _short_runs(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    texts = [piece.text for piece in pieces]
    return [list(pieces[run.start : run.stop]) for run in _runs(texts, _LONGEST_RUN_CHARACTERS)]


def _pieces(block: Block) -> Iterator[_Piece]:
    is_prose = block.kind is BlockKind.PROSE
    longest = _LONGEST_PROSE_CHARACTERS if is_prose else _LONGEST_TABLE_OR_CODE_CHARACTERS
    if len(block.text) <= longest:
        yield _Piece(block.start_line, block.end_line, block.text)
        return
    header = ""
    if block.kind is BlockKind.TABLE:
        header = "\n".join(block.text.split("\n", 2)[:2]) + "\n"
        longest = max(longest - len(header), longest // 2)
    else:
        longest = _LONGEST_RUN_CHARACTERS if is_prose else longest
    units = _units(block.text, longest, _UNIT_END if is_prose else _LINE_END)
    starts = [0, *accumulate(map(len, units))]
    for run in _runs(units, longest):
        text = "".join(units[run.start : run.stop])
        if not text.strip():
            continue
        shown = text.strip() if is_prose else text.strip("\n")
        blank = len(text) - len(text.lstrip()) if is_prose else len(text) - len(text.lstrip("\n"))
        begin = starts[run.start] + blank
        first_line = block.start_line + block.text.count("\n", 0, begin)
        yield _Piece(
            first_line,
            first_line + shown.rstrip().count("\n"),
            (header if run.start else "") + shown,
        )


def _units(text: str, longest: int, end: re.Pattern[str]) -> list[str]:
    """Returns the parts of a text between which it may be cut, none over `longest` characters."""
    ends = [match.end() for match in end.finditer(text)]
    units = []
    start = 0
    for stop in [*ends, len(text)]:
        while stop - start > longest:
            cut = _cut_inside(text, start, start + longest)
            units.append(text[start:cut])
            start = cut
        if stop > start:
            units.append(text[start:stop])
            start = stop
    return units


def _cut_inside(text: str, start: int, limit: int) -> int:
    """Returns where to cut what has no good place: after a blank, never within a character."""
    half = start + (limit - start) // 2
    newline = text.rfind("\n", half, limit)
    if newline >= 0:
        return newline + 1
    blanks = [match.end() for match in _BLANK.finditer(text, half, limit)]
    if blanks:
        return blanks[-1]
    cut = limit
    while cut > limit - _LONGEST_CLUSTER and cut > half and _joins(text[cut - 1], text[cut]):
        cut -= 1
    return cut


def _joins(before: str, character: str) -> bool:
    """Whether a reader sees the two as one character, roughly as Unicode's UAX 29 has it."""
    return (
        before == "\u200d"
        or character in _JOINERS
        or unicodedata.category(character).startswith("M")
        or 0x1F3FB <= ord(character) <= 0x1F3FF  # skin tones
        or (0x1F1E6 <= ord(before) <= 0x1F1FF and 0x1F1E6 <= ord(character) <= 0x1F1FF)  # flags
    )


def _runs(units: Sequence[str], longest: int) -> list[range]:
    """Returns which units stay together: runs of at most `longest` characters, if units allow.

    Each cut lies in the middle half of what it cuts, so runs are no shorter than they must be and
    the work is n log n however the units were chosen.
    """
    ends = [0, *accumulate(map(len, units))]
    keys = [
        hashlib.blake2b(unit.strip()[:_OPENING_CHARACTERS].encode(), digest_size=8).digest()
        for unit in units
    ]
    runs = []
    waiting = [range(len(units))] if units else []
    while waiting:
        run = waiting.pop()
        size = ends[run.stop] - ends[run.start]
        if size <= longest or len(run) == 1:
            runs.append(run)
            continue
        middle = (ends[run.start] + ends[run.stop]) / 2
        inner = range(run.start + 1, run.stop)
        central = [cut for cut in inner if abs(ends[cut] - middle) <= size / 4]
        if central:
            cut = min(central, key=lambda at: (keys[at], abs(ends[at] - middle)))
        else:
            cut = min(inner, key=lambda at: abs(ends[at] - middle))
        waiting += [range(cut, run.stop), range(run.start, cut)]
    return runs
