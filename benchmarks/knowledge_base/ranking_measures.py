"""What a ranking is worth, from the grades of what it found."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Judged", "Question", "area_under_roc", "mean_measures"]

_DEPTH = 10


@dataclass(frozen=True, slots=True)
class Question:
    """A question with what answers it, by grade (1 and up); no grades: nothing answers it.

    `exponential_gain` says whether a grade g gains 2^g - 1 (Järvelin & Kekäläinen 2002 as used on
    the web, Burges et al. 2005) or g itself (as trec_eval's ndcg_cut does).
    """

    kind: str
    text: str
    grades: Mapping[Hashable, int]
    exponential_gain: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """What a way of searching found for a question: items in order, each once.

    `answerable` is the search's own probability that the question has an answer, if it gives one;
    `scored` are the first passages or events, each with its item and score, if it gives them.
    """

    question: Question
    found: tuple[Hashable, ...]
    answerable: float = math.nan
    scored: tuple[tuple[Hashable, float], ...] = ()

    @property
    def ndcg(self) -> float:
        """Normalised discounted cumulative gain of the first ten; ideal over all grades."""
        grades = self.question.grades
        ideal = sorted(grades.values(), reverse=True)[:_DEPTH]
        return self._gain([grades.get(item, 0) for item in self.found[:_DEPTH]]) / self._gain(ideal)

    def recall(self, depth: int) -> float:
        """Share of what is graded among the first `depth`."""
        grades = self.question.grades
        return sum(item in grades for item in self.found[:depth]) / len(grades)

    @property
    def hit(self) -> float:
        """1 when an item of the question's best grade is among the first five."""
        best = max(self.question.grades.values())
        return float(any(self.question.grades.get(item) == best for item in self.found[:5]))

    def _gain(self, grades: Sequence[int]) -> float:
        exponential = self.question.exponential_gain
        return math.fsum(
            (2**grade - 1 if exponential else grade) / math.log2(rank + 2)
            for rank, grade in enumerate(grades)
        )


def mean_measures(judged: Sequence[Judged]) -> dict[str, float]:
    """Returns the means over the questions that have an answer, by name."""
    answered = [item for item in judged if item.question.grades]
    measures = {
        "ndcg@10": [item.ndcg for item in answered],
        "recall@5": [item.recall(5) for item in answered],
        "recall@10": [item.recall(10) for item in answered],
        "hit@5": [item.hit for item in answered],
    }
    return {
        name: math.fsum(values) / len(values) if values else math.nan
        for name, values in measures.items()
    }


def area_under_roc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Returns how often a positive's value is above a negative's; ties count half (0.5: chance)."""
    wins = math.fsum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative)) if positive and negative else math.nan
