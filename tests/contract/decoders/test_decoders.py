"""No input from outside breaks a decoder: it is understood, or refused as the decoder promises."""

import subprocess
import sys
from pathlib import Path

import pytest
from decoder_targets import TARGETS
from hypothesis import given
from hypothesis import strategies as st

FUZZER = Path(__file__).parent / "fuzz.py"
FUZZ_SECONDS = 15
EVERY_TARGET = pytest.mark.parametrize("name", TARGETS)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, and a target's seeds and words in any order with pieces cut out."""
    target = TARGETS[name]
    pieces = st.sampled_from([*target.seeds, *(word.encode() for word in target.words)])
    cut = st.builds(lambda piece, a, b: piece[a:b], pieces, st.integers(0, 99), st.integers(1, 500))
    return st.binary(max_size=200) | st.lists(pieces | cut | st.binary(max_size=8)).map(b"".join)


@EVERY_TARGET
def test_the_seeds_are_understood(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].decode(seed)


@EVERY_TARGET
@given(data=st.data())
def test_any_bytes_are_understood_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name].decode(data.draw(inputs(name)))


def fuzz(name: str, corpus: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZER), name, str(corpus), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=FUZZ_SECONDS * 10,
    )


@pytest.mark.endurance
@pytest.mark.timeout(FUZZ_SECONDS * 12)
@EVERY_TARGET
def test_a_fuzzer_guided_by_coverage_finds_no_input_that_breaks_it(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("atheris", reason="the fuzzer has no build for this Python and machine")
    ran = fuzz(name, tmp_path, f"-max_total_time={FUZZ_SECONDS}", "-timeout=5", "-seed=1")
    broken = sorted(tmp_path.glob("broken-*"))
    found = [path.read_bytes() for path in broken]
    assert ran.returncode == 0, f"{found}\n{ran.stdout[-2000:]}{ran.stderr[-3000:]}"
    assert "cov:" in ran.stderr
