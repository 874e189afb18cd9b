"""One PostgreSQL, one Redis, three engines and two gateways for all fault tests of a worker."""

from collections.abc import Iterator

import pytest

from gateway.migrate import upgrade
from tests.e2e.faults.plant import POOLS, Plant, write_policy
from tests.integration.gateway.databases import new_database
from tests.support.breakable_servers import BreakablePostgres, BreakableRedis
from tests.support.mock_process import MockVllm
from tests.support.servers import folder_for, postgres_user
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture(scope="session")
def _postgres() -> Iterator[BreakablePostgres]:
    with folder_for("faults", postgres_user()) as folder:
        server = BreakablePostgres(folder)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def _redis() -> Iterator[BreakableRedis]:
    with folder_for("faults", None) as folder:
        server = BreakableRedis(folder)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def template(_postgres: BreakablePostgres) -> Iterator[str]:
    """The name of a migrated, empty database, to be copied."""
    with new_database(_postgres.url) as url:
        upgrade(url)
        yield url.rpartition("/")[2]


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, MockVllm]]:
    """The engines, by pool."""
    with MockVllm("--speculative", "3") as speculative, MockVllm() as plain, MockVllm() as third:
        yield dict(zip(POOLS, (speculative, plain, third), strict=True))


@pytest.fixture(scope="session")
def _plant(
    _postgres: BreakablePostgres,
    _redis: BreakableRedis,
    template: str,
    engines: dict[str, MockVllm],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    write_policy(folder / "policy.yaml")
    with new_database(_postgres.url, template=template) as database:
        proxies = {name: TcpProxy(engine.port) for name, engine in engines.items()}
        plant = Plant(
            folder=folder,
            postgres=_postgres,
            redis=_redis,
            engines=engines,
            database_url=database,
            database_proxy=TcpProxy(_postgres.port),
            engine_proxies=proxies,
        )
        try:
            yield plant
        finally:
            plant.stop()
            for proxy in (*proxies.values(), plant.database_proxy):
                proxy.stop()


@pytest.fixture
def plant(_plant: Plant) -> Iterator[Plant]:
    """Everything up and behaving, with nothing under way."""
    _as_new(_plant)
    yield _plant
    _as_new(_plant)


def _as_new(plant: Plant) -> None:
    for engine in plant.engines.values():
        engine.clear()
    # First: a replica that comes up is made to generate a token, which is no request of ours.
    plant.until_up()
    for engine in plant.engines.values():
        engine.wait_for(timeout_s=20, in_flight=0)
        engine.reset()
        engine.control(ttft_ms=0, tpot_ms=0, answer_tokens=16)
    for proxy in (plant.database_proxy, *plant.engine_proxies.values()):
        proxy.pass_on()
