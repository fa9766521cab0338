"""Cuts documents into chunks that are found, embedded and cited one by one.

A chunk never spans two headings, so its citation is exact. Within a section, blocks are packed in
order up to a target size; tables and fenced code stay whole as long as they are readable as one;
only what is too long is cut, prose at sentence ends, code at line ends, tables at row ends with the
header repeated.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from knowledge_base.domain.errors import InvalidDocument
from knowledge_base.domain.markdown import Block, BlockKind, Section, parse_markdown

__all__ = ["CHUNKING", "Chunk", "ChunkedDocument", "chunk_document"]

# Names this way of cutting; a new name makes every document be chunked anew.
CHUNKING = "chunks-1"

# The embedding model reads 256 tokens, some four characters each, heading path included.
_TARGET_CHARACTERS = 900
_LONGEST_PROSE_CHARACTERS = 1100
_LONGEST_TABLE_OR_CODE_CHARACTERS = 2400

_SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+")
_BLANK = re.compile(r"\s+")


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
    """A document ready to be stored."""

    title: str
    front_matter: Mapping[str, str | list[str]]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    start_line: int
    end_line: int
    text: str


def chunk_document(path: str, content: bytes) -> ChunkedDocument:
    """Returns the document's title and chunks; the same bytes always give the same chunks.

    The title is the front matter's `title`, else the first heading, else the file's name.

    Raises InvalidDocument when the content is not UTF-8 or holds U+0000, naming the position.
    """
    text = _decode(path, content)
    markdown = parse_markdown(text)
    chunks = tuple(chunk for section in markdown.sections for chunk in _chunks(section))
    stated = markdown.front_matter.get("title")
    headings = (section.heading_path[0] for section in markdown.sections if section.heading_path)
    title = stated if isinstance(stated, str) and stated else next(headings, "")
    return ChunkedDocument(title or path.rsplit("/", 1)[-1], markdown.front_matter, chunks)


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
    raise InvalidDocument(
        f"The document {path!r} holds {problem} at byte {position}, line {line}; only UTF-8 text "
        "without NUL can be ingested.",
        metadata={"path": path, "byte": str(position), "line": str(line)},
    )


def _chunks(section: Section) -> Iterator[Chunk]:
    packed: list[_Piece] = []
    size = 0
    for piece in (piece for block in section.blocks for piece in _pieces(block)):
        if packed and size + len(piece.text) > _TARGET_CHARACTERS:
            yield _chunk(section, packed)
            packed, size = [], 0
        packed.append(piece)
        size += len(piece.text)
    if packed:
        yield _chunk(section, packed)


def _chunk(section: Section, pieces: Sequence[_Piece]) -> Chunk:
    return Chunk(
        section.heading_path,
        pieces[0].start_line,
        pieces[-1].end_line,
        "\n\n".join(piece.text for piece in pieces),
    )


def _pieces(block: Block) -> Iterator[_Piece]:
    is_prose = block.kind is BlockKind.PROSE
    longest = _LONGEST_PROSE_CHARACTERS if is_prose else _LONGEST_TABLE_OR_CODE_CHARACTERS
    if len(block.text) <= longest:
        yield _Piece(block.start_line, block.end_line, block.text)
        return
    header = ""
    if block.kind is BlockKind.TABLE:
        header = "\n".join(block.text.split("\n", 2)[:2]) + "\n"
        longest = max(longest - len(header), _TARGET_CHARACTERS)
    start = 0
    while start < len(block.text):
        end = _cut(block.text, start, longest, prose=is_prose)
        text = block.text[start:end].strip("\n")
        if text.strip():
            first_line = block.start_line + block.text.count("\n", 0, start)
            yield _Piece(
                first_line,
                first_line + block.text[start:end].rstrip().count("\n"),
                text.strip() if is_prose else (header if start else "") + text,
            )
        start = end


def _cut(text: str, start: int, longest: int, *, prose: bool) -> int:
    """Returns where the piece that begins at `start` ends: at the best break that fits."""
    if len(text) - start <= longest:
        return len(text)
    limit = start + longest
    half = start + longest // 2
    if prose:
        ends = [match.end() for match in _SENTENCE_END.finditer(text, half, limit)]
        if ends:
            return ends[-1]
    newline = text.rfind("\n", half, limit)
    if newline >= 0:
        return newline + 1
    blanks = [match.end() for match in _BLANK.finditer(text, half, limit)]
    return blanks[-1] if blanks else limit
