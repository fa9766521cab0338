"""The whole suite in virtual time under many seeds' faults: every invariant holds all the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from simulated_suite import simulate

_REPLAY = Path(__file__).with_name("replay.py")
_QUICK_SEEDS = range(1, 11)
_SEEDS = range(1, 201)


def run(seed: int) -> None:
    """Fail with the command that replays the seed when an invariant does not hold."""
    report = simulate(seed)
    found = "\n".join(map(str, report.findings[:10]))
    replay = f".venv/bin/python tests/simulation/replay.py {seed}"
    assert not report.findings, f"replay with: {replay}\n{found}"


@pytest.mark.parametrize("seed", _QUICK_SEEDS)
def test_invariants_hold_under_the_faults_of_a_seed(seed: int) -> None:
    run(seed)


@pytest.mark.endurance
@pytest.mark.parametrize("seed", _SEEDS)
def test_invariants_hold_under_the_faults_of_each_seed(seed: int) -> None:
    run(seed)


def test_a_seed_gives_the_same_run_in_another_process_with_other_hashes() -> None:
    here = simulate(5).run_hash
    program = f"import sys; sys.path.insert(0, {str(_REPLAY.parent)!r});"
    program += "from simulated_suite import simulate; print(simulate(5).run_hash)"
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert there.stdout.strip() == here
