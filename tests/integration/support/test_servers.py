"""The servers that other tests stand on: they serve, they are alone, and they go away."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio

from tests.support import servers

ROOT = Path(__file__).resolve().parents[3]
ABANDON = """
import os, signal, sys, tempfile
from tests.support import servers
tempfile.tempdir = sys.argv[2]
manager = getattr(servers, sys.argv[1])()
print(manager.__enter__(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def query(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def is_open(port: int | None) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_postgres_serves_with_durable_commits_and_goes_away() -> None:
    with servers.postgres_server(settings={"max_connections": "17"}) as url:
        assert urlsplit(url).scheme == "postgresql+asyncpg"
        assert await query(url, "SHOW fsync") == "on"
        assert await query(url, "SHOW max_connections") == "17"
        assert await query(url, "SHOW TimeZone") == "UTC"
        folder = Path(str(await query(url, "SHOW data_directory"))).parent
        assert folder.is_dir()
    assert not is_open(urlsplit(url).port)
    assert not folder.exists()


async def test_two_postgres_servers_are_strangers() -> None:
    with servers.postgres_server() as one, servers.postgres_server() as other:
        await query(one, "CREATE TABLE only_here (id int)")
        assert await query(other, "SELECT to_regclass('only_here')") is None


async def test_redis_serves_without_persistence_and_goes_away() -> None:
    with servers.redis_server(arguments=["--maxmemory", "10mb"]) as url:
        async with redis.asyncio.from_url(url, decode_responses=True) as client:
            await client.set("key", "value")
            assert await client.get("key") == "value"
            assert await client.config_get("save") == {"save": ""}
            assert await client.config_get("maxmemory") == {"maxmemory": str(10 * 1024 * 1024)}
    assert not is_open(urlsplit(url).port)


@pytest.mark.parametrize("name", ["postgres_server", "redis_server"])
def test_a_server_ends_when_its_test_process_is_killed(name: str) -> None:
    # The server's folder stays after a SIGKILL, so it gets a parent that does not. Not pytest's tmp_path: the
    # postgres user may not enter that.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o711)
        outcome = subprocess.run(
            [sys.executable, "-c", ABANDON, name, parent],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert outcome.returncode == -signal.SIGKILL
        port = urlsplit(outcome.stdout.strip()).port
        deadline = time.monotonic() + 20
        while is_open(port):
            assert time.monotonic() < deadline, "the server outlived its test process"
            time.sleep(0.05)


def test_a_server_that_cannot_start_shows_its_log() -> None:
    with (
        pytest.raises(servers.ServerFailed, match="unrecognized configuration parameter"),
        servers.postgres_server(settings={"no_such_setting": "1"}),
    ):
        pytest.fail("it started")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(servers.ServerMissing, match="apt-get install redis-server"), servers.redis_server():
        pytest.fail("it started")
