"""Does somebody who asks over the API what a policy would have cost get the command line's answer?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import Conflict
from gateway.jobs.backtest_store import UNHEARD_MS, begin_backtest, show_backtest
from gateway.jobs.backtest_tables import BacktestJob
from tests.integration.gateway.rig import Gateway, bearer, running, settings_for
from tests.integration.gateway.test_backtest import FROM, TO
from tests.load.backtest_truth import ALL_PLAIN, BY_NATURE, policy_of, policy_text
from tests.load.backtest_world import make_world, run_world
from tests.support.recorded import book_requests

pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)
SPAN = {"from": FROM.isoformat(), "to": TO.isoformat()}


class Asker:
    """Somebody who asks."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def ask(self, method: str, path: str = "", status: int = 200, **more: Any) -> Any:
        headers = more.pop("headers", self.gateway.admin)
        path = f"/admin/v1/policies/backtest{path}"
        answer = await self.gateway.client.request(method, path, headers=headers, **more)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def start(self, **more: Any) -> Any:
        asked = {"text": policy_text(ALL_PLAIN), "draws": 2, **SPAN, **more}
        return await self.ask("POST", "", 201, json=asked)

    async def over(self, name: str) -> Any:
        async with asyncio.timeout(100):
            while True:
                job = await self.ask("GET", f"/{name}")
                if job["state"] != "running":
                    return job
                await asyncio.sleep(0.05)


@pytest.fixture
async def asker(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Asker]:
    async with running(settings_for(home, urls)) as gateway:
        yield Asker(gateway)


async def test_from_the_question_to_the_result(asker: Asker) -> None:
    requests = run_world(make_world(2, seconds=60.0), policy_of(BY_NATURE), run="recorded").history.requests
    async with asker.gateway.services.sessions() as session:
        await book_requests(session, requests)
        await session.commit()
    started = await asker.start()
    assert (started["state"], started["stage"], started["error"]) == ("running", "starting", None)
    refused = await asker.ask("POST", "", 409, json={"text": policy_text(ALL_PLAIN), **SPAN})
    assert f"One backtest runs at a time, and {started['id']} is under way" in refused["error"]["message"]
    job = await asker.over(started["id"])
    assert (job["state"], job["error"]) == ("done", None), job
    result = job["result"]
    assert (result["object"], result["requests"]) == ("tollgate.backtest", len(requests))
    assert result["candidate"]["policy"] == started["candidate"] == job["candidate"]
    whole = result["groups"][0]
    assert whole["by"] == "all"
    assert float(whole["change"]["charge_usd"]["low"]) <= float(whole["change"]["charge_usd"]["estimate"])
    listed = await asker.ask("GET")
    assert [each["id"] for each in listed["data"]] == [started["id"]]
    assert "result" not in listed["data"][0]
    again = await asker.ask("POST", f"/{started['id']}/cancel")
    assert again["state"] == "done"
    # A span without a record fails, with the command line's words.
    empty = await asker.over(
        (await asker.start(to="2020-01-02T00:00:00Z", **{"from": "2020-01-01T00:00:00Z"}))["id"]
    )
    assert (empty["state"], empty["result"]) == ("failed", None)
    assert "a backtest needs 50 at least" in empty["error"]


async def test_it_is_ended_where_somebody_cancels_it(asker: Asker) -> None:
    started = await asker.start()
    await asker.ask("POST", f"/{started['id']}/cancel")
    job = await asker.over(started["id"])
    assert (job["state"], job["result"]) == ("cancelled", None)
    assert asker.gateway.services.backtests._child is None


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({}, 400, "either `version` or `text`"),
        ({"version": "ffffff"}, 404, "ffffff"),
        ({"text": "name: ["}, 400, "not valid YAML"),
        ({"text": "#" * 500_001}, 413, "at most 500,000 bytes"),
        ({"text": policy_text(ALL_PLAIN), "from": SPAN["to"], "to": SPAN["from"]}, 400, "before `to`"),
        ({"text": policy_text(ALL_PLAIN), "draws": 1000}, 400, "less than or equal to 60"),
        ({"text": policy_text(ALL_PLAIN), "from": "2026-11-20T00:00:00"}, 400, "timezone"),
    ],
)
async def test_what_cannot_be_asked(asker: Asker, asked: dict[str, Any], status: int, told: str) -> None:
    refused = await asker.ask("POST", "", status, json=asked)
    assert told in refused["error"]["message"]


async def test_viewers_look_and_operators_start(asker: Asker) -> None:
    keys = {}
    for role in ("viewer", "operator"):
        made = await asker.gateway.client.post(
            "/admin/v1/admin-keys", json={"name": role, "role": role}, headers=asker.gateway.admin
        )
        keys[role] = bearer(made.json()["key"])
    async with asyncio.timeout(20):
        for key in keys.values():
            while True:
                answer = await asker.gateway.client.get("/admin/v1/policies/backtest", headers=key)
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.02)
    await asker.ask("POST", "", 403, json={"version": "x"}, headers=keys["viewer"])
    await asker.ask("POST", "/bt_1/cancel", 403, headers=keys["viewer"])
    await asker.ask("POST", "/bt_1/cancel", 404, headers=keys["operator"])
    await asker.ask("GET", "/bt_1", 404, headers=keys["viewer"])


def job(name: str, at_ms: int) -> BacktestJob:
    return BacktestJob(
        id=name,
        slot=1,
        state="running",
        stage="starting",
        candidate="a@1",
        baseline="b@1",
        from_ms=0,
        to_ms=1,
        seed=0,
        draws=2,
        at_ms=at_ms,
        beat_ms=at_ms,
        actor_id="a",
        actor_name="a",
    )


async def test_one_whose_process_died_makes_room(asker: Asker) -> None:
    sessions = asker.gateway.services.sessions
    async with sessions() as session:
        await begin_backtest(session, job("bt_1", 1_000))
        await session.commit()
    async with sessions() as session:
        with pytest.raises(Conflict, match="bt_1 is under way"):
            await begin_backtest(session, job("bt_2", 1_000 + UNHEARD_MS - 1))
        await session.rollback()
    async with sessions() as session:
        await begin_backtest(session, job("bt_3", 1_000 + UNHEARD_MS))
        await session.commit()
    async with sessions() as session:
        dead = await show_backtest(session, "bt_1")
        assert (dead.state, dead.slot, dead.error) == ("failed", None, "the process that ran it has died")
        assert (await show_backtest(session, "bt_3")).state == "running"
