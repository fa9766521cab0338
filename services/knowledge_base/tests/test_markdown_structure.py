"""Markdown is read as CommonMark says, with the line numbers an editor shows."""

import pytest

from knowledge_base.domain.markdown import Block, BlockKind, parse_markdown


def headings(text: str) -> list[tuple[str, ...]]:
    return [section.heading_path for section in parse_markdown(text).sections]


def blocks(text: str) -> list[Block]:
    return [block for section in parse_markdown(text).sections for block in section.blocks]


def test_headings_nest_by_level_and_close_deeper_ones() -> None:
    text = "# A\na\n## B\nb\n### C\nc\n## D\nd\n# E\ne\n"
    assert headings(text) == [("A",), ("A", "B"), ("A", "B", "C"), ("A", "D"), ("E",)]


def test_a_skipped_level_hangs_below_the_nearest_heading() -> None:
    assert headings("# A\na\n### C\nc\n## B\nb") == [("A",), ("A", "C"), ("A", "B")]


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# Plain", "Plain"),
        ("   # Indented", "Indented"),
        ("# Closed ##", "Closed"),
        ("# C# is kept", "C# is kept"),
        ("#\tTab", "Tab"),
        ("# *Marked* `code`", "Marked code"),
    ],
)
def test_atx_headings(line: str, title: str) -> None:
    assert headings(f"{line}\ntext") == [(title,)]


@pytest.mark.parametrize("line", ["#NoBlank", "####### seven", "    # code", "text # not"])
def test_lines_that_only_look_like_headings(line: str) -> None:
    assert headings(f"{line}\ntext") == [()]


def test_setext_headings() -> None:
    assert headings("Title\n=====\none\n\nSub\n---\ntwo") == [("Title",), ("Title", "Sub")]


def test_a_dashed_line_after_a_blank_is_a_break_not_a_heading() -> None:
    assert headings("text\n\n---\nmore") == [()]
    assert [block.text for block in blocks("text\n\n---\nmore")] == ["text", "more"]


def test_text_before_the_first_heading_has_an_empty_path() -> None:
    assert headings("before\n\n# A\nafter") == [(), ("A",)]


def test_fenced_code_is_one_block_whatever_is_inside() -> None:
    text = "```python\n# not a heading\n\n| a | b |\n```\nafter"
    code, after = blocks(text)
    assert (code.kind, code.start_line, code.end_line) == (BlockKind.CODE, 1, 5)
    assert (after.text, after.start_line) == ("after", 6)


def test_a_fence_closes_only_by_its_own_kind_and_length() -> None:
    text = "~~~~\n```\n~~~\ninside\n~~~~\nafter"
    code, after = blocks(text)
    assert code.end_line == 5
    assert after.text == "after"


def test_a_fence_that_is_never_closed_runs_to_the_end() -> None:
    (code,) = blocks("```\na\n\nb\n\n\n")
    assert (code.start_line, code.end_line) == (1, 4)


def test_tables_are_recognised_by_their_delimiter_row() -> None:
    table, prose = blocks("| a | b |\n|---|:-:|\n| 1 | 2 |\n\nnot | a table\nat all")
    assert (table.kind, table.end_line) == (BlockKind.TABLE, 3)
    assert prose.kind is BlockKind.PROSE


def test_comments_are_left_out() -> None:
    assert [block.text for block in blocks("a\n\n<!-- b\n\nc -->\n\nd")] == ["a", "d"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_count_the_same_with_every_line_ending(newline: str) -> None:
    text = newline.join(["# A", "", "one", "two", "", "three"])
    assert [(block.start_line, block.end_line) for block in blocks(text)] == [(3, 4), (6, 6)]


def test_other_unicode_separators_do_not_end_a_line() -> None:
    (block,) = blocks("one\u2028still one\u0085and still\x0bso")
    assert block.end_line == 1


def test_front_matter_is_read_and_counted_as_lines() -> None:
    text = "---\ntitle: 'The Wall'\ntags: [a, \"b\"]\npeople:\n  - Ann\n  - Bo\n---\n# H\ntext"
    markdown = parse_markdown(text)
    assert markdown.front_matter == {
        "title": "The Wall",
        "tags": ["a", "b"],
        "people": ["Ann", "Bo"],
    }
    assert markdown.sections[0].blocks[0].start_line == 9


def test_front_matter_that_does_not_end_is_text() -> None:
    markdown = parse_markdown("---\ntitle: x\n\ntext")
    assert markdown.front_matter == {}
    assert any("title: x" in block.text for block in markdown.sections[0].blocks)
