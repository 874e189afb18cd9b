"""Does Redis keep answers, sealed, in each of its forms, and is it survived when it goes away?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.app import create_app
from gateway.cache.pipelined import PipelinedStorage, redis_storage
from gateway.cache.sealing import HALF
from gateway.cache.storage import CacheBroken, CacheStorage, RedisStorage
from gateway.errors import ConfigurationError
from gateway.redis_client import RedisClient, close_redis, redis_client, require_redis
from tests.integration.gateway.rig import bearer, lifespan_of, running, settings_for
from tests.support.servers import free_port, redis_server

KEY = bytes(range(64))
SECRET_ANSWER = b"the answer that nobody else may read"


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisClient]:
    client = redis_client(url)
    try:
        yield client
    finally:
        await close_redis(client)


@contextlib.asynccontextmanager
async def storing(client: RedisClient) -> AsyncIterator[tuple[CacheStorage, list[Exception]]]:
    """A storage at work, and what it could not keep."""
    storage, failures = redis_storage(client, within_s=5), list[Exception]()
    async with asyncio.TaskGroup() as group:
        work = group.create_task(storage.run(failures.append))
        await asyncio.sleep(0)
        yield storage, failures
        work.cancel()


@pytest.mark.parametrize(
    ("form", "kind"), [("redis", PipelinedStorage), ("cluster", RedisStorage), ("sentinel", RedisStorage)]
)
async def test_what_is_kept_is_found_in_each_form_of_redis(
    form: str, kind: type[CacheStorage], request: pytest.FixtureRequest
) -> None:
    async with connected(request.getfixturevalue(form)) as client:
        await require_redis(client)
        async with storing(client) as (storage, failures):
            assert type(storage) is kind
            assert await storage.get(KEY) is None
            assert storage.keep(KEY, SECRET_ANSWER, ttl_s=60)
            await storage.flush()
            assert await storage.get(KEY) == SECRET_ANSWER
            assert failures == []


async def test_what_lies_in_redis_shows_neither_key_nor_answer(redis: str) -> None:
    key = b"\1" * HALF + b"\2" * HALF
    async with connected(redis) as client, storing(client) as (storage, _):
        storage.keep(key, SECRET_ANSWER, ttl_s=60)
        await storage.flush()
        name = b"tollgate:answer:" + (b"\1" * HALF).hex().encode()
        sealed: Any = await client.get(name)
        assert SECRET_ANSWER not in sealed
        assert 0 < await client.ttl(name) <= 60
        # Who knows where it lies, but not the request, opens nothing; nor does a changed byte.
        assert await storage.get(b"\1" * HALF + b"\3" * HALF) is None
        await client.set(name, sealed[:-1] + bytes([sealed[-1] ^ 1]))
        assert await storage.get(key) is None
        await client.set(name, b"short")
        assert await storage.get(key) is None


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_redis_that_is_away_is_said_to_be_broken(scheme: str) -> None:
    async with connected(f"{scheme}://127.0.0.1:{free_port()}") as client:
        async with storing(client) as (storage, failures):
            is_taken = storage.keep(KEY, b"", ttl_s=1)
            with pytest.raises(CacheBroken):
                await storage.get(KEY)
            await storage.flush()
            assert len(failures) == is_taken
        with pytest.raises(ConfigurationError, match="Redis does not answer"):
            await require_redis(client)


@pytest.mark.parametrize("form", ["redis", "sentinel"])
async def test_a_redis_that_is_silent_is_not_waited_for(form: str, request: pytest.FixtureRequest) -> None:
    async with connected(request.getfixturevalue(form)) as client:
        await require_redis(client)
        storage = redis_storage(client, within_s=0.05)
        async with asyncio.TaskGroup() as group:
            work = group.create_task(storage.run(lambda _: None))
            await asyncio.sleep(0)
            await client.execute_command("CLIENT", "PAUSE", "1000", "ALL")
            with pytest.raises(CacheBroken):
                await storage.get(KEY)
            work.cancel()
        await asyncio.sleep(1.1)  # for the next test with this server


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1", "127.0.0.1:6379", "redis+sentinel://127.0.0.1:1", "redis://h:port/0", ""]
)
def test_an_address_that_is_none_of_redis_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="it looks like redis://host:6379/0") as caught:
        redis_client(url.replace("://", "://user:hunter2@"))
    assert "hunter2" not in str(caught.value)


async def test_a_gateway_whose_redis_ends_goes_on_without_a_cache(
    home: Path, urls: dict[str, list[str]]
) -> None:
    with contextlib.ExitStack() as stack:
        settings = settings_for(home, urls, redis_url=stack.enter_context(redis_server()))
        async with running(settings) as gateway:
            stack.close()  # Redis ends
            for _ in range(2):
                answer = await gateway.chat("Tell me a story", temperature=0)
                assert (answer.status_code, answer.headers["x-tollgate-cache"]) == (200, "miss")
            await gateway.rows(2)
            page = await gateway.client.get("/metrics", headers=bearer(gateway.services.admin_key))
            assert "tollgate_cache_failures_total 0.0" not in page.text
            assert "tollgate_cache_failures_total" in page.text


async def test_a_gateway_whose_redis_was_never_there_does_not_start(
    home: Path, urls: dict[str, list[str]]
) -> None:
    app = create_app(settings_for(home, urls, redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(ConfigurationError, match="is TOLLGATE_REDIS_URL its address"):
        async with lifespan_of(app):
            pass
