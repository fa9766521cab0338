"""Reads Markdown as sections of blocks with their line numbers.

Only the block structure matters here: headings, paragraphs, fenced code, tables. Inline markup
stays as it is, since readers of a citation compare it with the file. The rules are those of
CommonMark 0.31 for ATX and setext headings, fences and thematic breaks, and GitHub's for tables.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from knowledge_base.domain.front_matter import FieldValue, parse_front_matter

__all__ = ["Block", "BlockKind", "Markdown", "Section", "parse_markdown"]

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_ATX_HEADING = re.compile(r"^ {0,3}(?P<marks>#{1,6})(?:[ \t]+(?P<text>.*?))??(?:[ \t]+#+)?[ \t]*$")
_SETEXT_UNDERLINE = re.compile(r"^ {0,3}(?P<mark>=+|-+)[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})(?P<info>.*)$")
_THEMATIC_BREAK = re.compile(r"^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_TABLE_DELIMITER = re.compile(r"^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_EMPHASIS = re.compile(r"[*`]")
_DECLARATION = re.compile(r"[ \t]*\{concept(?:=(?P<kind>[\w -]{1,64}))?\}$")


class BlockKind(Enum):
    """What a block is; it decides how a block that is too long may be cut."""

    PROSE = "prose"
    CODE = "code"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines that belong together; lines count from 1, both ends inclusive."""

    kind: BlockKind
    start_line: int
    end_line: int
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """What stands between one heading and the next.

    `heading_path` runs from the outermost heading to the section's own; it is empty before the
    first heading.
    """

    heading_path: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Markdown:
    """A document: its front matter, its sections in order.

    `concept_headings` are the heading paths whose last heading declares a concept, with its kind.
    """

    front_matter: Mapping[str, FieldValue]
    sections: tuple[Section, ...]
    concept_headings: tuple[tuple[tuple[str, ...], str], ...] = ()


def parse_markdown(text: str) -> Markdown:
    """Returns the document's structure; every text is a document.

    Front matter stands between two lines `---` at the very top; see `parse_front_matter`.
    """
    lines = _LINE_BREAK.split(text.removeprefix("\ufeff"))
    front_matter, first = _front_matter(lines)
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    blocks: list[Block] = []
    declared: list[tuple[tuple[str, ...], str]] = []

    def finish() -> None:
        if blocks:
            sections.append(Section(tuple(title for _, title in path), tuple(blocks)))
            blocks.clear()

    for item in _blocks(lines, first):
        if isinstance(item, Block):
            blocks.append(item)
            continue
        finish()
        level, title = item
        while path and path[-1][0] >= level:
            path.pop()
        declaration = _DECLARATION.search(title)
        if declaration is not None:
            title = title[: declaration.start()]
        if title:
            path.append((level, title))
            if declaration is not None:
                declared.append((tuple(name for _, name in path), declaration["kind"] or ""))
    finish()
    return Markdown(MappingProxyType(front_matter), tuple(sections), tuple(declared))


def _blocks(lines: list[str], index: int) -> Iterator[Block | tuple[int, str]]:
    """Yields blocks, and headings as (level, title)."""
    while index < len(lines):
        line = lines[index]
        if not line.strip():
            index += 1
        elif heading := _ATX_HEADING.match(line):
            yield len(heading["marks"]), _plain(heading["text"] or "")
            index += 1
        elif (fence := _FENCE.match(line)) and _opens(fence):
            end = _fence_end(lines, index, fence["mark"])
            yield _block(BlockKind.CODE, lines, index, end)
            index = end
        elif line.lstrip().startswith("<!--"):
            index = _comment_end(lines, index)
        elif _THEMATIC_BREAK.match(line):
            index += 1
        else:
            end, level = _paragraph_end(lines, index)
            if level:
                yield level, _plain(" ".join(part.strip() for part in lines[index : end - 1]))
            else:
                kind = _paragraph_kind(lines[index:end])
                yield _block(kind, lines, index, end)
            index = end


def _paragraph_end(lines: list[str], start: int) -> tuple[int, int]:
    """Returns the index after the paragraph, and its heading level when it is a setext heading."""
    index = start + 1
    while index < len(lines):
        line = lines[index]
        if underline := _SETEXT_UNDERLINE.match(line):
            # Under a table row, a list or a quote the dashes are a thematic break or a delimiter.
            if not lines[index - 1].lstrip().startswith(("|", "-", "*", "+", ">")):
                return index + 1, 1 if underline["mark"][0] == "=" else 2
            return index, 0
        if (
            not line.strip()
            or _ATX_HEADING.match(line)
            or ((fence := _FENCE.match(line)) and _opens(fence))
            or _THEMATIC_BREAK.match(line)
        ):
            break
        index += 1
    return index, 0


def _paragraph_kind(lines: list[str]) -> BlockKind:
    is_table = len(lines) > 1 and "|" in lines[0] and _TABLE_DELIMITER.match(lines[1]) is not None
    return BlockKind.TABLE if is_table else BlockKind.PROSE


def _opens(fence: re.Match[str]) -> bool:
    return fence["mark"][0] == "~" or "`" not in fence["info"]


def _fence_end(lines: list[str], start: int, mark: str) -> int:
    closing = re.compile(rf"^ {{0,3}}{re.escape(mark[0])}{{{len(mark)},}}[ \t]*$")
    for index in range(start + 1, len(lines)):
        if closing.match(lines[index]):
            return index + 1
    end = len(lines)
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    return end


def _comment_end(lines: list[str], start: int) -> int:
    for index in range(start, len(lines)):
        if "-->" in lines[index]:
            return index + 1
    return len(lines)


def _block(kind: BlockKind, lines: list[str], start: int, end: int) -> Block:
    return Block(kind, start + 1, end, "\n".join(lines[start:end]))


def _plain(heading: str) -> str:
    return _EMPHASIS.sub("", heading).strip()


def _front_matter(lines: list[str]) -> tuple[dict[str, FieldValue], int]:
    """Returns the fields and the index of the first line after them."""
    if not lines or lines[0].rstrip() != "---":
        return {}, 0
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() in {"---", "..."}), 0)
    if not end:
        return {}, 0
    return parse_front_matter(lines[1:end]), end + 1
