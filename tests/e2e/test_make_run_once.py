"""A small evening from start to report, as `make run ARGS="--once ..."` plays it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def start(data_directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "localsuite", "--plain", "--data-dir", str(data_directory)),
            *("--port-base", "0", *arguments),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A session of its own, so that what is left of it can be found.
        start_new_session=True,
    )


def processes_of(data_directory: Path, leader: int) -> list[str]:
    """Every process that a run left: its own, and PostgreSQL's on its data."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        started_by_run = (process.info["environ"] or {}).get("GAMEKEEPER_RUN") == str(leader)
        if str(data_directory) in words or started_by_run:
            found.append(words)
    return found


@pytest.fixture(scope="module")
def data_directory() -> Iterator[Path]:
    # Not below pytest's directory: as root, PostgreSQL runs as another account and must enter.
    with tempfile.TemporaryDirectory(prefix="gamekeeper-evening-") as directory:
        yield Path(directory) / "var"


@pytest.fixture(scope="module")
def evening(data_directory: Path) -> dict[str, Any]:
    # Some of the lore is enough; embedding all of it takes most of the time on a busy machine.
    lore = data_directory.parent / "lore"
    lore.mkdir()
    for name in ("03-factions.md", "05-stiles-and-crossing.md", "06-lending-and-its-limits.md"):
        shutil.copy(ROOT / "services" / "knowledge_base" / "lore" / name, lore / name)
    run = start(
        data_directory,
        *("--once", "--players", "300", "--duration-seconds", "40", "--seed", "7"),
        *("--lore", str(lore)),
    )
    output, _ = run.communicate(timeout=260)
    reports = sorted((data_directory / "reports").glob("*/report.json"))
    assert len(reports) == 1, output
    report: dict[str, Any] = json.loads(reports[0].read_text())
    return {
        "report": report,
        "directory": reports[0].parent,
        "logs": data_directory / "logs",
        "output": output,
        "exit_code": run.returncode,
        "left": processes_of(data_directory, run.pid),
    }


def test_the_run_ends_well_and_says_that_all_held(evening: dict[str, Any]) -> None:
    assert evening["exit_code"] == 0, evening["output"]
    assert evening["report"]["held"] is True
    assert "all healthy after" in evening["output"]


def test_every_request_has_an_outcome_and_nearly_all_were_answered(evening: dict[str, Any]) -> None:
    findings = evening["report"]["findings"]
    assert findings["sent"] > 20
    assert findings["unaccounted"] == 0
    assert findings["completed"] >= 0.95 * findings["sent"]


def test_the_autoscaler_decided_and_said_why(evening: dict[str, Any]) -> None:
    decisions = evening["report"]["decisions"]
    assert decisions
    assert all(decision["summary"] for decision in decisions)
    assert {decision["rule"] for decision in decisions} <= {
        "DECISION_RULE_SCALE_OUT_DEMAND",
        "DECISION_RULE_START_FROM_ZERO",
        "DECISION_RULE_SCALE_IN_DEMAND",
        "DECISION_RULE_REPLACE_INTERRUPTED",
        "DECISION_RULE_AT_BUDGET",
        "DECISION_RULE_AT_MAXIMUM",
        "DECISION_RULE_AT_MINIMUM",
    }


def test_a_tier_grew_and_its_servers_came_and_went(evening: dict[str, Any]) -> None:
    tiers = evening["report"]["findings"]["tiers"]
    breathed = [name for name, tier in tiers.items() if tier["scaled_out"] and tier["scaled_in"]]
    assert breathed
    ready = [moment["tiers"][breathed[0]]["ready"] for moment in evening["report"]["moments"]]
    assert max(ready) > min(ready)


def test_the_storyteller_recalled_what_happened_this_evening(evening: dict[str, Any]) -> None:
    story = evening["report"]["story"]
    assert len(story) >= 6
    assert all(not turn["error"] for turn in story)
    assert story[0]["recalled"] == []
    question = next(turn for turn in story if "what did I leave on the sill" in turn["player"])
    assert question["recalled_from_this_evening"] > 0
    assert any("thimble" in memory for memory in question["recalled"])
    assert any(turn["citations"] for turn in story)


def test_the_game_and_the_suite_heard_each_other_on_the_event_bus(evening: dict[str, Any]) -> None:
    bus = evening["report"]["findings"]["bus"]
    for event_type in ("weather.changed", "capacity.changed", "story.event_recorded"):
        assert event_type in bus
    assert bus.endswith(" 0 dead letters")
    assert "bus_event_taken" in (evening["logs"] / "knowledge_base.log").read_text()


def test_the_report_has_its_pictures_and_says_what_is_simulated(evening: dict[str, Any]) -> None:
    text = (evening["directory"] / "report.md").read_text()
    assert "## What is simulated" in text
    for name in ("players.png", "gpus.png", "latency.png", "cost.png"):
        assert f"({name})" in text
        assert (evening["directory"] / name).stat().st_size > 5_000


def test_nothing_is_left_running(evening: dict[str, Any]) -> None:
    assert evening["left"] == []


def test_ctrl_c_stops_everything_and_keeps_the_data(
    data_directory: Path, evening: dict[str, Any]
) -> None:
    lore = ("--lore", str(data_directory.parent / "lore"))
    with start(data_directory, "--no-traffic", *lore) as run:
        try:
            addresses = data_directory / "addresses.json"
            deadline = time.monotonic() + 120
            while not addresses.exists():
                assert run.poll() is None, run.communicate()[0]
                assert time.monotonic() < deadline, "the suite did not come up"
                time.sleep(0.1)
            with start(data_directory, "--no-traffic") as second:
                refusal, _ = second.communicate(timeout=60)
            assert second.returncode == 2
            assert f"process {run.pid}" in refusal
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 0, output
    assert "The data stays" in output
    assert processes_of(data_directory, run.pid) == []
    assert (evening["directory"] / "report.md").exists()
    assert not (data_directory / "addresses.json").exists()


def test_a_port_in_use_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = subprocess.run(
            [
                *(sys.executable, "-m", "localsuite", "--plain", "--data-dir", str(tmp_path / "v")),
                *("--port-base", str(port - 1), "--no-traffic"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 2, run.stderr
    assert f"port {port} (gpu_metrics) is in use by process {os.getpid()}" in run.stderr
    assert "--port-base" in run.stderr
