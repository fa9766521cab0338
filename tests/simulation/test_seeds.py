"""The whole suite in virtual time under many seeds' faults: every invariant holds all the way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from invariants import Finding
from seeded_run import simulate, simulate_all

_REPLAY = Path(__file__).with_name("replay.py")
_QUICK_SEEDS = range(1, 11)
_SEEDS = range(1, 201)


def require_none(findings: Sequence[Finding], seed: int) -> None:
    """Fail with the command that replays the seed when an invariant did not hold."""
    found = "\n".join(map(str, findings[:10]))
    replay = f".venv/bin/python tests/simulation/replay.py {seed}"
    assert not findings, f"replay with: {replay}\n{found}"


@pytest.mark.parametrize("seed", _QUICK_SEEDS)
def test_invariants_hold_under_the_faults_of_a_seed(seed: int) -> None:
    require_none(simulate(seed).findings, seed)


@pytest.fixture(scope="module")
def findings_by_seed() -> dict[int, tuple[Finding, ...]]:
    started = time.monotonic()
    findings = simulate_all(_SEEDS)
    sys.stdout.write(f"{len(findings)} seeds in {time.monotonic() - started:.0f} s\n")
    return findings


@pytest.mark.endurance
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", _SEEDS)
def test_invariants_hold_under_the_faults_of_each_seed(
    seed: int, findings_by_seed: dict[int, tuple[Finding, ...]]
) -> None:
    require_none(findings_by_seed[seed], seed)


def test_a_seed_gives_the_same_run_in_another_process_with_other_hashes() -> None:
    here = simulate(5).run_hash
    program = f"import sys; sys.path.insert(0, {str(_REPLAY.parent)!r});"
    program += "from seeded_run import simulate; print(simulate(5).run_hash)"
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert there.stdout.strip() == here
