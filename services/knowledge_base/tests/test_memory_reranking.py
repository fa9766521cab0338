"""The first memories are put in order by all that speaks for them, and none is lost."""

import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.domain.memory import RecalledEvent, RecallParameters, RecallQuery, StoryEvent
from knowledge_base.domain.memory_reranking import recall_candidates, rerank_memories
from knowledge_base.domain.past_forms import with_past_forms
from knowledge_base.domain.told_times import asks_for_a_time, tells_a_time

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RELEVANCE_ALONE = RecallParameters(relevance_weight=1, recency_weight=0, importance_weight=0)
SHARES = st.floats(0, 1)


def memory(relevance: float, cosine: float, text: str = "A bell rang.") -> RecalledEvent:
    event = StoryEvent(1, uuid.UUID(int=1), text, "event", (), NOW, NOW, 0.5)
    return RecalledEvent(event, relevance, relevance, 0.0, cosine)


def test_more_candidates_than_memories_are_asked_for_and_no_neighbours() -> None:
    query = RecallQuery("a bell", limit=10, neighbours=2)
    candidates = recall_candidates(query)
    assert (candidates.limit, candidates.sure, candidates.neighbours) == (20, 10, 0)
    assert candidates.text == query.text


def test_the_rerankers_score_takes_over_from_the_cosine() -> None:
    found = [memory(0.5, 0.6, "near"), memory(0.45, 0.4, "met")]
    query = RecallQuery("a bell")
    again = rerank_memories(found, [0.2, 0.7], query, RELEVANCE_ALONE)
    assert [item.event.text for item in again] == ["met", "near"]
    assert [item.reranker_score for item in again] == [0.7, 0.2]
    assert again[0].relevance == again[0].score == pytest.approx(0.45 + 0.3 * (0.7 - 0.4))
    assert again[1].relevance == again[1].score == pytest.approx(0.5 + 0.3 * (0.2 - 0.6))


def test_an_event_of_which_nothing_is_kept_meets_what_its_cosine_says() -> None:
    found = [memory(0.5, 0.6), memory(0.5, 0.6)]
    known, unknown = 0.88 * 0.6 - 0.1, None
    again = rerank_memories(found, [known, unknown], RecallQuery("a bell"), RELEVANCE_ALONE)
    assert again[0].score == pytest.approx(again[1].score)
    assert [item.reranker_score for item in again] == [known, None]


@given(st.lists(st.tuples(SHARES, st.floats(-1, 1)), max_size=30), st.integers(1, 20))
def test_without_a_reranker_the_order_stays(pairs: list[tuple[float, float]], limit: int) -> None:
    found = sorted((memory(*pair) for pair in pairs), key=lambda item: -item.score)
    query = RecallQuery("a bell", limit=limit)
    assert rerank_memories(found, [], query, RecallParameters()) == found[:limit]


@given(
    st.lists(st.tuples(SHARES, st.floats(-1, 1), st.none() | SHARES), max_size=30),
    st.integers(1, 20),
)
def test_the_best_are_given_each_once_with_scores_within_bounds(
    scored: list[tuple[float, float, float | None]], limit: int
) -> None:
    found = [
        memory(relevance, cosine, f"{number} yesterday")
        for number, (relevance, cosine, _) in enumerate(scored)
    ]
    query = RecallQuery("when was it?", limit=limit)
    again = rerank_memories(found, [met for *_, met in scored], query, RELEVANCE_ALONE)
    assert len(again) == min(limit, len(found))
    assert len({item.event.text for item in again}) == len(again)
    assert all(0 <= item.relevance <= 1 for item in again)
    assert [item.score for item in again] == sorted((item.score for item in again), reverse=True)


def test_who_asks_for_a_time_gets_first_what_tells_one() -> None:
    found = [memory(0.5, 0.5, "She left."), memory(0.48, 0.5, "She left last week.")]
    asked = rerank_memories(found, [], RecallQuery("When did she leave?"), RELEVANCE_ALONE)
    assert asked[0].event.text == "She left last week."
    other = rerank_memories(found, [], RecallQuery("Why did she leave?"), RELEVANCE_ALONE)
    assert other[0].event.text == "She left."


@pytest.mark.parametrize(
    "question",
    [
        "When did Mira leave?",
        "  since when is the gate shut",
        "What month was the wedding?",
        "In which year did the bell crack?",
        "How long ago was the flood?",
        "At what time of day do the wardens meet?",
    ],
)
def test_questions_for_a_time_are_known(question: str) -> None:
    assert asks_for_a_time(question)


@pytest.mark.parametrize(
    "question",
    ["Who rang the bell when the tide turned?", "What did Mira say?", "Whenever", ""],
)
def test_other_questions_ask_for_no_time(question: str) -> None:
    assert not asks_for_a_time(question)


@pytest.mark.parametrize(
    "text",
    [
        "I saw him yesterday.",
        "It was two weeks ago.",
        "A few days later the gate was shut.",
        "Next summer we sail.",
        "We meet on Friday.",
        "She was born in May, of all months.",
        "Since 1987 nobody has been there.",
        "Years ago there was a ferry.",
    ],
)
def test_texts_that_tell_a_time_are_known(text: str) -> None:
    assert tells_a_time(text)


@pytest.mark.parametrize(
    "text", ["You may march on.", "The last of them left.", "Room 2100b", "Daylight", ""]
)
def test_other_texts_tell_no_time(text: str) -> None:
    assert not tells_a_time(text)


def test_a_question_with_did_is_looked_for_by_past_forms_too() -> None:
    assert with_past_forms("Why did she leave, and where did she go?") == (
        "Why did she leave, and where did she go? left went"
    )


@pytest.mark.parametrize("text", ["Where does she go?", "She did well.", "", "Go!"])
def test_a_text_without_did_and_an_irregular_verb_stays(text: str) -> None:
    assert with_past_forms(text) == text
