"""Fixtures of the integration tests: a real PostgreSQL, a local AWS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from localsuite.testing import module_database, postgres_database, postgres_server

if TYPE_CHECKING:
    from localsuite.aws.testing import LocalAws

__all__ = [
    "aws",
    "knowledge_base_database",
    "module_database",
    "postgres_database",
    "postgres_server",
]


@pytest.fixture
def aws() -> Iterator[LocalAws]:
    """A local AWS whose time passes when the test says so."""
    from localsuite.aws.testing import local_aws  # noqa: PLC0415  # moto is slow to import

    with local_aws() as running:
        yield running


@pytest.fixture
async def knowledge_base_database(module_database: str) -> str:
    """A database without contents, migrated once a module: quicker than a new one for each test."""
    from knowledge_base.testing import empty_database  # noqa: PLC0415  # as above

    await empty_database(module_database)
    return module_database
