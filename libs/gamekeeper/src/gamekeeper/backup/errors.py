"""What can go wrong with a backup, in words for the operator."""

__all__ = ["BackupError"]


class BackupError(Exception):
    """A backup, restore or verification cannot go on; the text says why and what to do."""
