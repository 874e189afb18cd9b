"""A gateway in front of two mock engines, on each kind of store."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.migrate import upgrade
from tests.integration.gateway.databases import new_database
from tests.integration.gateway.rig import Gateway, choose_stores, running, settings_for


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    """The name of a migrated, empty database on the PostgreSQL server, to be copied."""
    with new_database(postgres) as url:
        upgrade(url)
        yield url.rpartition("/")[2]


@pytest.fixture(params=["embedded", "shared"])
def home(home: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for `settings_for`: embedded SQLite and no Redis, or PostgreSQL and Redis."""
    if request.param == "embedded":
        yield home
        return
    template = request.getfixturevalue("template")
    with new_database(request.getfixturevalue("postgres"), template=template) as url:
        choose_stores(home, database_url=url, redis_url=request.getfixturevalue("redis"))
        yield home


@pytest.fixture
async def gateway(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Gateway]:
    async with running(settings_for(home, urls)) as started:
        yield started
