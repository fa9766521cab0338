"""A question that asks for several things is read as several."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.domain.question_parts import question_parts


def parts(text: str) -> list[str]:
    return [text[start:end] for start, end in question_parts(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Who is Harl Wenneker and how did he lose his arm?",
            ["Who is Harl Wenneker", "how did he lose his arm?"],
        ),
        (
            "On which days can one cross, what pass is needed and who keeps the gate?",
            ["On which days can one cross", "what pass is needed", "who keeps the gate?"],
        ),
        (
            "How far may a standing change in a day, and does it carry over?",
            ["How far may a standing change in a day", "does it carry over?"],
        ),
        ("Who was the admiral? What did he do?", ["Who was the admiral", "What did he do?"]),
        (
            "A player lends the warmth of an oven. What is noted, and where does it arrive?",
            ["A player lends the warmth of an oven. What is noted", "where does it arrive?"],
        ),
        ("what is the toll; who collects it", ["what is the toll", "who collects it"]),
    ],
)
def test_what_is_asked_for_stands_apart(text: str, expected: list[str]) -> None:
    assert parts(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Who leads the Kite Muster?",
        "When and where did they meet?",
        "What grows in the marsh and is eaten there?",
        "What grows in the marsh, and is eaten there?",
        "What do we know of Mira, who led the revolt?",
        "Mira led the revolt, and when it failed she fled.",
        "the ledger, and who kept it",
        "",
        "?",
    ],
)
def test_what_asks_for_one_thing_or_for_nothing_is_one_part(text: str) -> None:
    assert parts(text) == [text]


@given(
    st.lists(
        st.sampled_from(
            ["Who", "what", " and ", ", ", "? ", "; ", "is it", " the toll of Mauk", " ", "é"]
        )
    ).map("".join)
)
def test_parts_come_in_order_and_only_what_joins_them_is_left_out(text: str) -> None:
    found = question_parts(text)
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    left_out = [text[end:start] for (_, end), (start, _) in pairwise(found)]
    assert all(joint.strip(" ,;?") in ("", "and") for joint in left_out)
    assert all(joint for joint in left_out)
