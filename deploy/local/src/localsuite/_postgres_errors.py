"""What can go wrong with the embedded PostgreSQL, each with what to do about it.

PostgresError
├── InstallationError       the programs are missing
├── AccountError            no account may run them
├── DataDirectoryError      the directory cannot be used
├── AlreadyRunningError     another server uses the directory
├── PortInUseError          the wanted port is taken
└── StartError              the server did not come up
"""

__all__ = [
    "AccountError",
    "AlreadyRunningError",
    "DataDirectoryError",
    "InstallationError",
    "PortInUseError",
    "PostgresError",
    "StartError",
]


class PostgresError(RuntimeError):
    """Base of every error the embedded PostgreSQL raises; its text says what to do."""


class InstallationError(PostgresError):
    """PostgreSQL's programs are missing or incomplete."""


class AccountError(PostgresError):
    """There is no unprivileged account to run the server with."""


class DataDirectoryError(PostgresError):
    """The data directory cannot be used as it is."""


class AlreadyRunningError(PostgresError):
    """A live server already uses the data directory."""

    def __init__(self, message: str, *, pid: int, port: int | None) -> None:
        super().__init__(message)
        self.pid = pid
        self.port = port


class PortInUseError(PostgresError):
    """Another process listens on the wanted port."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} on 127.0.0.1 is in use by another process; stop it, choose another "
            "port, or leave the port out to get a free one"
        )
        self.port = port


class StartError(PostgresError):
    """The server did not become ready; the text ends with what it logged."""
