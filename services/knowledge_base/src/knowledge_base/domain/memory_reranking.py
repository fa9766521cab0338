"""Puts the memories that a recall found in a new order, reading them more closely."""

from collections.abc import Sequence
from dataclasses import replace

from knowledge_base.domain.memory import RecalledEvent, RecallParameters, RecallQuery
from knowledge_base.domain.told_times import asks_for_a_time, tells_a_time

__all__ = ["recall_candidates", "rerank_memories"]

# Memories beyond those asked for that may come among them: 20 for ten gave as much as 60.
_MORE = 10
# What an event of a cosine meets of a query's tokens in the mean: a line through the first twenty
# memories of each question of three long dialogues.
_MET_SLOPE, _MET_START = 0.88, -0.1


def recall_candidates(query: RecallQuery) -> RecallQuery:
    """Returns the recall of what may come among the memories asked for, without neighbours.

    The memories beyond those need not be the next best of the world.
    """
    return replace(query, limit=query.limit + _MORE, neighbours=0, sure=query.limit)


def rerank_memories(
    found: Sequence[RecalledEvent],
    met: Sequence[float | None],
    query: RecallQuery,
    parameters: RecallParameters,
) -> list[RecalledEvent]:
    """Returns the `query.limit` best memories, with the relevance that `RecallParameters` tells.

    Args:
        found: what `recall_candidates` found, the best first.
        met: the reranker's scores, 0..1, parallel to them. None: nothing is kept of the event; then
            it meets what events of its cosine do in the mean. Empty: there is no reranker.
        query: the recall as it was asked for.
        parameters: the weights.
    """
    timed = parameters.told_time_boost if asks_for_a_time(query.text) else 0.0
    weight = parameters.normalised_weights[0]
    again = []
    for index, item in enumerate(found):
        relevance = item.relevance
        if met:
            meaning, score = max(0.0, item.cosine), met[index]
            if score is None:
                score = max(0.0, _MET_SLOPE * meaning + _MET_START)
            relevance += parameters.reranker_weight * (score - meaning)
        if timed and tells_a_time(item.event.text):
            relevance += timed
        relevance = min(1.0, max(0.0, relevance))
        again.append((item.score + weight * (relevance - item.relevance), relevance, index))
    again.sort(key=lambda scored: -scored[0])  # stable, so ties keep the search's order
    return [
        found[index]._replace(
            score=score, relevance=relevance, reranker_score=met[index] if met else None
        )
        for score, relevance, index in again[: query.limit]
    ]
