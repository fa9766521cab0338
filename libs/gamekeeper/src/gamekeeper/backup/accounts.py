"""Who owns a cluster's files: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from pathlib import Path

from gamekeeper.backup.errors import BackupError

__all__ = ["give_away", "unprivileged_account"]

# The order of the embedded database, so that it finds the owner it expects.
_ACCOUNTS = ("postgres", "nobody")


def unprivileged_account() -> pwd.struct_passwd:
    """Returns the account under which root runs PostgreSQL. Raises BackupError without one."""
    for name in _ACCOUNTS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise BackupError(
        f"PostgreSQL does not run as root, and none of the accounts {', '.join(_ACCOUNTS)} exists; "
        "do this as an ordinary user"
    )


def give_away(directory: Path, uid: int, gid: int) -> None:
    """Makes an account the owner of a directory and everything in it."""
    os.chown(directory, uid, gid)
    for path in directory.rglob("*"):
        os.chown(path, uid, gid, follow_symlinks=False)
