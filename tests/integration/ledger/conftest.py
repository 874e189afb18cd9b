"""Processes that share a budget, without a gateway around them: their slices, spools and books are real."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.migrate import upgrade
from tests.integration.gateway.databases import new_database
from tests.integration.ledger.site import Site


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    """The name of a migrated, empty database on the PostgreSQL server, to be copied."""
    with new_database(postgres) as url:
        upgrade(url)
        yield url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.second_store)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty, migrated database."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'books.db'}"
        upgrade(url)
        yield url
        return
    template = request.getfixturevalue("template")
    with new_database(request.getfixturevalue("postgres"), template=template) as url:
        yield url


@pytest.fixture
async def site(database_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """One database, one tenant, no process yet."""
    async with Site.opened(database_url, tmp_path) as found:
        yield found
