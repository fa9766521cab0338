"""Fixtures of the integration tests: a real PostgreSQL, a local AWS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from localsuite.testing import postgres_database, postgres_server

if TYPE_CHECKING:
    from localsuite.aws.testing import LocalAws

__all__ = ["aws", "postgres_database", "postgres_server"]


@pytest.fixture
def aws() -> Iterator[LocalAws]:
    """A local AWS whose time passes when the test says so."""
    from localsuite.aws.testing import local_aws  # noqa: PLC0415  # moto is slow to import

    with local_aws() as running:
        yield running
