"""Fixtures of the fault tests: a real PostgreSQL; and what several tests share is importable."""

import sys
from pathlib import Path

from localsuite.testing import postgres_database, postgres_server

__all__ = ["postgres_database", "postgres_server"]

sys.path.insert(0, str(Path(__file__).parent))
