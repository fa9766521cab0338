"""Compiling the simulation's inner loop makes it faster and changes nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "fleetsim" / "virtual_hour.py"


def run_hash(*options: str) -> str:
    command = [sys.executable, str(BENCHMARK), "--players", "2000", "--minutes", "2", *options]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    return ran.stdout.splitlines()[-1]


@pytest.mark.endurance
@pytest.mark.timeout(1200)
def test_a_run_has_the_same_hash_compiled_and_interpreted() -> None:
    compiled = run_hash()
    assert compiled.startswith("run hash ")
    assert compiled == run_hash("--interpreted")
