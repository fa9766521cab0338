"""When `make eval` fails: questions answered worse than the committed reference allows."""

import json
import subprocess
from pathlib import Path

import pytest
from evaluate import gate
from ranking_measures import Judged, Question

ROOT = Path(__file__).parents[2]
QUESTIONS = 10_000
ACCEPTED = 0.85


def judged(ndcg: float) -> list[Judged]:
    """Answers whose mean nDCG@10 is `ndcg`: that share of questions is answered, each in full."""
    question = Question("kind", "Who rang the bell?", {"passage": 1})
    answered = round(ndcg * QUESTIONS)
    right, wrong = Judged(question, ("passage",)), Judged(question, ("another",))
    return [right] * answered + [wrong] * (QUESTIONS - answered)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "reference.json"
    assert gate(judged(ACCEPTED), accept=True, kept=path)
    return path


@pytest.mark.parametrize(
    ("ndcg", "holds"),
    [(0.9, True), (0.85, True), (0.8301, True), (0.83, True), (0.8299, False), (0.5, False)],
)
def test_a_drop_of_more_than_two_hundredths_fails(kept: Path, ndcg: float, holds: bool) -> None:
    assert gate(judged(ndcg), accept=False, kept=kept) is holds


def test_only_what_is_accepted_becomes_the_reference(kept: Path) -> None:
    assert not gate(judged(0.7), accept=False, kept=kept)
    assert json.loads(kept.read_text())["ndcg@10"] == ACCEPTED
    assert gate(judged(0.7), accept=True, kept=kept)
    assert json.loads(kept.read_text())["ndcg@10"] == 0.7
    assert not gate(judged(0.67), accept=False, kept=kept)


def test_what_nobody_could_measure_fails(kept: Path) -> None:
    unanswered = [Judged(Question("kind", "What is not there?", {}), ())]
    assert not gate(unanswered, accept=False, kept=kept)


def test_the_evaluation_never_goes_without_what_it_is_compared_with() -> None:
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", "eval"],  # noqa: S607  # as a developer calls it
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "requirements/rivals.txt" in told
    assert told.index("requirements/rivals.txt") < told.index("evaluate.py")
