"""Reads which concepts a document declares, and which of its passages speak of them.

Two conventions declare a concept. In the front matter, an item of the list `concepts` is a name, or
a mapping with `name` and, if wanted, `kind`, `description`, `aliases` and further facts:

    concepts:
      - The Black Ledger
      - name: Sabeth Onn
        kind: character
        description: Prime Reckoner since TY 457.
        aliases: [the Prime Reckoner]

A heading declares one by its end, `## The Ledger House {concept=faction}`; the braces are no part
of the heading's text.

A passage speaks of a concept when it stands below the concept's heading, or names the concept or an
alias as whole words. Case counts, but a name in lower case may begin a sentence.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from knowledge_base.domain.errors import InvalidDocument
from knowledge_base.domain.front_matter import FieldValue

__all__ = ["DEFAULT_KIND", "DeclaredConcept", "PassageText", "declared_concepts"]

DEFAULT_KIND = "concept"

# As PutConcept takes them.
_LONGEST_NAME = 200
_LONGEST_KIND = 64
_LONGEST_DESCRIPTION = 20_000
_MOST_ATTRIBUTES = 64
# Each is looked for in each passage of its document.
_MOST_CONCEPTS = 200
_MOST_ALIASES = 16
# Of a description that is taken from the text.
_EXCERPT_CHARACTERS = 500
_OWN_FIELDS = frozenset({"name", "kind", "description", "aliases"})


@dataclass(frozen=True, slots=True)
class PassageText:
    """What of a passage tells which concepts it is about."""

    heading_path: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class DeclaredConcept:
    """A concept with the passages, by their index, that speak of it.

    A concept that only has a name is a reference: it is recorded when nobody recorded it before.
    `excerpt` is the first of the text on it; it describes a concept that has no description.
    """

    name: str
    kind: str = DEFAULT_KIND
    description: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    excerpt: str = ""
    passages: tuple[int, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether the document says nothing but the name."""
        return self.kind == DEFAULT_KIND and not self.description and not self.attributes


@dataclass(slots=True)
class _Declared:
    """What is gathered on a name; the first that says something is kept."""

    name: str
    kind: str = ""
    description: str = ""
    aliases: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    headings: list[tuple[str, ...]] = field(default_factory=list)


def declared_concepts(
    path: str,
    stated: FieldValue | None,
    headings: Sequence[tuple[tuple[str, ...], str]],
    passages: Sequence[PassageText],
) -> tuple[DeclaredConcept, ...]:
    """Returns the concepts a document declares, by name.

    Args:
        path: the document's, for what is refused.
        stated: the front matter's `concepts`, None when it has none.
        headings: the heading paths that declare a concept by their last heading, with its kind.
        passages: the document's passages in order.

    Raises InvalidDocument when a declaration cannot be recorded.
    """
    found: dict[str, _Declared] = {}
    for number, item in enumerate(_items(path, stated), 1):
        declared = _stated(path, number, item)
        found.setdefault(declared.name, declared)
    for heading_path, kind in headings:
        name = _name(path, heading_path[-1])
        declared = found.setdefault(name, _Declared(name))
        declared.kind = declared.kind or _limited(path, name, "kind", kind, _LONGEST_KIND)
        declared.headings.append(heading_path)
    if len(found) > _MOST_CONCEPTS:
        _refuse(path, f"{len(found)} concepts; at most {_MOST_CONCEPTS} are taken")
    texts = [unicodedata.normalize("NFC", "\n".join([*p.heading_path, p.text])) for p in passages]
    return tuple(_linked(found[name], passages, texts) for name in sorted(found))


def _linked(
    declared: _Declared, passages: Sequence[PassageText], texts: Sequence[str]
) -> DeclaredConcept:
    pattern = re.compile("|".join(_mention(name) for name in [declared.name, *declared.aliases]))
    below = [
        index
        for index, passage in enumerate(passages)
        if any(passage.heading_path[: len(own)] == own for own in declared.headings)
    ]
    linked = sorted({*below, *(i for i, text in enumerate(texts) if pattern.search(text))})
    attributes = dict(declared.attributes)
    if declared.aliases:
        attributes["aliases"] = ", ".join(declared.aliases)
    return DeclaredConcept(
        declared.name,
        declared.kind or DEFAULT_KIND,
        declared.description,
        attributes,
        _excerpt(passages[(below or linked)[0]].text) if linked else "",
        tuple(linked),
    )


def _items(path: str, stated: FieldValue | None) -> Iterator[FieldValue]:
    if stated is None or stated == "":
        return
    if isinstance(stated, dict):
        _refuse(path, "`concepts` that are no list")
    yield from [stated] if isinstance(stated, str) else stated


def _stated(path: str, number: int, item: FieldValue) -> _Declared:
    if isinstance(item, str):
        return _Declared(_name(path, item))
    if isinstance(item, list) or not isinstance(item.get("name"), str):
        _refuse(path, f"a concept without a `name`, the {number}. of the front matter")
    name = _name(path, str(item["name"]))
    aliases = item.get("aliases", [])
    named = [aliases] if isinstance(aliases, str) else aliases
    if not isinstance(named, list) or len(named) > _MOST_ALIASES:
        _refuse(path, f"the concept {name!r} with `aliases` that are no list of {_MOST_ALIASES}")
    attributes = {
        key: value
        for key, value in item.items()
        if key not in _OWN_FIELDS and isinstance(value, str) and value
    }
    if len(attributes) >= _MOST_ATTRIBUTES:
        _refuse(path, f"the concept {name!r} with {len(attributes)} facts")
    return _Declared(
        name,
        _limited(path, name, "kind", item.get("kind", ""), _LONGEST_KIND),
        _limited(path, name, "description", item.get("description", ""), _LONGEST_DESCRIPTION),
        [_name(path, alias) for alias in named if isinstance(alias, str) and alias.strip()],
        attributes,
    )


def _name(path: str, text: str) -> str:
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        _refuse(path, f"a concept whose name is empty, unprintable or over {_LONGEST_NAME} long")
    return name


def _limited(path: str, name: str, field: str, value: FieldValue, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        _refuse(path, f"the concept {name!r} with a {field} that is no text of {longest} or less")
    return value


def _mention(name: str) -> str:
    words = [re.escape(word) for word in name.split()]
    first = name[0]
    if first.islower() and len(first.upper()) == 1:
        words[0] = f"[{first}{first.upper()}]{words[0][1:]}"
    # A name may be broken over two lines.
    return r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)"


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    if len(flat) <= _EXCERPT_CHARACTERS:
        return flat
    return flat[:_EXCERPT_CHARACTERS].rsplit(" ", 1)[0] + " \u2026"


def _refuse(path: str, problem: str) -> NoReturn:
    raise InvalidDocument(
        f"The document {path!r} declares {problem}.", metadata={"path": path, "field": "concepts"}
    )
