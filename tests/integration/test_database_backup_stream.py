"""`gamekeeper backup stream` as a service manager ends it: by SIGTERM, whatever it is doing."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from localsuite.postgres import EmbeddedPostgres

PATIENCE_SECONDS = 60.0

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where PostgreSQL's account may go, unlike below pytest's own directory."""
    made = Path(tempfile.mkdtemp(prefix="gamekeeper-stream-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(directory / "postgres", durable=False) as server:
        yield server


@pytest.fixture
def streaming(directory: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*server: str) -> subprocess.Popen[bytes]:
        words = ["backup", "stream", str(directory / "backups"), *server]
        with log_file(directory).open("wb") as log:
            # Our own command line.
            process = subprocess.Popen([sys.executable, "-m", "gamekeeper.cli", *words], stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
            process.wait()


def log_file(directory: Path) -> Path:
    return directory / "stderr"


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def received(server: EmbeddedPostgres) -> bool:
    return server.execute("SELECT count(*) FROM pg_stat_replication") == "1"


def end(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Sends SIGTERM; returns the children that outlived the process."""
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    code = process.wait(PATIENCE_SECONDS)
    survivors = [child for child in children if child.is_running()]
    for child in survivors:
        child.kill()
    assert code == 0
    return survivors


def test_while_it_receives_and_its_slot_is_free_for_the_next_one(
    server: EmbeddedPostgres, streaming: Start
) -> None:
    for _ in range(2):
        process = streaming("--embedded", str(server.location))
        until(lambda: received(server))
        assert [child.name() for child in psutil.Process(process.pid).children()] == [
            "pg_receivewal"
        ]
        assert end(process) == []
        until(lambda: not received(server))


def test_while_it_waits_for_a_server_that_is_away(
    server: EmbeddedPostgres, streaming: Start, directory: Path
) -> None:
    process = streaming("--embedded", str(server.location))
    until(lambda: received(server))
    server.stop()
    until(lambda: "waiting 5 seconds to try again" in log_file(directory).read_text())
    assert end(process) == []


def test_while_it_connects(streaming: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(PATIENCE_SECONDS)
        address = f"postgresql://nobody:x@127.0.0.1:{mute.getsockname()[1]}/postgres"
        process = streaming("--database-url", address)
        connection, _ = mute.accept()
        with connection:
            assert end(process) == []
