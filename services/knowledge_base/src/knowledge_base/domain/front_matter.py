"""Reads front matter: the part of YAML that people write above a document, and nothing that runs.

Read are `key: value`, lists (`[a, b]` or `- item` lines), mappings below a key or an item, quoted
texts, block texts (`|` keeps lines, `>` joins them) and comments. Every scalar is a text, so `no`,
`1.10` and `2024-05-01` stay what was written. Anchors, tags, references and whatever else YAML has
are not read: such a line is text or left out, never an instruction.
"""

import re
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["FieldValue", "parse_front_matter"]

FieldValue: TypeAlias = str | list["FieldValue"] | dict[str, "FieldValue"]

_FIELD = re.compile(r"^(?P<key>[^\s:#\[\]{}\"'-][^:#]*?)[ \t]*:(?:[ \t]+(?P<value>.*))?$")
_COMMENT = re.compile(r"(?:^|[ \t])#.*$")
_BLOCK_TEXT = re.compile(r"^[|>][+-]?$")
# Deeper ones are no front matter that a person wrote.
_DEEPEST = 6


def parse_front_matter(lines: Sequence[str]) -> dict[str, FieldValue]:
    """Returns the fields of the lines between the two `---`; what cannot be read is left out."""
    return _Reader(lines).mapping(0, 0)


class _Reader:
    """Reads lines from the top; every method leaves off at the first line that is not its own."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = [line.replace("\t", "  ").rstrip() for line in lines]
        self._at = 0

    def mapping(self, indent: int, depth: int) -> dict[str, FieldValue]:
        fields: dict[str, FieldValue] = {}
        while (line := self._line()) is not None:
            found = _indent(line)
            if found < indent:
                break
            field = _FIELD.match(line.strip()) if found == indent else None
            self._at += 1
            if field is not None:
                fields[field["key"].strip()] = self._value(field["value"] or "", found, depth)
        return fields

    def _list(self, indent: int, depth: int) -> list[FieldValue]:
        items: list[FieldValue] = []
        while (line := self._line()) is not None:
            found, rest = _indent(line), line.strip()
            if found != indent or not (rest == "-" or rest.startswith("- ")):
                break
            item = rest[1:].strip()
            if _FIELD.match(item) and depth < _DEEPEST:
                # The first field stands beside the dash, the others below it.
                inner = indent + len(rest) - len(rest[1:].lstrip())
                self._lines[self._at] = " " * inner + item
                items.append(self.mapping(inner, depth + 1))
            else:
                self._at += 1
                items.append(self._value(item, indent, depth))
        return items

    def _value(self, text: str, indent: int, depth: int) -> FieldValue:
        text = _uncommented(text)
        if _BLOCK_TEXT.match(text):
            return self._block_text(indent, keeps_lines=text[0] == "|")
        if text.startswith("[") and text.endswith("]"):
            return [_unquoted(item) for item in _split(text[1:-1])]
        if text:
            return _unquoted(text)
        line = self._line()
        if line is None or depth >= _DEEPEST:
            return ""
        found, rest = _indent(line), line.strip()
        if (rest == "-" or rest.startswith("- ")) and found >= indent:
            return self._list(found, depth + 1)
        if found > indent and _FIELD.match(rest):
            return self.mapping(found, depth + 1)
        return ""

    def _block_text(self, indent: int, *, keeps_lines: bool) -> str:
        taken: list[str] = []
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.strip() and _indent(line) <= indent:
                break
            taken.append(line)
            self._at += 1
        margin = min((_indent(line) for line in taken if line.strip()), default=0)
        text = "\n".join(line[margin:] for line in taken).strip("\n")
        if keeps_lines:
            return text
        return "\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))

    def _line(self) -> str | None:
        """Returns the next line that says something."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.strip() and not line.lstrip().startswith("#"):
                return line
            self._at += 1
        return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _uncommented(value: str) -> str:
    value = value.strip()
    if value[:1] in {'"', "'"}:
        end = value.find(value[0], 1)
        return value[: end + 1] if end > 0 else value
    return _COMMENT.sub("", value).rstrip()


def _split(inside: str) -> list[str]:
    """Returns the items of a list on one line; a comma within quotes separates nothing."""
    items, start, quote = [], 0, ""
    for at, character in enumerate(inside):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and not inside[start:at].strip():
            quote = character
        elif character == ",":
            items.append(inside[start:at])
            start = at + 1
    return [item.strip() for item in [*items, inside[start:]] if item.strip()]


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value
