"""Does the program start, stop and die without losing or inventing a row?"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import uvloop

from gateway.app import create_app
from gateway.migrate import upgrade
from gateway.server import make_server
from gateway.settings import Settings
from tests.e2e.site import RawClient, attempts, eventually, mark
from tests.support.gateway_process import GatewayProcess, environment, run_cli
from tests.support.mock_process import MockVllm
from tests.support.mock_vllm_exchange import Reply
from tests.support.pool_files import DEFAULT_POLICY, write_pools
from tests.support.servers import postgres_server

STORY: Final[dict[str, Any]] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Tell me a story"}],
    "stream": True,
}


@pytest.fixture
def urls(mocks: dict[str, MockVllm]) -> dict[str, list[str]]:
    return {name: [mock.url] for name, mock in mocks.items()}


def _spools(gateway: GatewayProcess) -> list[str]:
    return [path.name for path in (gateway.state_dir / "spool").iterdir()]


def test_a_killed_gateway_books_what_it_had_under_way_once_when_it_is_back(
    tmp_path: Path, urls: dict[str, list[str]], mocks: dict[str, MockVllm]
) -> None:
    done, lost = mark(), mark()
    mocks["plain"].control(tpot_ms=50, answer_tokens=400)
    with GatewayProcess(tmp_path, urls) as gateway, RawClient(gateway) as client, RawClient(gateway) as other:
        key = gateway.key
        other.ask({**STORY, "stream": False, "max_tokens": 1}, f"x-request-id: {done}")
        assert other.reply().status == 200
        client.ask({**STORY, "max_tokens": 400}, f"x-request-id: {lost}")
        client.read_until(b'"delta":{"content"', times=3)
        gateway.kill9()
        assert len(_spools(gateway)) == 1
    mocks["plain"].wait_for(aborted=1, in_flight=0)
    for _ in range(2):  # the second start finds nothing left to book
        with GatewayProcess(tmp_path, urls, is_measured=True) as again:
            assert again.key == key
            eventually(lambda: len(attempts(again)) >= 2)
            rows = attempts(again)
    assert len(rows) == 2
    by_name = {row["client_request_id"]: row for row in rows}
    assert (by_name[done]["state"], by_name[done]["payer"]) == ("answered", "tenant")
    row = by_name[lost]
    assert (row["state"], row["payer"], row["error_code"]) == ("interrupted", "platform", "gateway_died")
    assert (row["usage_source"], row["output_tokens"]) == ("estimated", 0)
    assert row["charge_usd_nanos"] == row["input_tokens"] * 150
    assert not _spools(again)


def test_a_stop_lets_a_stream_end_properly(
    tmp_path: Path, urls: dict[str, list[str]], mocks: dict[str, MockVllm]
) -> None:
    mocks["plain"].control(tpot_ms=50, answer_tokens=40)
    name = mark()
    replies: list[Reply] = []
    with GatewayProcess(tmp_path, urls) as gateway, RawClient(gateway) as client:
        client.ask({**STORY, "max_tokens": 40}, f"x-request-id: {name}")
        mocks["plain"].wait_for(in_flight=1)
        reading = threading.Thread(target=lambda: replies.append(client.reply()))
        reading.start()
        gateway.terminate()
        eventually(lambda: _refuses(gateway.port))
        assert gateway.process.poll() is None, "it left while a stream was running"
        reading.join(20)
        assert gateway.wait() == 0
        (reply,) = replies
        assert reply.is_complete
        events = reply.events()
        assert events[-1] == "[DONE]"
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        (row,) = attempts(gateway, client_request_id=name)
        assert (row["state"], row["payer"], row["output_tokens"]) == ("answered", "tenant", 40)
        assert not _spools(gateway)
        assert "Traceback" not in gateway.said()


def test_a_stop_waits_no_longer_than_it_may_and_what_it_cuts_is_not_the_tenants(
    tmp_path: Path, urls: dict[str, list[str]], mocks: dict[str, MockVllm]
) -> None:
    names = {"stream": mark(), "whole": mark()}
    settings = {"TOLLGATE_TIMEOUTS__DRAIN_S": "1"}
    with (
        GatewayProcess(tmp_path, urls, settings=settings) as gateway,
        RawClient(gateway) as client,
        RawClient(gateway) as other,
    ):
        mocks["plain"].control(tpot_ms=100, answer_tokens=400)
        mocks["speculative"].fault("hang")
        client.ask({**STORY, "max_tokens": 400}, f"x-request-id: {names['stream']}")
        client.read_until(b'"delta":{"content"', times=2)
        whole = {**STORY, "model": "tollgate-reference-speculative", "stream": False}
        other.ask(whole, f"x-request-id: {names['whole']}")
        mocks["speculative"].wait_for(in_flight=1)
        gateway.terminate()
        assert gateway.wait() == 0
        mocks["plain"].wait_for(in_flight=0, aborted=1)
        for name in names.values():
            (row,) = attempts(gateway, client_request_id=name)
            assert (row["state"], row["payer"]) == ("interrupted", "platform")
            assert row["error_code"] == "gateway_stopped"
        assert not _spools(gateway)


def _refuses(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_idle_gateway_stops_at_once_and_says_nothing_bad(
    tmp_path: Path, urls: dict[str, list[str]]
) -> None:
    with GatewayProcess(tmp_path, urls) as gateway, httpx.Client(trust_env=False) as kept:
        assert kept.get(f"{gateway.url}/healthz").status_code == 200  # its connection stays open
        gateway.terminate()
        assert gateway.wait() == 0
        for bad in ("Traceback", "ERROR", "Exception"):
            assert bad not in gateway.said()


def test_a_gateway_without_a_replica_is_alive_and_not_ready(tmp_path: Path) -> None:
    nowhere = ["http://127.0.0.1:9"]
    urls = {"speculative": nowhere, "plain": nowhere}
    with (
        GatewayProcess(tmp_path, urls, is_up=False) as gateway,
        httpx.Client(trust_env=False, base_url=gateway.url) as client,
    ):
        assert client.get("/healthz").json() == {"status": "ok"}
        ready = client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
        assert ready.json()["error"]["message"] == "Not ready: no replica of any pool is up."
        refused = client.post("/v1/chat/completions", json=STORY, headers=gateway.headers)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "no_target"


def test_a_replica_that_comes_up_later_is_found(tmp_path: Path) -> None:
    with MockVllm("--fault", "unhealthy") as mock:
        urls = {"speculative": [mock.url], "plain": [mock.url]}
        with (
            GatewayProcess(tmp_path, urls, is_up=False) as gateway,
            httpx.Client(trust_env=False, base_url=gateway.url) as client,
        ):
            assert client.get("/readyz").status_code == 503
            mock.clear()
            eventually(lambda: client.get("/readyz").status_code == 200)


# ------------------------------------------------------------------------------ starts that cannot succeed
def _start(folder: Path, **settings: str) -> tuple[int, str]:
    """Status and messages of `tollgate serve` that must fail by itself."""
    nowhere = ["http://127.0.0.1:9"]
    write_pools(folder / "pools", {"speculative": nowhere, "plain": nowhere})
    outcome = run_cli(environment(folder, settings), folder, "serve")
    return outcome.returncode, outcome.stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = _start(tmp_path, TOLLGATE_PORT=port)
    assert status == 2
    last = said.strip().splitlines()[-1]
    assert last.startswith("tollgate: ")
    assert f"127.0.0.1:{port}" in last
    assert "TOLLGATE_PORT" in last
    assert "Traceback" not in said


def test_a_setting_that_does_not_exist(tmp_path: Path) -> None:
    status, said = _start(tmp_path, TOLLGATE_TIMEOUTS__FIRST_TOKN_S="3")
    assert status == 2
    assert said == (
        "tollgate: unknown setting TOLLGATE_TIMEOUTS__FIRST_TOKN_S in the environment;"
        " did you mean TOLLGATE_TIMEOUTS__FIRST_TOKEN_S?\n"
    )


def test_a_setting_that_makes_no_sense(tmp_path: Path) -> None:
    status, said = _start(tmp_path, TOLLGATE_PORT="eighty")
    assert status == 2
    assert said.startswith("tollgate: setting 'port': Input should be a valid integer")


def test_an_unknown_key_in_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "tollgate.toml").write_text("[limits]\nbody_byte_max = 5\n")
    status, said = _start(tmp_path)
    assert status == 2
    assert "unknown setting 'limits.body_byte_max' in tollgate.toml" in said
    assert "did you mean limits.body_bytes_max?" in said


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


SECRETS: Final = {"TOLLGATE_SECRET_KEY": "s" * 40, "TOLLGATE_ADMIN_KEY": "tga-" + "a" * 40}


def test_postgresql_without_tables_and_then_with_them(
    tmp_path: Path, urls: dict[str, list[str]], postgres: str
) -> None:
    status, said = _start(tmp_path, TOLLGATE_DATABASE_URL=postgres)
    assert (status, "TOLLGATE_SECRET_KEY is not set" in said) == (2, True)
    settings = {"TOLLGATE_DATABASE_URL": postgres, **SECRETS}
    status, said = _start(tmp_path, **settings)
    assert status == 2
    last = said.strip().splitlines()[-1]
    assert last.startswith("tollgate: the database has no tables yet")
    assert last.endswith("run `tollgate migrate` first")
    assert "Traceback" not in said
    own = environment(tmp_path, settings)
    for arguments in (["migrate"], ["tenants", "create", "acme"]):
        assert run_cli(own, tmp_path, *arguments).returncode == 0
    issued = run_cli(own, tmp_path, "keys", "create", "--tenant", "acme").stdout.splitlines()[-1]
    with (
        GatewayProcess(tmp_path, urls, settings=settings) as gateway,
        httpx.Client(trust_env=False, base_url=gateway.url, timeout=30) as client,
    ):
        body = {"model": "auto", "messages": [{"role": "user", "content": "Extract all names: Bob"}]}
        answer = client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {issued}"})
        assert answer.status_code == 200
        gateway.stop()
        report = gateway.cli("report", "--by", "tenant,pool,task", "--json").stdout
        assert f'"charge_usd": "{answer.headers["x-tollgate-cost-usd"]}"' in report


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    url = "postgresql+asyncpg://postgres@127.0.0.1:9/postgres"
    status, said = _start(tmp_path, TOLLGATE_DATABASE_URL=url, **SECRETS)
    assert status == 2
    last = said.strip().splitlines()[-1]
    assert last.startswith("tollgate: the database cannot be used (postgresql+asyncpg://postgres@")
    assert "127.0.0.1:9" in last
    assert "Traceback" not in said


# -------------------------------------------------------------------------------------------- the socket
def test_small_writes_leave_at_once(tmp_path: Path) -> None:
    """Nagle's algorithm would hold the second small piece of a stream back for a client's delayed ACK."""
    nowhere = ["http://127.0.0.1:9"]
    settings = Settings(
        state_dir=tmp_path / "state",
        port=0,
        policy=DEFAULT_POLICY,
        pools=write_pools(tmp_path / "pools", {"speculative": nowhere, "plain": nowhere}),
    )
    settings.state_dir.mkdir()
    upgrade(settings.effective_database_url)
    server = make_server(create_app(settings), settings)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)

    async def option() -> int:
        await server.startup()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            while not server.server_state.connections:  # noqa: ASYNC110 - uvicorn has a set, not an event
                await asyncio.sleep(0.01)
            (connection,) = server.server_state.connections
            accepted = connection.transport.get_extra_info("socket")
            found: int = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            await writer.wait_closed()
            return found
        finally:
            await server.shutdown()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(option()) != 0
