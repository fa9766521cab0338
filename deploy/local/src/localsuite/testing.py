"""pytest fixtures for a real PostgreSQL; import them into a `conftest.py`.

from localsuite.testing import postgres_database, postgres_server
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from localsuite.postgres import EmbeddedPostgres

__all__ = ["postgres_database", "postgres_server"]

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
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres_server.create_database(name)
    try:
        yield postgres_server.url(name)
    finally:
        postgres_server.drop_database(name)
