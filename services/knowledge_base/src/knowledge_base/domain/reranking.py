"""Puts the best passages of a search in a new order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from knowledge_base.domain.lore import RankingParameters, SearchQuery, SearchResult

__all__ = ["rerank", "reranked_candidates"]

# A passage further down is hardly ever what was asked for: 100 gave the same nDCG@10 as 50, 30 lost
# 0.005 on the project's questions.
_DEPTH = 50
# Brings reranked scores back to the size of relevance, below which the keyword share's exponent
# lets them fall (the median of what is found for the lore's questions to 0.22 from 0.27): a context
# ranks passages and remembered events together, and one least score holds for both.
_SIZE_EXPONENT = 0.85


def reranked_candidates(query: SearchQuery) -> SearchQuery:
    """Returns the search for what may come among the results: more, and of any section."""
    depth = max(_DEPTH, query.limit)
    return replace(query, limit=depth, per_section=depth)


def rerank(
    results: Sequence[SearchResult],
    scores: Sequence[float],
    query: SearchQuery,
    parameters: RankingParameters,
) -> list[SearchResult]:
    """Returns the `query.limit` best results by all three scores; see `RankingParameters`.

    Of one section at most `query.per_section` come before those of others, as in the search itself.

    Args:
        results: what `reranked_candidates` found.
        scores: the reranker's, 0..1, parallel to the results.
        query: the search as it was asked for.
        parameters: the weights.
    """
    scored = [
        (_score(result, score, parameters), score, result)
        for result, score in zip(results, scores, strict=True)
    ]
    scored.sort(key=lambda item: -item[0])  # stable, so ties keep the search's order
    first: list[tuple[float, float, SearchResult]] = []
    crowding: list[tuple[float, float, SearchResult]] = []
    taken: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    for item in scored:
        place = item[2].citation
        section = (place.collection, place.path, place.heading_path)
        taken[section] += 1
        (first if taken[section] <= query.per_section else crowding).append(item)
        if len(first) == query.limit:
            break
    return [
        replace(result, score=together, reranker_score=score)
        for together, score, result in (first + crowding)[: query.limit]
    ]


def _score(result: SearchResult, reranker_score: float, parameters: RankingParameters) -> float:
    meaning = parameters.reranked_vector_weight
    words = 1 - meaning - parameters.reranker_weight
    score = (
        parameters.reranker_weight * reranker_score
        + meaning * max(0.0, result.vector_score or 0.0)
        + words * result.keyword_share**parameters.reranked_keyword_exponent
    )
    return float(score**_SIZE_EXPONENT)
