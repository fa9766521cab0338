"""Late interaction gives what its definition says, and reranking loses and crowds nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from knowledge_base.domain.late_interaction import (
    COARSE,
    FINE,
    met_share,
    rarity_weights,
    weights_of_parts,
)
from knowledge_base.domain.lore import Citation, RankingParameters, SearchQuery, SearchResult
from knowledge_base.domain.reranking import rerank, reranked_candidates

SIZE = 128


def unit_vectors(seed: int, count: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, SIZE)).astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_codes_give_the_directions_back(seed: int, count: int) -> None:
    vectors = unit_vectors(seed, count)
    codes = FINE.encode(vectors)
    assert len(codes) == count * SIZE
    levels, unit = FINE.levels(codes, SIZE)
    decoded = levels * unit
    assert decoded.shape == vectors.shape
    assert np.all(np.abs(decoded - vectors) <= np.maximum(0.5 / 254, np.abs(vectors) - 0.5) + 1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_codes_of_two_bits_keep_signs_and_nearly_the_directions(seed: int, count: int) -> None:
    vectors = unit_vectors(seed, count)
    codes = COARSE.encode(vectors)
    assert len(codes) == count * SIZE / 4
    assert COARSE.count(codes, SIZE) == count
    levels, unit = COARSE.levels(codes, SIZE)
    decoded = levels * unit
    assert np.linalg.norm(decoded, axis=1) == pytest.approx(np.ones(count), abs=1e-5)
    assert np.all((decoded > 0) == (vectors > 0))
    assert np.all((decoded * vectors).sum(axis=1) > 0.85)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), max_size=8), st.integers(0, 5))
def test_a_share_is_the_weighted_mean_of_the_nearest_tokens(
    seed: int, counts: list[int], asked: int
) -> None:
    query = unit_vectors(seed, asked)
    passages = [unit_vectors(seed + 1 + number, count) for number, count in enumerate(counts)]
    weights = np.random.default_rng(seed).uniform(0.5, 3, asked).astype(np.float32)
    expected = [
        min(
            1.0, max(0.0, (np.average((query @ tokens.T).max(axis=1), weights=weights) - 0.3) / 0.7)
        )
        if asked and len(tokens)
        else 0.0
        for tokens in passages
    ]
    shares = met_share(query, weights, [FINE.encode(tokens) for tokens in passages])
    assert shares == pytest.approx(expected, abs=0.02)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_codes_of_two_bits_give_nearly_the_share_of_fine_ones(seed: int, counts: list[int]) -> None:
    query = unit_vectors(seed, 6)
    weights = rarity_weights(np.array([4, 90, 700, 20_000, 12, 5_000]))
    passages = [
        np.concatenate([unit_vectors(seed + 1 + number, count), query[:number]])
        for number, count in enumerate(counts)
    ]
    fine = met_share(query, weights, [FINE.encode(tokens) for tokens in passages])
    coarse = met_share(query, weights, [COARSE.encode(tokens) for tokens in passages], COARSE)
    assert coarse == pytest.approx(fine, abs=0.1)


def test_a_passage_with_the_querys_own_tokens_meets_it_in_full() -> None:
    query = unit_vectors(1, 5)
    weights = rarity_weights(np.array([1, 5, 900, 20_000, 3]))
    passage = FINE.encode(np.concatenate([unit_vectors(2, 9), query]))
    (share,) = met_share(query, weights, [passage])
    assert share == pytest.approx(1.0, abs=0.01)


def test_a_rare_token_met_counts_more_than_a_frequent_one() -> None:
    query = unit_vectors(1, 2)
    rare, frequent = met_share(
        query,
        rarity_weights(np.array([12_000, 1])),
        [FINE.encode(query[:1]), FINE.encode(query[1:])],
    )
    assert rare > frequent + 0.2


def test_of_two_questions_a_passage_needs_to_meet_one() -> None:
    query = unit_vectors(1, 6)
    weights = np.ones(6, dtype=np.float32)
    starts = np.array([0, 4, 9, 14, 20, 25])
    halves = [FINE.encode(query[:3]), FINE.encode(query[3:]), FINE.encode(query[1:5])]
    as_one = met_share(query, weights, halves)
    in_parts = met_share(query, weights_of_parts(weights, starts, [(0, 13), (14, 30)]), halves)
    assert max(as_one) < 0.6
    assert in_parts[0] > 0.85
    assert in_parts[1] > 0.85
    assert in_parts[2] < 0.7


def test_a_part_beyond_what_is_read_is_left_out() -> None:
    weights = np.array([1, 2], dtype=np.float32)
    rows = weights_of_parts(weights, np.array([0, 5]), [(0, 9), (10, 20)])
    assert rows.tolist() == [[1, 2]]


@given(st.lists(st.integers(1, 30_522), min_size=2, max_size=9))
def test_weights_rise_with_rarity_and_none_is_nothing(ranks: list[int]) -> None:
    weights = rarity_weights(np.array(sorted(ranks)))
    assert np.all(weights > 1)
    assert np.all(np.diff(weights) >= 0)


def result(number: int, section: int, score: float) -> SearchResult:
    place = Citation("lore", "a.md", ("A", f"section {section}"), number, number)
    return SearchResult(
        f"passage {number}", place, score, 2 * score - 1, None, keyword_share=1 - score
    )


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1)), max_size=40),
    st.integers(1, 20),
    st.integers(1, 3),
)
def test_reranking_keeps_the_best_and_lets_no_section_crowd_out_the_others(
    passages: list[tuple[int, float, float]], limit: int, per_section: int
) -> None:
    results = [result(number, section, of) for number, (section, of, _) in enumerate(passages)]
    scores = [score for _, _, score in passages]
    query = SearchQuery("q", limit=limit, per_section=per_section)
    weights = RankingParameters(
        reranker_weight=0.5, reranked_vector_weight=0.2, reranked_keyword_exponent=2
    )
    found = rerank(results, scores, query, weights)
    assert len(found) == min(limit, len(results))
    assert len({item.text for item in found}) == len(found)
    for item in found:
        number = int(item.text.removeprefix("passage "))
        assert item.reranker_score == scores[number]
        together = (
            0.5 * scores[number]
            + 0.2 * max(0.0, results[number].vector_score or 0.0)
            + 0.3 * results[number].keyword_share ** 2
        )
        assert item.score == pytest.approx(together**0.85)
    sections: Counter[tuple[str, ...]] = Counter()
    crowding = []
    for item in found:
        sections[item.citation.heading_path] += 1
        crowding.append(sections[item.citation.heading_path] > per_section)
    assert crowding == sorted(crowding)
    for part in (False, True):
        of_part = [
            item.score for item, crowds in zip(found, crowding, strict=True) if crowds is part
        ]
        assert of_part == sorted(of_part, reverse=True)


def test_more_passages_come_into_question_than_are_asked_for() -> None:
    query = SearchQuery("q", limit=10, per_section=2, neighbours=1)
    candidates = reranked_candidates(query)
    assert (candidates.limit, candidates.per_section, candidates.neighbours) == (50, 50, 1)
    assert reranked_candidates(SearchQuery("q", limit=80)).limit == 80
