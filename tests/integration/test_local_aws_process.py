"""The local AWS as a process of its own: ready line, real time, event feed, clean end."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "localsuite.aws")


def get(endpoint: str, path: str) -> Any:
    with urllib.request.urlopen(f"{endpoint}/_local/{path}", timeout=40) as answer:  # noqa: S310 - the endpoint is ours
        return json.load(answer)


def test_a_process_serves_groups_whose_instances_come_up_by_themselves(tmp_path: Path) -> None:
    state_file = tmp_path / "aws.json"
    process = subprocess.Popen(
        [
            *COMMAND,
            *("--port", "0"),
            *("--time-compression", "60"),
            *("--seed", "7"),
            "--seed-account",
            *("--state-file", str(state_file)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "simulation" in process.stderr.readline()
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        assert ready["simulation"] is True
        assert json.loads(state_file.read_text()) == ready
        endpoint = ready["endpoint"]
        assert endpoint.startswith("http://127.0.0.1:")

        position, running_tiers = 0, set()
        for _ in range(20):  # pages, each waited for by the server
            page = get(endpoint, f"events?after={position}&timeout_seconds=20")
            position = page["next"]
            running_tiers |= {
                event["instance"]["tier"]
                for event in page["events"]
                if event["kind"] == "instance-running"
            }
            if running_tiers == {"gold", "silver"}:
                break
        assert running_tiers == {"gold", "silver"}

        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert not state_file.exists()
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = subprocess.run(
            [*COMMAND, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in result.stderr


@pytest.mark.parametrize("argument", ["--time-compression=0", "--port=many"])
def test_a_wrong_option_is_told(argument: str) -> None:
    result = subprocess.run(
        [*COMMAND, argument], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert argument.split("=", maxsplit=1)[0] in result.stderr
