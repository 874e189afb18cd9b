"""Do several gateways and several workers on one PostgreSQL and one Redis act as one product?"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.migrate import upgrade
from tests.e2e.site import CHAT, eventually
from tests.integration.gateway.databases import new_database
from tests.support.gateway_process import GatewayProcess, environment, json_of, run_cli
from tests.support.mock_process import MockVllm
from tests.support.own_process import run_here
from tests.support.servers import postgres_server, redis_server

ADMIN_KEY: Final = "tga-" + "a" * 40
FRESH_S: Final = 2.0
"""What the contract promises for a change to reach every process."""


@pytest.fixture(scope="module")
def _servers() -> Iterator[tuple[str, str]]:
    with postgres_server() as database, redis_server() as redis:
        yield database, redis


@pytest.fixture
def shared(_servers: tuple[str, str]) -> Iterator[dict[str, str]]:
    """Settings of gateways that share a new database and a Redis."""
    with new_database(_servers[0]) as database:
        upgrade(database)
        yield {
            "TOLLGATE_DATABASE_URL": database,
            "TOLLGATE_REDIS_URL": _servers[1],
            "TOLLGATE_ADMIN_KEY": ADMIN_KEY,
            "TOLLGATE_SECRET_KEY": "s" * 40,
            "TOLLGATE_FRESHNESS__POLL_INTERVAL_S": str(FRESH_S),  # what comes sooner came by notice
            "TOLLGATE_CACHE__LOOKUP_TIMEOUT_MS": "1000",
        }


@pytest.fixture
def urls(mocks: dict[str, MockVllm]) -> dict[str, list[str]]:
    return {name: [mock.url] for name, mock in mocks.items()}


Start = Callable[..., GatewayProcess]


@pytest.fixture
def start(tmp_path: Path, urls: dict[str, list[str]], shared: dict[str, str]) -> Iterator[Start]:
    """Starts gateways with folders of their own, and ends them."""
    running: list[GatewayProcess] = []

    def begin(*, is_measured: bool = False, **more: str) -> GatewayProcess:
        folder = tmp_path / f"gateway-{len(running)}"
        folder.mkdir()
        settings = {**shared, **more}
        running.append(GatewayProcess(folder, urls, settings=settings, is_measured=is_measured))
        return running[-1]

    yield begin
    for gateway in running:
        gateway.stop()


def new_key(gateway: GatewayProcess, tenant: str) -> str:
    """A key of a new tenant, as an operator makes one."""
    json_of(tell(gateway, "tenants", "create", tenant, "--json"))
    made: dict[str, str] = json_of(tell(gateway, "keys", "create", "--tenant", tenant, "--json"))
    return made["key"]


def tell(gateway: GatewayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of an operator of this gateway."""
    return run_here(gateway.environment, gateway.folder, *arguments)


def ask(gateway: GatewayProcess, key: str, **fields: Any) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": "Tell me a story"}], **fields}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{gateway.url}{CHAT}", json=body, headers=headers, trust_env=False, timeout=30)


def knows(gateway: GatewayProcess, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.get(f"{gateway.url}/v1/models", headers=headers, trust_env=False, timeout=30)
    return answer.status_code == 200


def spend(gateway: GatewayProcess) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    answer = httpx.get(f"{gateway.url}/admin/v1/reports/spend", headers=headers, trust_env=False, timeout=30)
    found: dict[str, Any] = answer.json()["total"]
    return found


def test_a_key_works_on_two_gateways_and_stops_on_both_within_two_seconds(start: Start) -> None:
    one, other = start(), start()
    key = new_key(one, "acme")
    eventually(lambda: knows(one, key) and knows(other, key), within_s=FRESH_S + 1)
    assert ask(one, key).status_code == ask(other, key).status_code == 200
    outcome = tell(one, "keys", "revoke", key)
    assert outcome.returncode == 0, outcome.stderr
    eventually(lambda: not knows(one, key) and not knows(other, key), within_s=FRESH_S)
    for gateway in (one, other):
        refused = ask(gateway, key)
        assert refused.status_code == 401
        assert "was revoked on" in refused.json()["error"]["message"]


def test_what_one_gateway_answered_the_other_gives_from_redis_and_both_books_agree(
    start: Start, mocks: dict[str, MockVllm]
) -> None:
    one, other = start(), start()
    key = new_key(one, "acme")
    eventually(lambda: knows(one, key) and knows(other, key))
    first = ask(one, key, temperature=0)
    assert first.headers["x-tollgate-cache"] == "miss"
    answered = mocks["plain"].stats()["requests"]

    def is_hit() -> bool:
        again = ask(other, key, temperature=0)
        assert again.json() == first.json()
        return again.headers["x-tollgate-cache"] == "hit"

    eventually(is_hit)
    assert mocks["plain"].stats()["requests"] <= answered + 1  # asked before Redis had it, at most once
    eventually(lambda: spend(one) == spend(other) and spend(one)["requests"] >= 2)
    assert spend(one)["charge_usd"] == first.headers["x-tollgate-cost-usd"]


def _worker_pids(gateway: GatewayProcess) -> set[int]:
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def _is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def _workers_met(gateway: GatewayProcess) -> set[str]:
    """Whose metrics a scraper gets, over connections of their own.

    Where a worker has just died, or begun, the kernel may reset a connection that it was about to give it.
    """
    met = set()
    for _ in range(40):
        try:
            page = httpx.get(f"{gateway.url}/metrics", trust_env=False, timeout=30).text
        except httpx.TransportError:
            continue
        met |= {line.partition('worker="')[2][0] for line in page.splitlines() if 'worker="' in line}
    return met


def test_two_workers_share_a_port_and_one_that_dies_is_replaced(start: Start) -> None:
    # Several workers run in few tests: this one's coverage counts.
    gateway = start(is_measured=True, TOLLGATE_WORKERS="2")
    key = new_key(gateway, "acme")
    workers = _worker_pids(gateway)
    assert len(workers) == 2
    assert _workers_met(gateway) == {"0", "1"}
    eventually(lambda: all(knows(gateway, key) for _ in range(8)))
    victim = min(workers)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not _is_running(victim))
    eventually(lambda: len(_worker_pids(gateway)) == 2 and _workers_met(gateway) == {"0", "1"}, within_s=60)
    assert "ended with status -9; starting another" in gateway.said()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(gateway, key).status_code, range(16)))
    assert answers == [200] * 16
    eventually(lambda: spend(gateway)["requests"] == 16)
    workers = _worker_pids(gateway)
    gateway.stop()
    assert gateway.process.returncode == 0
    assert not any(_is_running(pid) for pid in workers)


def test_a_revoked_key_stops_on_every_worker_within_two_seconds(start: Start) -> None:
    gateway = start(TOLLGATE_WORKERS="2")
    key = new_key(gateway, "acme")
    # A new connection each time: the kernel spreads them over the workers.
    eventually(lambda: all(knows(gateway, key) for _ in range(12)))
    outcome = tell(gateway, "keys", "revoke", key)
    assert outcome.returncode == 0, outcome.stderr
    eventually(lambda: not any(knows(gateway, key) for _ in range(12)), within_s=FRESH_S)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(gateway, key).status_code, range(16)))
    assert answers == [401] * 16


def test_workers_end_when_their_parent_is_killed(start: Start) -> None:
    gateway = start(TOLLGATE_WORKERS="2")
    workers = _worker_pids(gateway)
    gateway.kill9()
    eventually(lambda: not any(_is_running(pid) for pid in workers))


@pytest.mark.parametrize(
    ("more", "missing"),
    [
        ({}, "set PostgreSQL (TOLLGATE_DATABASE_URL=postgresql+asyncpg://…) and Redis"),
        ({"TOLLGATE_REDIS_URL": "redis://127.0.0.1:1/0"}, "set PostgreSQL (TOLLGATE_DATABASE_URL="),
        (
            {"TOLLGATE_DATABASE_URL": "postgresql+asyncpg://u@127.0.0.1:1/d"},
            "set Redis (TOLLGATE_REDIS_URL=redis://…), or TOLLGATE_WORKERS=1",
        ),
    ],
)
def test_several_workers_without_both_stores_are_refused(
    tmp_path: Path, more: Mapping[str, str], missing: str
) -> None:
    outcome = run_here(environment(tmp_path, {"TOLLGATE_WORKERS": "3", **more}), tmp_path, "serve")
    assert outcome.returncode == 2
    assert missing in outcome.stderr


def test_a_port_in_use_is_refused_with_what_to_do(start: Start, tmp_path: Path) -> None:
    first = start()
    second = {**first.environment, "TOLLGATE_PORT": str(first.port), "TOLLGATE_WORKERS": "2"}
    outcome = run_cli(second, tmp_path, "serve")
    assert outcome.returncode == 2
    assert "TOLLGATE_PORT chooses another port" in outcome.stderr
