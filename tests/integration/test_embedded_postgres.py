"""The embedded PostgreSQL: starts, refuses clearly, survives what kills it."""

import asyncio
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

import asyncpg
import psutil
import pytest

from localsuite._postgres_install import (
    Account,
    Installation,
    blocking_ancestor,
    choose_location,
)
from localsuite._postgres_processes import live_processes, read_postmaster_file
from localsuite.postgres import (
    AlreadyRunningError,
    DataDirectoryError,
    EmbeddedPostgres,
    PortInUseError,
    PostgresError,
    StartError,
)

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def empty_directory() -> Iterator[Path]:
    # pytest's own directories are 0700, which is one of the cases below and not the usual one.
    path = Path(tempfile.mkdtemp(prefix="gamekeeper-postgres-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A data directory as earlier starts left it: each test leaves it fit for the next start."""
    path = Path(tempfile.mkdtemp(prefix="gamekeeper-postgres-"))
    with EmbeddedPostgres(path):
        pass
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def fetch_value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(query, timeout=10)
    finally:
        await connection.close()


async def test_vectors_and_unicode_work_in_a_fresh_database(postgres_database: str) -> None:
    connection = await asyncpg.connect(postgres_database, timeout=10)
    try:
        await connection.execute("CREATE EXTENSION vector")
        await connection.execute("CREATE TABLE item (id int, embedding vector(3))")
        await connection.execute(
            "INSERT INTO item SELECT n, ARRAY[n, 1, 0]::vector FROM generate_series(1, 500) n"
        )
        # Built in dynamic shared memory when parallel; must work where /dev/shm is small.
        await connection.execute("CREATE INDEX ON item USING hnsw (embedding vector_l2_ops)")
        nearest = await connection.fetchval(
            "SELECT id FROM item ORDER BY embedding <-> '[41.2, 1, 0]' LIMIT 1"
        )
        lowered = await connection.fetchval("SELECT lower('ÄRGER İÇ')")
        stemmed = await connection.fetchval("SELECT to_tsvector('wandering')::text")
    finally:
        await connection.close()
    assert nearest == 41
    assert str(lowered).startswith("ärger")
    assert stemmed == "'wander':1"


async def test_each_test_gets_an_empty_database_that_is_gone_afterwards(
    postgres_server: EmbeddedPostgres, postgres_database: str
) -> None:
    tables = await fetch_value(
        postgres_database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    )
    databases = postgres_server.execute(
        "SELECT count(*) FROM pg_database WHERE datname LIKE 'test\\_%'"
    )
    assert tables == 0
    assert databases == "1"


async def test_a_wrong_password_is_refused(postgres_server: EmbeddedPostgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres_server.url(password="wrong"), timeout=10)


async def test_only_loopback_is_listened_on(postgres_server: EmbeddedPostgres) -> None:
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(postgres_server.pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_data_password_and_database_survive_a_restart(empty_directory: Path) -> None:
    with EmbeddedPostgres(empty_directory) as first:
        assert first.create_database("kept")
        assert not first.create_database("kept")
        first.execute("CREATE TABLE note AS SELECT 'still here' AS body", database="kept")
        first_url_password = first.password
    assert live_processes(first.cluster) == []
    with EmbeddedPostgres(empty_directory) as second:
        assert second.password == first_url_password
        assert second.execute("SELECT body FROM note", database="kept") == "still here"


def test_a_start_on_existing_data_takes_less_than_a_second(directory: Path) -> None:
    seconds: list[float] = []
    while min(seconds, default=1.0) >= 1.0 and len(seconds) < 10:  # the machine may be busy
        began = time.monotonic()
        with EmbeddedPostgres(directory):
            seconds.append(time.monotonic() - began)
    assert min(seconds) < 1.0, seconds


async def test_a_committed_write_survives_kill_9(directory: Path) -> None:
    async with EmbeddedPostgres(directory) as server:
        server.execute("CREATE TABLE ledger (n int)")
        connection = await asyncpg.connect(server.url(), timeout=10)
        await connection.execute("INSERT INTO ledger VALUES (1)")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO ledger VALUES (2)")
        port = server.port

        await asyncio.to_thread(server.kill)

        assert not server.running
        assert live_processes(server.cluster) == []
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.execute("INSERT INTO ledger VALUES (3)", timeout=5)
        connection.terminate()
        await asyncio.to_thread(server.start)
        assert server.port == port
        assert await fetch_value(server.url(), "SELECT array_agg(n) FROM ledger") == [1]


def test_starts_over_the_lock_file_of_a_killed_server(directory: Path) -> None:
    server = EmbeddedPostgres(directory).start()
    server.kill()
    assert read_postmaster_file(server.cluster) is not None
    with EmbeddedPostgres(directory) as successor:
        assert successor.execute("SELECT 1") == "1"


def test_starts_when_the_stale_lock_names_a_process_that_is_not_postgres(directory: Path) -> None:
    server = EmbeddedPostgres(directory).start()
    server.kill()
    lock = server.cluster / "postmaster.pid"
    lines = lock.read_text().splitlines()
    # A number that was given to another program of the same account: PostgreSQL alone refuses.
    sleeper = subprocess.Popen(["/bin/sleep", "60"], user=lock.stat().st_uid if AS_ROOT else None)
    try:
        lock.write_text("\n".join([str(sleeper.pid), *lines[1:]]) + "\n")
        with EmbeddedPostgres(directory) as successor:
            assert successor.execute("SELECT 1") == "1"
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_starts_after_only_the_postmaster_was_killed(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        os.kill(server.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(server.pid)], timeout=5)
        server.start()
        assert server.execute("SELECT 1") == "1"


def test_a_live_server_on_the_same_directory_is_named(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        with pytest.raises(AlreadyRunningError, match=f"kill -INT {server.pid}") as refused:
            EmbeddedPostgres(directory).start()
        assert (refused.value.pid, refused.value.port) == (server.pid, server.port)
        assert server.execute("SELECT 1") == "1"


def test_a_port_in_use_is_named(empty_directory: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} .* is in use"):
            EmbeddedPostgres(empty_directory, port=port).start()
    with EmbeddedPostgres(empty_directory, port=port) as server:
        assert server.port == port


def test_a_directory_with_other_files_is_left_alone(empty_directory: Path) -> None:
    (empty_directory / "thesis.txt").write_text("years of work")
    mode = empty_directory.stat().st_mode
    with pytest.raises(DataDirectoryError, match="not empty"):
        EmbeddedPostgres(empty_directory).start()
    assert [path.name for path in empty_directory.iterdir()] == ["thesis.txt"]
    assert empty_directory.stat().st_mode == mode


def test_a_cluster_of_another_version_is_refused(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        version = server.cluster / "PG_VERSION"
    right = version.read_text()
    version.write_text("15\n")
    try:
        with pytest.raises(DataDirectoryError, match="made by PostgreSQL 15"):
            EmbeddedPostgres(directory).start()
    finally:
        version.write_text(right)


def test_a_setting_it_cannot_use_is_told_with_the_servers_own_words(directory: Path) -> None:
    server = EmbeddedPostgres(directory, settings={"shared_buffers": "none"})
    with pytest.raises(StartError, match="shared_buffers"):
        server.start()
    assert not server.running
    assert live_processes(server.cluster) == []


def test_an_interrupted_first_start_leaves_nothing_that_blocks_the_next(
    empty_directory: Path,
) -> None:
    server = EmbeddedPostgres(empty_directory, start_timeout_seconds=0.01)
    with pytest.raises(StartError, match="initdb took longer"):
        server.start()
    with EmbeddedPostgres(empty_directory) as successor:
        assert successor.execute("SELECT 1") == "1"
    assert not list(empty_directory.glob("initialising-*"))


def test_sql_errors_carry_the_servers_message(postgres_server: EmbeddedPostgres) -> None:
    with pytest.raises(PostgresError, match="nowhere"):
        postgres_server.execute("SELECT * FROM nowhere")


def test_database_names_are_quoted(postgres_server: EmbeddedPostgres) -> None:
    name = 'odd"; DROP TABLE x; --'
    postgres_server.create_database(name)
    assert postgres_server.execute("SELECT 1", database=name) == "1"
    postgres_server.drop_database(name)
    assert (
        postgres_server.execute(
            "SELECT count(*) FROM pg_database WHERE datname = :'name'", name=name
        )
        == "0"
    )


def test_secrets_and_data_are_private(postgres_server: EmbeddedPostgres) -> None:
    password_file = postgres_server.location / "superuser-password"
    assert password_file.stat().st_mode & 0o777 == 0o600
    assert postgres_server.cluster.stat().st_mode & 0o777 == 0o700


def test_the_server_ends_when_its_starter_is_killed(directory: Path) -> None:
    program = (
        "import sys, time\n"
        "from localsuite.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(sys.argv[1]).start()\n"
        "print('pid', server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert starter.stdout is not None
        pid_line = next(line for line in starter.stdout if line.startswith("pid "))
        server_process = psutil.Process(int(pid_line.split()[1]))
        assert server_process.is_running()
    finally:
        starter.kill()
        starter.wait()
        if starter.stdout is not None:
            starter.stdout.close()
    deadline = time.monotonic() + 10
    while live_processes(directory / "cluster") and time.monotonic() < deadline:
        time.sleep(0.02)  # polls the process table, which announces nothing
    assert live_processes(directory / "cluster") == []


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as another account")
class TestAsRoot:
    def test_runs_as_an_existing_unprivileged_account(
        self, postgres_server: EmbeddedPostgres
    ) -> None:
        uids = psutil.Process(postgres_server.pid).uids()
        assert 0 not in (uids.real, uids.effective, uids.saved)
        assert postgres_server.cluster.stat().st_uid == uids.real

    def test_an_existing_cluster_keeps_its_account(self, empty_directory: Path) -> None:
        with EmbeddedPostgres(empty_directory, account="nobody") as first:
            owner = first.cluster.stat().st_uid
        with EmbeddedPostgres(empty_directory) as second:
            assert psutil.Process(second.pid).uids().real == owner

    def test_a_cluster_that_root_owns_is_refused_with_the_remedy(self, directory: Path) -> None:
        with EmbeddedPostgres(directory) as server:
            cluster = server.cluster
        owner = cluster.stat()
        os.chown(cluster, 0, 0)
        try:
            with pytest.raises(DataDirectoryError, match="chown -R"):
                EmbeddedPostgres(directory).start()
        finally:
            os.chown(cluster, owner.st_uid, owner.st_gid)

    def test_programs_out_of_reach_are_copied(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Installation, "reachable_by", lambda self, account: False)
        with EmbeddedPostgres(directory) as server:
            executable = Path(psutil.Process(server.pid).exe())
            server.create_database("copied")
            server.execute("CREATE EXTENSION vector", database="copied")
        assert executable.is_relative_to(directory / "programs")

    def test_a_data_directory_below_a_private_home_moves_to_a_place_it_finds_again(
        self, empty_directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = empty_directory / "home"
        home.mkdir(mode=0o700)
        empty_directory.chmod(0o755)
        system_root = empty_directory / "system"
        monkeypatch.setattr("localsuite._postgres_install.SYSTEM_DATA_ROOT", system_root)
        with EmbeddedPostgres(home / "data") as server:
            assert server.location.parent == system_root
            server.create_database("moved")
        with EmbeddedPostgres(home / "data") as again:
            assert again.location == server.location
            assert not again.create_database("moved")
        assert home.stat().st_mode & 0o777 == 0o700

    def test_without_a_usable_system_place_the_remedy_is_told(
        self, empty_directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = empty_directory / "home"
        home.mkdir(mode=0o700)
        empty_directory.chmod(0o755)
        (empty_directory / "file").write_text("")
        monkeypatch.setattr(
            "localsuite._postgres_install.SYSTEM_DATA_ROOT", empty_directory / "file" / "below"
        )
        stranger = Account(uid=54321, gid=54321)
        assert blocking_ancestor(home / "data", stranger) == home
        with pytest.raises(DataDirectoryError, match=f"chmod o\\+x {home}"):
            choose_location(home / "data", stranger)
