"""Do requests and limits survive whatever Redis does? It keeps answers, never money."""

from __future__ import annotations

import contextlib
import shutil
from typing import Any

import pytest
import redis

from gateway.ledger.buckets import Scope
from tests.e2e.faults.plant import STORY, Load, Plant, chat
from tests.e2e.site import eventually
from tests.support.books import tokens_booked, tokens_served


@pytest.fixture
def client(plant: Plant) -> Any:
    with redis.Redis.from_url(plant.redis.url) as found:
        yield found
    # Whatever was done to it: the next test's is a new one.
    plant.redis.kill9()
    plant.redis.start()


def _story(number: int) -> dict[str, Any]:
    """Every other one may be answered from the cache, so that Redis is asked."""
    temperature = {"temperature": 0} if number % 2 else {}
    return {**STORY, **temperature, "messages": [{"role": "user", "content": f"Tell me story {number % 10}"}]}


def test_requests_are_answered_and_limits_are_kept_whatever_redis_does(plant: Plant, client: Any) -> None:
    customer = plant.customer("wide/wide", "tight/tight")
    limit = 1_000_000
    plant.budget(Scope.TENANT, customer.tenant_id, 10**10)
    tight = plant.budget(Scope.PROJECT, customer.projects["tight"], limit)
    plant.until_known()
    for engine in plant.engines.values():
        engine.control(ttft_ms=20)
    keys = [customer.keys["wide"], customer.keys["tight"]]
    with Load(plant.pair, keys, clients=8, body_of=_story) as load:
        load.until_more(10)
        client.flushall()
        load.until_more(10)
        client.client_pause(2_000)
        load.until_more(10)
        client.execute_command("DEBUG", "SLEEP", "1")
        load.until_more(10)
        _refuse_writes(plant, client)
        load.until_more(10)
        client.config_set("maxmemory", "1")  # noeviction: every write is refused
        load.until_more(10)
        plant.redis.kill9()
        load.until_more(20)
        plant.redis.start()
        load.until_more(20)
    assert {status for key, status in load.statuses if key == keys[0]} == {200}
    assert {status for key, status in load.statuses if key == keys[1]} <= {200, 402}
    assert all("budget_exceeded" in said for said in load.refusals)
    plant.assert_right()
    assert plant.window(tight)["posted_usd_nanos"] <= limit
    rows = plant.rows(customer)
    assert {(row["state"], row["payer"]) for row in rows} == {("answered", "tenant")}
    assert len(rows) == load.answered
    assert tokens_booked(rows) == tokens_served(plant.engines.values())
    eventually(lambda: _is_cached_again(plant, customer.keys["wide"]))


def _refuse_writes(plant: Plant, client: Any) -> None:
    """MISCONF, as on a full disk: its snapshot cannot be written, because its folder is gone."""
    shutil.rmtree(plant.redis.data)
    client.config_set("save", "3600 1")
    client.set("something", "to save")

    def has_failed() -> bool:
        if client.info("persistence")["rdb_last_bgsave_status"] == "err":
            return True
        with contextlib.suppress(redis.ResponseError):  # one is in progress: the next look sees how it ended
            client.bgsave(schedule=True)
        return False

    eventually(has_failed)
    with pytest.raises(redis.ResponseError, match="MISCONF"):
        client.set("anything", "else")


def _is_cached_again(plant: Plant, key: str) -> bool:
    body = {**STORY, "temperature": 0, "messages": [{"role": "user", "content": "Tell me one more story"}]}
    return all(chat(gateway, key, body).headers["x-tollgate-cache"] == "hit" for gateway in plant.pair)
