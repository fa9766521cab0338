"""How long backups hold what was erased from the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from gamekeeper.backup.repository import BaseBackup

__all__ = ["ErasedData", "erased_data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedData:
    """When what is erased now has left the backups.

    A base backup is needed until the next one is older than all that stays restorable, so it goes
    that much later than it is old.

    Attributes:
        between_backups: the longest time between two base backups so far; None with only one.
        gone_time: when a prune removes the newest base backup that holds it, if the next one is
            taken within `between_backups`; None where that is not known or is over already.
        next_backup_by: a base backup that is taken later breaks what erasers were told.
        overdue: True when that moment has passed.
    """

    between_backups: timedelta | None
    gone_time: datetime | None
    next_backup_by: datetime
    overdue: bool


def erased_data(
    backups: Sequence[BaseBackup], now: datetime, *, keep: timedelta, told: timedelta
) -> ErasedData | None:
    """Returns how long these backups, oldest first, hold what is erased; None without backups.

    Args:
        backups: those of a repository.
        now: the moment of the erasure.
        keep: how long every moment stays restorable.
        told: after which time whoever erased something was told that no backup has it.
    """
    if not backups:
        return None
    newest = backups[-1]
    waits = [later.stop_time - earlier.stop_time for earlier, later in pairwise(backups)]
    longest = max(waits, default=None)
    due = newest.stop_time + longest if longest is not None else None
    # What was erased while the newest was taken may be in it.
    next_backup_by = newest.start_time + told - keep
    return ErasedData(
        between_backups=longest,
        gone_time=due + keep if due is not None and due >= now else None,
        next_backup_by=next_backup_by,
        overdue=next_backup_by < now,
    )
