"""Chunks cite exactly, keep what belongs together, and change only where the text does."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.domain.chunking import Chunk, chunk_document
from knowledge_base.domain.errors import InvalidDocument

SENTENCE = "The warden lit the ninth lamp before the tide came in again. "


def chunks(text: str) -> tuple[Chunk, ...]:
    return chunk_document("a/document.md", text.encode()).chunks


def test_each_section_has_its_own_chunk_with_path_and_lines() -> None:
    found = chunks("# Title\n\nIntro.\n\n## Part\n\nOne.\n\nTwo.\n")
    assert [(c.heading_path, c.start_line, c.end_line, c.text) for c in found] == [
        (("Title",), 3, 3, "Intro."),
        (("Title", "Part"), 7, 9, "One.\n\nTwo."),
    ]


def test_search_text_carries_the_headings() -> None:
    assert chunks("# Title\n## Part\nText")[0].search_text == "Title > Part\n\nText"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\ntitle: Stated\n---\n# Heading\ntext", "Stated"),
        ("# Heading\ntext", "Heading"),
        ("only text", "document.md"),
        ("", "document.md"),
    ],
)
def test_title(text: str, title: str) -> None:
    assert chunk_document("a/document.md", text.encode()).title == title


def test_a_long_section_is_cut_between_paragraphs() -> None:
    text = "# T\n\n" + "\n\n".join(f"Paragraph {i}. " + SENTENCE * 5 for i in range(8))
    found = chunks(text)
    assert len(found) > 1
    assert all(c.text.startswith("Paragraph") for c in found)
    assert all(len(c.text) <= 1100 for c in found)


def test_a_long_paragraph_is_cut_at_sentence_ends_with_its_lines() -> None:
    lines = [(SENTENCE * 2).strip() for _ in range(30)]
    found = chunks("# T\n\n" + "\n".join(lines))
    assert len(found) > 2
    assert all(c.text.endswith("again.") for c in found)
    assert found[0].start_line == 3
    assert found[-1].end_line == 32
    for chunk in found:
        cited = "\n".join(("# T\n\n" + "\n".join(lines)).split("\n")[chunk.start_line - 1 :])
        assert chunk.text.split("\n")[0] in cited


def test_a_table_stays_whole_up_to_a_readable_size() -> None:
    table = "| place | under |\n|---|---|\n" + "\n".join(f"| Place {i} | {i} |" for i in range(90))
    found = chunks(f"# T\n\n{table}\n")
    assert [c.text for c in found] == [table]


def test_a_huge_table_is_cut_between_rows_and_repeats_its_header() -> None:
    header = "| place | under |\n|---|---|"
    rows = [f"| Place number {i} | somewhere {i} |" for i in range(300)]
    found = chunks("# T\n\n" + "\n".join([header, *rows]))
    assert len(found) > 1
    assert all(c.text.startswith(header) for c in found)
    kept = [line for c in found for line in c.text.split("\n") if "number" in line]
    assert kept == rows
    assert found[1].start_line > found[0].end_line


def test_fenced_code_is_not_cut_inside_a_line() -> None:
    code = "```\n" + "\n".join(f"step {i}: {'x' * 60}" for i in range(100)) + "\n```"
    found = chunks(f"# T\n\n{code}")
    lines = code.split("\n")
    assert all(line in lines for c in found for line in c.text.split("\n"))


def test_editing_one_paragraph_changes_one_chunk() -> None:
    sections = [f"## Part {i}\n\n{SENTENCE * 4}\n\n{SENTENCE * 3}\n" for i in range(10)]
    before = chunks("# T\n\n" + "\n".join(sections))
    sections[4] = sections[4].replace("ninth", "eighth", 1)
    after = chunks("# T\n\n" + "\n".join(sections))
    changed = {c.search_text_sha256 for c in after} - {c.search_text_sha256 for c in before}
    assert len(changed) == 1


def test_moving_text_down_changes_lines_but_not_hashes() -> None:
    text = "# T\n\n## A\n\nfirst\n\n## B\n\nsecond"
    before, after = chunks(text), chunks(text.replace("# T\n", "# T\n\n\n\n"))
    assert [c.search_text_sha256 for c in before] == [c.search_text_sha256 for c in after]
    assert after[0].start_line == before[0].start_line + 3


def test_nul_is_refused_with_its_position() -> None:
    with pytest.raises(InvalidDocument) as caught:
        chunk_document("a.md", b"# T\n\nab\0c")
    assert caught.value.metadata == {"path": "a.md", "byte": "7", "line": "3", "column": "3"}


def test_a_refused_position_counts_characters_and_not_the_mark_of_the_encoding() -> None:
    with pytest.raises(InvalidDocument) as caught:
        chunk_document("a.md", "\ufeff\u00e9\U0001f514\0".encode())
    assert caught.value.metadata == {"path": "a.md", "byte": "9", "line": "1", "column": "3"}


def test_what_is_not_utf8_is_refused_with_its_position() -> None:
    with pytest.raises(InvalidDocument) as caught:
        chunk_document("a.md", b"# T\n\ncaf\xe9")
    assert caught.value.metadata["byte"] == "8"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4000))
def test_any_unicode_gives_chunks_within_the_document(text: str) -> None:
    lines = re.split(r"\r\n|\r|\n", text)
    previous_end = 0
    for chunk in chunks(text):
        assert 1 <= chunk.start_line <= chunk.end_line <= len(lines)
        assert chunk.start_line >= previous_end
        previous_end = chunk.end_line
        assert chunk.text.strip()


words = st.sampled_from(["wall", "tide", "lamp.", "bell!", "rope", "Mauk?", "salt"])
paragraph = st.lists(words, min_size=1, max_size=400).map(" ".join)


@given(st.lists(paragraph, min_size=1, max_size=6))
def test_no_word_of_prose_is_lost_or_doubled(paragraphs: list[str]) -> None:
    found = chunks("# T\n\n" + "\n\n".join(paragraphs))
    assert " ".join(c.text for c in found).split() == " ".join(paragraphs).split()
