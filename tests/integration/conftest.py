"""Mock engines that live as long as a test worker, and databases that Alembic has made."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.migrate import upgrade
from tests.support.mock_process import MockVllm
from tests.support.servers import free_port, postgres_server, redis_server, sentinel_server


@pytest.fixture(scope="session")
def _speculative() -> Iterator[MockVllm]:
    with MockVllm("--speculative", "3") as mock:
        yield mock


@pytest.fixture(scope="session")
def _plain() -> Iterator[MockVllm]:
    with MockVllm() as mock:
        yield mock


@pytest.fixture
def speculative(_speculative: MockVllm) -> Iterator[MockVllm]:
    """The engine of the pool `speculative`, behaving and with empty books."""
    _as_new(_speculative)
    yield _speculative
    _as_new(_speculative)


@pytest.fixture
def plain(_plain: MockVllm) -> Iterator[MockVllm]:
    """The engine of the pool `plain`."""
    _as_new(_plain)
    yield _plain
    _as_new(_plain)


def _as_new(mock: MockVllm) -> None:
    mock.reset()
    mock.control(ttft_ms=0, tpot_ms=0, step_ms=0, answer_tokens=16, acceptance=0.6)


@pytest.fixture
def urls(speculative: MockVllm, plain: MockVllm) -> dict[str, list[str]]:
    """Where the engines are, by pool."""
    return {"speculative": [speculative.url], "plain": [plain.url]}


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "tollgate.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
def home(tmp_path: Path, _migrated: Path) -> Path:
    """A folder whose `state` holds a migrated, empty SQLite database."""
    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(_migrated, state / "tollgate.db")
    return tmp_path


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server's address, without any table."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis() -> Iterator[str]:
    """A Redis server's address."""
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A cluster of one node that owns every slot."""
    with redis_server(arguments=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]) as url:
        port = url.rpartition(":")[2].partition("/")[0]
        _cli(port, "cluster", "addslotsrange", "0", "16383")
        deadline_s = time.monotonic() + 30
        while "cluster_state:ok" not in _cli(port, "cluster", "info"):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield f"redis+cluster://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def sentinel() -> Iterator[str]:
    """A master that a sentinel watches."""
    with redis_server() as master, sentinel_server(master, name="answers") as address:
        yield f"redis+sentinel://{address}/answers/0"


def _cli(port: str, *arguments: str) -> str:
    command = ["/usr/bin/env", "redis-cli", "-p", port, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
