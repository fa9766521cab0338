"""The measurement of the agent beside a load: on a stand-in driver, and without a GPU."""

import asyncio
import os
import shlex
import sys
from pathlib import Path

import pytest
from fake_driver import FakeDriver, build

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/gpu_metrics/on_a_gpu.py"
SCENARIO = """\
driver version 570.86.15
gpu 0 uuid GPU-a
gpu 0 name NVIDIA L4
gpu 0 utilization 90
"""
COUNTS_UP = """\
import itertools, time
for done in itertools.count(1):
    print(done, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


async def measured(*options: str, **environ: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), *options),
        env={"PATH": os.environ["PATH"], **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(100):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_work_is_told_of_rounds_without_the_agent_and_with_it(
    library: Path, tmp_path: Path
) -> None:
    driver = FakeDriver(library, tmp_path)
    driver.write(SCENARIO)
    code, output = await measured(
        *("--rounds", "2", "--seconds", "1", "--settle", "2"),
        *("--load", shlex.join([sys.executable, "-c", COUNTS_UP])),
        **driver.environ(),
    )
    lines = output.splitlines()
    assert (code, lines[0]) == (0, "NVIDIA L4"), output
    rounds = [line.split() for line in lines if line.startswith("round ")]
    assert [words[1] for words in rounds] == ["1", "2"]
    assert all(0 < float(figure) <= 100 for words in rounds for figure in words[2:])
    assert "it sent 0 samples" not in output


@pytest.mark.parametrize("load", [None, "true"], ids=["no driver", "a load that ends"])
async def test_what_is_missing_is_said(library: Path, tmp_path: Path, load: str | None) -> None:
    driver = FakeDriver(library, tmp_path)
    driver.write(SCENARIO if load else "driver unloaded\n")
    code, output = await measured("--load", load or "yes", **driver.environ())
    assert code == 2
    assert "an NVIDIA GPU with its driver is needed" in output
