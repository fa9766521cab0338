"""Fixtures of the fault tests: a real PostgreSQL."""

from localsuite.testing import postgres_database, postgres_server

__all__ = ["postgres_database", "postgres_server"]
