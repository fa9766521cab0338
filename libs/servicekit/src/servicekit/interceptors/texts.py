"""Refuses text that no honest caller writes: NUL, and characters nobody can see in names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from servicekit.errors import FieldViolation, InvalidRequest
from servicekit.interceptors.call import Call

__all__ = ["PROSE_FIELDS", "TextCheck", "problem_of_name", "problem_of_prose"]

PROSE_FIELDS = frozenset({"content", "description", "query", "reason", "stop", "text", "value"})
"""Fields that hold prose, where line breaks and joiners belong; all others hold names."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's general categories of control and format characters, surrogates and separators."""

# Zero-width (non-)joiners are part of words in Persian and the Indic scripts, and of emoji; between
# two other characters of ASCII they only serve to make two names look like one.
_JOINER_IN_WORD = re.compile("(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
_MAXIMUM_VIOLATIONS = 20


def problem_of_name(text: str) -> str | None:
    """Returns what is wrong with `text` as a name or an id, None when nothing is."""
    if text.isprintable():
        return None
    for character in _JOINER_IN_WORD.sub("", text):
        if unicodedata.category(character) in _HIDDEN:
            return f"must not hold U+{ord(character):04X}, which cannot be seen"
    return None


def problem_of_prose(text: str) -> str | None:
    """Returns what is wrong with `text` as prose, None when nothing is."""
    if "\0" in text:
        return "must not hold U+0000"
    hidden = False
    for character in text:  # ends at the first character that can be seen
        if unicodedata.category(character) == "Cf":
            hidden = True
        elif not character.isspace():
            return None
    return "must hold something that can be seen" if hidden else None


@dataclass(frozen=True, slots=True)
class _TextField:
    """A field with text in it: text itself, or a message that holds some."""

    name: str
    repeated: bool
    prose: bool
    message: bool
    map_values: bool


class TextCheck:
    """Looks at every text of a request, found through its descriptor, so none can be forgotten.

    PostgreSQL cannot store NUL, and terminals and logs end or garble lines at control characters.
    Characters of no width make a second world, person or server with the name of a first.
    """

    def __init__(self) -> None:
        self._fields: dict[type[Message], tuple[_TextField, ...]] = {}

    def check(self, call: Call, request: Any) -> None:
        """Returns when all texts are fit.

        Raises:
            InvalidRequest: naming every field that is not.
        """
        # Nearly every request is plainly fit; only of others the fields are named.
        if not isinstance(request, Message) or self._plainly_fit(request):
            return
        violations = [
            FieldViolation(path, problem)
            for path, text, prose in self._texts(request, "")
            if (problem := problem_of_prose(text) if prose else problem_of_name(text))
        ]
        if violations:
            first = violations[0]
            raise InvalidRequest(
                f"{first.field}: {first.description}"
                + (f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""),
                field_violations=violations[:_MAXIMUM_VIOLATIONS],
            )

    def _plainly_fit(self, message: Message) -> bool:
        for field in self._fields_of(type(message)):
            value: Any = getattr(message, field.name)
            if field.map_values:
                texts = (*value.keys(), *value.values())
                fit = all(map(str.isprintable, texts))
            elif field.message:
                parts = (
                    value if field.repeated else (value,) if message.HasField(field.name) else ()
                )
                fit = all(map(self._plainly_fit, parts))
            elif field.repeated:
                fit = all(map(str.isprintable, value))
            else:
                fit = _plain_prose(value) if field.prose else value.isprintable()
            if not fit:
                return False
        return True

    def _texts(self, message: Message, prefix: str) -> Iterator[tuple[str, str, bool]]:
        for field in self._fields_of(type(message)):
            path = prefix + field.name
            if field.map_values:
                for key, value in getattr(message, field.name).items():
                    yield f"{path}.key", key, False
                    yield f"{path}[{key}]", value, field.prose
            elif field.repeated:
                for index, each in enumerate(getattr(message, field.name)):
                    if field.message:
                        yield from self._texts(each, f"{path}[{index}].")
                    else:
                        yield f"{path}[{index}]", each, field.prose
            elif field.message:
                if message.HasField(field.name):
                    yield from self._texts(getattr(message, field.name), f"{path}.")
            elif text := getattr(message, field.name):
                yield path, text, field.prose

    def _fields_of(self, kind: type[Message]) -> tuple[_TextField, ...]:
        found = self._fields.get(kind)
        if found is None:
            found = self._fields[kind] = tuple(
                _TextField(
                    name=field.name,
                    repeated=field.is_repeated,
                    prose=_is_map(field) or field.name in PROSE_FIELDS,
                    message=field.type == FieldDescriptor.TYPE_MESSAGE,
                    map_values=_is_map(field),
                )
                for field in kind.DESCRIPTOR.fields
                if _holds_text(field, frozenset())
            )
        return found


def _plain_prose(text: str) -> bool:
    return not text or ("\0" not in text and text[0].isprintable() and text[0] != " ")


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _holds_text(field: Any, within: frozenset[Descriptor]) -> bool:
    if field.type == FieldDescriptor.TYPE_STRING:
        return True
    kind = field.message_type
    if kind is None or kind in within:
        return False
    if _is_map(field):
        # Of maps the suite has text to text alone; another kind would want its own walk here.
        return all(each.type == FieldDescriptor.TYPE_STRING for each in kind.fields)
    return any(_holds_text(each, within | {kind}) for each in kind.fields)
