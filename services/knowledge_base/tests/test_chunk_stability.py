"""An edit changes the chunk it is in, wherever it is made; the others stay as they are."""

import random
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.domain.chunking import chunk_document

LORE = sorted((Path(__file__).parents[1] / "lore").glob("*.md"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in LORE}

# Blocks between which a paragraph counts as short or is too long to be one chunk.
SHORT, LONG = 200, 1100


def hashes(text: str) -> set[bytes]:
    return {chunk.search_text_sha256 for chunk in chunk_document("a.md", text.encode()).chunks}


def paragraphs(text: str) -> list[str]:
    return text.split("\n\n")


def is_prose(block: str) -> bool:
    return not block.startswith(("#", "|", "```", "---")) and "\n|" not in block


EDITABLE = [
    (name, index)
    for name, text in TEXTS.items()
    for index, block in enumerate(paragraphs(text))
    if is_prose(block) and SHORT < len(block) < LONG - SHORT
]


@given(st.sampled_from(EDITABLE), st.data())
def test_an_edited_paragraph_of_the_lore_is_one_new_chunk(
    place: tuple[str, int], data: st.DataObject
) -> None:
    name, index = place
    blocks = paragraphs(TEXTS[name])
    words = blocks[index].split(" ")
    at = data.draw(st.integers(0, len(words) - 1))
    words[at : at + 1] = data.draw(
        st.sampled_from(
            [
                ["lantern"],
                [words[at], "and", "nobody", "saw", "it,"],
                ["\U0001f514\u0301", "\u05d0"],
            ]
        )
    )
    edited = [*blocks[:index], " ".join(words), *blocks[index + 1 :]]
    # An edit that makes the paragraph a short one may join it to its neighbour.
    if len(edited[index]) < SHORT or edited == blocks:
        return
    assert len(hashes("\n\n".join(edited)) - hashes(TEXTS[name])) == 1


def units(count: int) -> list[str]:
    rng = random.Random(7)  # noqa: S311  # the same units every time, no secret
    openings = ["The warden", "A bell", "When the tide", "Some say the ferry", "No clerk", "Each"]
    return [
        f"{rng.choice(openings)} of parish {number} went home by lamp {rng.randrange(900)}."
        for number in range(count)
    ]


def changes(joiner: str, *, inserts: bool) -> Counter[int]:
    """How many chunks are new after an edit at each place of a run of 300 units, how often."""
    stated = units(300)
    before = hashes("# T\n\n" + joiner.join(stated))
    counted: Counter[int] = Counter()
    for place in range(0, 300, 10):
        edited = list(stated)
        if inserts:
            edited.insert(place, "This sentence was not there before.")
        else:
            edited[place] = edited[place][:-1] + " and slept."
        counted[len(hashes("# T\n\n" + joiner.join(edited)) - before)] += 1
    return counted


def test_an_edit_in_a_long_run_does_not_move_the_cuts_behind_it() -> None:
    for joiner in (" ", "\n\n"):  # one long paragraph; many short ones
        for inserts in (False, True):
            counted = changes(joiner, inserts=inserts)
            assert max(counted) <= 3, (joiner, inserts, counted)
            assert counted[1] >= 18, (joiner, inserts, counted)


def test_runs_fill_the_models_window_without_passing_it() -> None:
    for joiner in (" ", "\n\n"):
        text = "# T\n\n" + joiner.join(units(300))
        sizes = [len(chunk.text) for chunk in chunk_document("a.md", text.encode()).chunks]
        assert max(sizes) <= LONG
        assert min(sizes) >= SHORT
        assert sum(sizes) / len(sizes) > 450


def test_a_run_of_equal_lines_is_cut_as_well() -> None:
    text = "\n\n".join(["again"] * 4_000)
    chunks = chunk_document("a.md", text.encode()).chunks
    assert all(len(chunk.text) <= 2 * LONG for chunk in chunks)
    assert sum(chunk.text.count("again") for chunk in chunks) == 4_000


def test_a_table_and_code_stay_whole_beyond_the_models_window() -> None:
    table = "| place | under |\n|---|---|\n" + "\n".join(
        f"| The place of number {i} | somewhere far below {i} |" for i in range(120)
    )
    code = "```\n" + "\n".join(f"line {i} of a long listing" for i in range(200)) + "\n```"
    chunks = chunk_document("a.md", f"# T\n\n{table}\n\n## Code\n\n{code}\n".encode()).chunks
    assert [chunk.text for chunk in chunks] == [table, code]


def test_what_leads_to_a_table_is_found_with_it() -> None:
    text = "# T\n\nThe toll by day:\n\n| day | toll |\n|---|---|\n" + "| Monday | one hoop |\n" * 12
    (chunk,) = chunk_document("a.md", text.encode()).chunks
    assert chunk.text.startswith("The toll by day:\n\n| day |")
    assert (chunk.start_line, chunk.end_line) == (3, 18)


def test_a_character_of_several_code_points_is_not_cut_apart() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd"
    text = "# T\n\n" + family * 400
    for chunk in chunk_document("a.md", text.encode()).chunks:
        assert chunk.text.replace(family, "") == ""


def test_line_endings_and_the_mark_of_the_encoding_change_no_chunk() -> None:
    for text in TEXTS.values():
        windows = "\ufeff" + text.replace("\n", "\r\n")
        assert hashes(windows) == hashes(text)
