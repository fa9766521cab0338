"""Documents declare concepts in their front matter and headings; passages are linked to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.domain.chunking import ChunkedDocument, chunk_document
from knowledge_base.domain.declared_concepts import DeclaredConcept
from knowledge_base.domain.errors import InvalidDocument
from knowledge_base.domain.front_matter import parse_front_matter

FRONT = """---
title: People
concepts:
  - Black Ledger   # only named
  - name: Sabeth Onn
    kind: character
    description: >
      Prime Reckoner
      since TY 457.
    aliases: [the Prime Reckoner, "Onn, Sabeth"]
    seat: Middlestile
---
# People

The Prime
Reckoner keeps no key. The Black Ledger is gone.

## The Ledger House {concept=faction}

It records lendings.

### Order

Reckoners swear.

## Else

Sabeth Onnsen is somebody else.
"""


def document(text: str) -> ChunkedDocument:
    return chunk_document("people.md", text.encode())


def concepts(text: str) -> dict[str, DeclaredConcept]:
    return {concept.name: concept for concept in document(text).concepts}


def test_both_conventions_declare_concepts_and_link_their_passages() -> None:
    found = concepts(FRONT)
    assert list(found) == ["Black Ledger", "Sabeth Onn", "The Ledger House"]
    sabeth = found["Sabeth Onn"]
    assert (sabeth.kind, sabeth.description) == ("character", "Prime Reckoner since TY 457.")
    assert sabeth.attributes == {
        "seat": "Middlestile",
        "aliases": "the Prime Reckoner, Onn, Sabeth",
    }
    texts = [chunk.text for chunk in document(FRONT).chunks]
    assert [texts[i][:9] for i in sabeth.passages] == ["The Prime"]
    house = found["The Ledger House"]
    assert house.kind == "faction"
    assert house.excerpt == "It records lendings."
    assert [texts[i] for i in house.passages] == ["It records lendings.", "Reckoners swear."]
    assert found["Black Ledger"].is_reference
    assert not house.is_reference


def test_the_declaration_is_no_part_of_the_heading() -> None:
    assert document(FRONT).chunks[1].heading_path == ("People", "The Ledger House")


def test_names_are_found_as_whole_words_and_may_begin_a_sentence() -> None:
    text = "---\nconcepts: [stile, Mauk]\n---\nStiles.\n\n# A\nStile.\n\n# B\nmauk\n\n# C\nMauk's"
    found = concepts(text)
    assert found["stile"].passages == (1,)
    assert found["Mauk"].passages == (3,)


def test_a_name_typed_in_decomposed_letters_is_the_same_name() -> None:
    found = concepts("---\nconcepts: [Cafe\u0301]\n---\nThe Caf\u00e9 is shut.")
    assert list(found) == ["Caf\u00e9"]
    assert found["Caf\u00e9"].passages == (0,)


@pytest.mark.parametrize(
    "stated",
    [
        "concepts:\n  name: x",
        "concepts:\n  - kind: place",
        "concepts: [" + "n" * 201 + "]",
        "concepts:\n  - name: x\n    kind: " + "k" * 65,
        "concepts:\n  - name: x\n    kind: [a]",
        "concepts: [" + ", ".join(f"c{i}" for i in range(201)) + "]",
        'concepts: ["a\x07b"]',
    ],
)
def test_a_declaration_that_cannot_be_recorded_is_refused(stated: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        document(f"---\n{stated}\n---\ntext")
    assert caught.value.metadata["path"] == "people.md"


def test_front_matter_keeps_scalars_as_they_were_written() -> None:
    lines = [
        "country: no",
        "version: 1.10",
        "when: 2024-05-01",
        "quoted: 'a # b'  # comment",
        'listed: ["a, b", c]',
        "empty:",
        "nested:",
        "  deeper: x",
        "  items:",
        "    - 1",
        "    - 2",
        "text: |",
        "  one",
        "",
        "  two",
        "url: https://example.org/x",
    ]
    assert parse_front_matter(lines) == {
        "country": "no",
        "version": "1.10",
        "when": "2024-05-01",
        "quoted": "a # b",
        "listed": ["a, b", "c"],
        "empty": "",
        "nested": {"deeper": "x", "items": ["1", "2"]},
        "text": "one\n\ntwo",
        "url": "https://example.org/x",
    }


def test_tags_and_references_of_yaml_are_only_text() -> None:
    lines = ["run: !!python/object/apply:os.system ['x']", "a: &b [1]", "c: *b", "d: ${HOME}"]
    assert parse_front_matter(lines) == {
        "run": "!!python/object/apply:os.system ['x']",
        "a": "&b [1]",
        "c": "*b",
        "d": "${HOME}",
    }


LINE = st.text(st.sampled_from("ab:-[]{}#'\"|>, \t&*!\u05d0\U0001f514"), max_size=12)


@given(st.lists(LINE, max_size=30))
def test_any_front_matter_is_read_to_its_end(lines: list[str]) -> None:
    parse_front_matter(lines)
    chunk_document("a.md", "\n".join(["---", *lines, "---", "text"]).encode())
