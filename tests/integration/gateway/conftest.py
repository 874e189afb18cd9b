"""A gateway in front of two mock engines, on each kind of store, and one with the world outside behind it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.migrate import upgrade
from tests.integration.gateway.databases import EmptyDatabases, new_database
from tests.integration.gateway.overflow_rig import KEY, opt_in, overflowing
from tests.integration.gateway.rig import Gateway, choose_stores, running, settings_for
from tests.support.mock_process import OpenAiServer


@pytest.fixture(scope="session")
def databases(postgres: str) -> Iterator[EmptyDatabases]:
    """Migrated, empty databases on the PostgreSQL server."""
    with new_database(postgres) as template:
        upgrade(template)
        made = EmptyDatabases(postgres, template)
        yield made
        made.close()


@pytest.fixture(params=["embedded", pytest.param("shared", marks=pytest.mark.second_store)])
def home(home: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for `settings_for`: embedded SQLite and no Redis, or PostgreSQL and Redis."""
    if request.param == "embedded":
        yield home
        return
    with request.getfixturevalue("databases").one() as url:
        choose_stores(home, database_url=url, redis_url=request.getfixturevalue("redis"))
        yield home


@pytest.fixture
async def gateway(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Gateway]:
    async with running(settings_for(home, urls)) as started:
        yield started


@pytest.fixture(scope="session")
def _outside() -> Iterator[OpenAiServer]:
    with OpenAiServer("--api-key", KEY) as server:
        yield server


@pytest.fixture
def outside(_outside: OpenAiServer) -> OpenAiServer:
    """The world outside, behaving and with empty books."""
    _outside.reset()
    return _outside


@pytest.fixture
async def alone(home: Path, outside: OpenAiServer) -> AsyncIterator[Gateway]:
    """A gateway whose pools are all down, with a tenant that opted in."""
    async with running(overflowing(home, outside), is_up=False) as started:
        await opt_in(started)
        yield started


@pytest.fixture
async def busy(home: Path, outside: OpenAiServer, urls: dict[str, list[str]]) -> AsyncIterator[Gateway]:
    """A gateway whose pools are up, with a tenant that opted in."""
    async with running(overflowing(home, outside, urls)) as started:
        await opt_in(started)
        yield started
