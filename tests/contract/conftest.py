"""The whole suite, started once for the contract tests and called from outside only."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_TIMEOUT_SECONDS = 110.0
LORE_IS_THERE = "passages"


@pytest.fixture(scope="session")
def suite_addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`host:port` of every running service by its name."""
    directory = tmp_path_factory.mktemp("suite")
    log = directory / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "localsuite", "--no-traffic", "--plain"),
                *("--port-base", "0", "--data-dir", str(directory / "data")),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield wait_for_addresses(process, directory / "data" / "addresses.json", log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=40)
        finally:
            process.kill()


def wait_for_addresses(process: subprocess.Popen[bytes], path: Path, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        # The last line may be half written, in the middle of a sign.
        if path.exists() and LORE_IS_THERE in log.read_text(encoding="utf-8", errors="replace"):
            found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
            return found
        time.sleep(0.2)  # another process's file is watched; there is nothing to await
    pytest.fail(f"the suite did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")
