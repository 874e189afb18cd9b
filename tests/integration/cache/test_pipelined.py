"""Does the shared connection to a real Redis keep what it promises, and come back after whatever happens?"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as blocking
from redis.asyncio import Redis

from gateway.cache.pipelined import LARGE_BYTES, PipelinedStorage
from gateway.cache.sealing import name_of, seal
from gateway.cache.storage import CacheBroken
from gateway.redis_client import close_redis, redis_client
from tests.support.breakable_servers import BreakableRedis
from tests.support.servers import free_port, redis_server

WITHIN_S = 5.0


def key(number: int) -> bytes:
    return number.to_bytes(32, "big") * 2


@contextlib.asynccontextmanager
async def storing(
    url: str, *, within_s: float = WITHIN_S
) -> AsyncIterator[tuple[PipelinedStorage, list[Exception]]]:
    """A storage at work, and what it could not keep."""
    client = redis_client(url)
    assert isinstance(client, Redis)
    storage, failures = PipelinedStorage(client, within_s=within_s), list[Exception]()
    try:
        async with asyncio.TaskGroup() as group:
            work = group.create_task(storage.run(failures.append))
            await asyncio.sleep(0)
            yield storage, failures
            work.cancel()
    finally:
        await close_redis(client)


async def is_kept(storage: PipelinedStorage, one: bytes, value: bytes) -> bool:
    assert storage.keep(one, value, ttl_s=60)
    await storage.flush()
    return await storage.get(one) == value


async def until_kept(storage: PipelinedStorage, one: bytes) -> None:
    """It is back: connections are opened a second apart."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(CacheBroken):
                if storage.keep(one, b"again", ttl_s=60) and await storage.get(one) == b"again":
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[BreakableRedis]:
    server = BreakableRedis(tmp_path)
    yield server
    server.stop()


async def test_many_at_once_each_find_their_own(redis: str) -> None:
    keys = [key(number) for number in range(1000, 1200)]  # no other test's: they share a Redis in any order
    kept = [None if number % 2 else b"answer %d" % number * number for number in range(len(keys))]
    async with storing(redis) as (storage, failures):
        for one, answer in zip(keys, kept, strict=True):
            if answer is not None:
                storage.keep(one, answer, ttl_s=60)
        assert await asyncio.gather(*(storage.get(one) for one in keys)) == kept
        assert failures == []


async def test_who_asks_again_at_once_finds_what_was_just_kept(redis: str) -> None:
    async with storing(redis) as (storage, _):
        storage.keep(key(1), b"just kept", ttl_s=60)
        assert await storage.get(key(1)) == b"just kept"


@pytest.mark.parametrize("size", [0, LARGE_BYTES, LARGE_BYTES + 1, 1_000_000])
async def test_answers_of_any_length_are_found(redis: str, size: int) -> None:
    async with storing(redis) as (storage, failures):
        assert await is_kept(storage, key(2), b"x" * size)
        assert failures == []


async def test_it_opens_what_the_gateway_before_it_kept(redis: str) -> None:
    with blocking.Redis.from_url(redis) as client:
        client.set(name_of(key(3)), seal(key(3), b"older"))
    async with storing(redis) as (storage, _):
        assert await storage.get(key(3)) == b"older"


async def test_password_user_and_database_of_the_address_count() -> None:
    with redis_server() as url, blocking.Redis.from_url(url) as admin:
        admin.execute_command("ACL", "SETUSER", "tollgate", "on", ">s3cret:/", "~tollgate:*", "+@all")
        admin.config_set("requirepass", "p@ss")
        place = url.removeprefix("redis://").removesuffix("/0")
        for login, database in ((":p%40ss", 0), ("tollgate:s3cret%3A%2F", 3)):
            async with storing(f"redis://{login}@{place}/{database}") as (storage, failures):
                assert await is_kept(storage, key(database), b"mine")
                assert failures == []
        with blocking.Redis.from_url(f"redis://:p%40ss@{place}/3") as client:
            assert [client.exists(name_of(key(number))) for number in (0, 3)] == [0, 1]
        async with storing(f"redis://:wrong@{place}/0") as (storage, _):
            with pytest.raises(CacheBroken, match=r"(?i)password"):
                await storage.get(key(0))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, vouched for by itself; its key lies beside it."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=t"
        " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), check=True, capture_output=True, cwd=tmp_path)
    return tmp_path / "cert.pem"


async def test_over_tls_and_only_to_whom_the_address_trusts(certificate: Path) -> None:
    port, secret = free_port(), certificate.with_name("key.pem")
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(secret)]
    with redis_server(arguments=[*options, "--tls-auth-clients", "no"]):
        url = f"rediss://127.0.0.1:{port}/0"
        async with storing(f"{url}?ssl_ca_certs={certificate}") as (storage, failures):
            assert await is_kept(storage, key(4), b"x" * 50_000)
            assert failures == []
        async with storing(url) as (storage, _):
            with pytest.raises(CacheBroken, match="CERTIFICATE_VERIFY_FAILED"):
                await storage.get(key(4))


async def test_the_shared_connection_is_one_and_is_closed_at_the_end(redis: str) -> None:
    with blocking.Redis.from_url(redis) as admin:
        before = _clients(admin)
        async with storing(redis) as (storage, _):
            await asyncio.gather(*(storage.get(key(number)) for number in range(50)))
            assert _clients(admin) == before + 1
        for _ in range(100):
            if _clients(admin) == before:
                break
            await asyncio.sleep(0.02)
        assert _clients(admin) == before


def _clients(admin: Any) -> int:
    return len(admin.client_list())


async def test_a_restarted_server_is_found_again(breakable: BreakableRedis) -> None:
    async with storing(breakable.url) as (storage, _):
        assert await is_kept(storage, key(5), b"before")
        breakable.kill9()
        with pytest.raises(CacheBroken):
            await asyncio.wait_for(_until_broken(storage), 20)
        assert storage.keep(key(5), b"x", ttl_s=60) in {False, True}
        breakable.start()
        await until_kept(storage, key(5))


async def _until_broken(storage: PipelinedStorage) -> None:
    while True:
        await storage.get(key(5))
        await asyncio.sleep(0.01)


async def test_a_connection_that_was_closed_while_idle_is_opened_at_once(redis: str) -> None:
    async with storing(redis) as (storage, failures):
        assert await storage.get(key(10_006)) is None
        await asyncio.sleep(1.1)  # a connection that ends within a second rests
        with blocking.Redis.from_url(redis) as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.1)
        assert await storage.get(key(10_006)) is None
        assert failures == []


async def test_a_server_that_does_not_answer_is_told_of_in_time_and_left_later(
    breakable: BreakableRedis,
) -> None:
    async with storing(breakable.url, within_s=0.5) as (storage, failures):
        assert await storage.get(key(7)) is None
        with blocking.Redis.from_url(breakable.url) as admin:
            admin.execute_command("CLIENT", "PAUSE", "5000", "ALL")
        storage.keep(key(7), b"x", ttl_s=60)
        with pytest.raises(CacheBroken, match="no answer within 500 ms"):
            await storage.get(key(7))
        assert failures == []
        async with asyncio.timeout(20):
            while not failures:  # noqa: ASYNC110 - a plain list
                await asyncio.sleep(0.05)
        assert [str(error) for error in failures] == ["Redis has not answered for 2 s"]
        await until_kept(storage, key(8))


async def test_writes_that_redis_refuses_are_told_and_look_ups_go_on(breakable: BreakableRedis) -> None:
    async with storing(breakable.url) as (storage, failures):
        assert await is_kept(storage, key(9), b"kept")
        with blocking.Redis.from_url(breakable.url) as admin:
            admin.config_set("maxmemory", "1")  # noeviction
            storage.keep(key(10), b"not kept", ttl_s=60)
            assert await storage.get(key(9)) == b"kept"
            assert len(failures) == 1
            assert "OOM" in str(failures[0])
            admin.config_set("maxmemory", "0")
        assert await is_kept(storage, key(10), b"kept")
