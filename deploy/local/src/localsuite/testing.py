"""pytest fixtures for a real PostgreSQL; import them into a `conftest.py`.

from localsuite.testing import postgres_database, postgres_server
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from localsuite.postgres import EmbeddedPostgres

__all__ = ["module_database", "postgres_database", "postgres_server"]

# The server is started by fork and exec. In a process with running gRPC calls, gRPC's own fork
# handlers can end the child before it executes anything; gRPC reads this when it is first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One running server for the test session, on a free port, with throw-away data.

    A test that kills it calls `start()` before it ends.
    """
    # Not below pytest's own temporary directory: it is 0700, and as root another account runs
    # the server.
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-postgres-"))
    server = EmbeddedPostgres(directory, durable=False)
    try:
        with server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(server.location, ignore_errors=True)


@pytest.fixture
def postgres_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The address of a fresh, empty database that is gone after the test."""
    with _fresh_database(postgres_server) as address:
        yield address


@pytest.fixture(scope="module")
def module_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The address of a database that the tests of a module share, empty at first."""
    with _fresh_database(postgres_server) as address:
        yield address


@contextlib.contextmanager
def _fresh_database(server: EmbeddedPostgres) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    server.create_database(name)
    try:
        yield server.url(name)
    finally:
        server.drop_database(name)
