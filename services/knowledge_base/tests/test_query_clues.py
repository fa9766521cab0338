"""What a query names is found without a list of names, and nothing else is taken out of it."""

import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.domain.answerability import answer_probability
from knowledge_base.domain.memory import RecalledEvent, StoryEvent, with_neighbours
from knowledge_base.domain.query_clues import (
    name_candidates,
    named_participants,
    named_times,
    without_names,
)


def test_words_with_a_capital_may_be_names_but_question_words_may_not() -> None:
    assert name_candidates("When did Mira meet Sabeth Onn?") == ("Mira", "Sabeth", "Onn")


def test_without_any_capital_every_word_may_be_a_name() -> None:
    assert name_candidates("where does mira live") == ("mira", "live")


def test_a_possessive_is_the_name() -> None:
    assert name_candidates("What is Mira's plan?") == ("Mira",)


def test_the_fuller_match_is_meant_not_a_namesake() -> None:
    names = ["Dauro Onn", "Sabeth Onn"]
    assert named_participants("What did Sabeth Onn see?", names) == ("Sabeth Onn",)
    assert named_participants("What do the Onn own?", names) == ("Dauro Onn", "Sabeth Onn")
    assert named_participants("What did Imbry see?", names) == ()


def test_a_name_is_taken_out_with_its_possessive() -> None:
    assert without_names("What is Mira's plan for Tesh?", ["Mira"]) == "What is plan for Tesh?"


def test_a_query_of_nothing_but_a_name_stays() -> None:
    assert without_names("Who is Mira?", ["Mira"]) == "Who is Mira?"


def test_a_day_spans_what_is_told_of_it_later() -> None:
    expected = (datetime(2023, 5, 1, tzinfo=UTC), datetime(2023, 5, 11, tzinfo=UTC))
    for text in ("on May 3, 2023", "on 3 May 2023", "the 3rd of May, 2023", "on 2023-05-03"):
        assert named_times(f"Whom did she meet {text}?").spans == (expected,)


def test_a_month_with_a_year_is_that_month() -> None:
    (span,) = named_times("What happened in December 2022?").spans
    assert span == (datetime(2022, 12, 1, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC))


def test_a_month_without_a_year_is_any_years() -> None:
    assert named_times("What happened in July?").months == (7,)


def test_may_is_a_verb_unless_it_stands_as_a_month() -> None:
    assert named_times("Who may cross at night?") == named_times("")
    assert named_times("What happened in May?").months == (5,)


def test_days_that_do_not_exist_are_passed_over() -> None:
    assert named_times("on 31 February 2023, on 2023-13-40 or on 0 May 0000").spans == ()


@given(st.text(max_size=200), st.lists(st.text(min_size=1, max_size=20), max_size=4))
def test_any_text_is_read(query: str, names: list[str]) -> None:
    named = named_participants(query, names)
    assert set(named) <= set(names)
    assert without_names(query, named) or not query.strip()
    named_times(query)
    assert len(name_candidates(query)) <= 8


@given(st.lists(st.floats(-1, 1), max_size=12))
def test_an_answers_probability_is_one_and_grows_with_the_best_cosine(cosines: list[float]) -> None:
    probability = answer_probability(cosines)
    assert 0 <= probability < 1
    if cosines:
        assert answer_probability([max(cosines), *cosines]) >= probability
    else:
        assert probability == 0


def event(sequence: int) -> StoryEvent:
    """Returns an event."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return StoryEvent(sequence, uuid.UUID(int=sequence), "x", "event", (), now, now, 0.5)


@pytest.mark.parametrize(("steps", "before", "after"), [(1, [2], [4]), (2, [1, 2], [4])])
def test_neighbours_stand_in_the_order_of_recording(
    steps: int, before: list[int], after: list[int]
) -> None:
    around = [event(number) for number in (4, 2, 1, 3)]
    (recalled,) = with_neighbours([RecalledEvent(event(3), 1.0, 1.0, 0.0)], around, steps)
    assert [item.sequence for item in recalled.before] == before
    assert [item.sequence for item in recalled.after] == after
