"""Does a part of the requests follow a candidate, and does the guard take a bad one back?"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import CanarySettings, HealthSettings
from tests.integration.gateway.rig import running, settings_for
from tests.integration.gateway.test_policy_life import Desk
from tests.support.mock_process import MockVllm
from tests.support.pool_files import policy_in_order

CANDIDATE = policy_in_order().replace("cache:\n", "cache:\n  enabled: false\n")
"""Sends what is creative, and so what says nothing, to the plain pool."""
CONTROL = CANDIDATE.replace("creative: [plain, speculative]", "creative: [speculative, plain]")
Answer = dict[str, Any]


class Canaries(Desk):
    """An operator of canaries."""

    async def start(self, **more: Any) -> Answer:
        told: Answer = await self.ask("POST", "/canary", 201, json={"text": CANDIDATE, "percent": 50} | more)
        return told

    async def status(self) -> Answer:
        found: Answer = await self.ask("GET", "/canary")
        return found

    async def followed_beside(self, version: str | None) -> None:
        """Wait until the gateway has this candidate, or none."""
        async with asyncio.timeout(60):
            while True:
                beside = self.gateway.services.pipeline.routing.beside
                if (None if beside is None else beside.routing.policy.version) == version:
                    return
                await asyncio.sleep(0.01)

    async def versions(self, count: int, **fields: Any) -> list[str]:
        """What so many conversations follow."""
        answers = [await self.gateway.chat(f"Hm {number}", **fields) for number in range(count)]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.headers["x-tollgate-policy"] for answer in answers]


@pytest.fixture
async def canaries(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Canaries]:
    policy = home / "policy.yaml"
    policy.write_text(CONTROL)
    settings = settings_for(
        home,
        urls,
        policy=policy,
        canary=CanarySettings(interval_s=0.1, units_min=5),
        # A pool that fails now and then, not one that is taken out.
        health=HealthSettings(idle_probe_s=86_400, stall_s=86_400, failures_in_a_row=1000, failure_ratio=1),
    )
    async with running(settings) as gateway:
        yield Canaries(gateway)


async def test_a_candidate_that_fails_is_taken_back_by_the_guard(
    canaries: Canaries, plain: MockVllm, speculative: MockVllm
) -> None:
    del speculative
    control = await canaries.active()
    started = await canaries.start(message="plain first")
    candidate = started["version"]
    await canaries.followed_beside(candidate)
    seen = set()
    async with asyncio.timeout(60):
        for number in itertools.count():
            if number % 4 == 0:
                plain.fault("status", 500, times=1)
            answer = await canaries.gateway.chat(f"Hm {number}")
            seen.add(answer.headers.get("x-tollgate-policy"))
            if canaries.gateway.services.pipeline.routing.beside is None:
                break
            await asyncio.sleep(0.01)  # the guard looks ten times a second
    assert seen >= {control, candidate}
    status = await canaries.status()
    ended = status["end"]
    assert ended is not None, status
    assert (ended["how"], ended["actor"]) == ("rolled_back", "guard")
    assert ended["evidence"]["harmed"] == "failures"
    assert await canaries.active() == control
    status = await canaries.status()
    assert status["verdict"] == ended["reason"]
    assert "of its requests failed" in ended["reason"]
    assert await canaries.active() == control
    told = await canaries.gateway.client.get(
        "/admin/v1/audit", params={"actor": "guard"}, headers=canaries.gateway.admin
    )
    (entry,) = told.json()["data"]
    assert (entry["action"], entry["actor"]["kind"]) == ("policy.canary_rolled_back", "guard")
    metrics = await canaries.gateway.client.get("/metrics", headers=canaries.gateway.admin)
    assert "tollgate_policy_canary_rollbacks_total 1.0" in metrics.text


async def test_a_request_names_the_version_that_it_followed(canaries: Canaries) -> None:
    control = await canaries.active()
    candidate = (await canaries.start())["version"]
    await canaries.followed_beside(candidate)
    first, again = await canaries.versions(20), await canaries.versions(20)
    assert set(first) == {control, candidate}
    assert first == again, "a conversation stays where it is"
    rows = await canaries.gateway.rows(40)
    assert [row.policy_version for row in rows] == first + again
    assert {row.policy_version: row.pool for row in rows} == {control: "speculative", candidate: "plain"}


async def test_from_the_start_to_the_promotion(canaries: Canaries) -> None:
    control = await canaries.active()
    candidate = (await canaries.start(message="plain first"))["version"]
    for status, path, body, why in (
        (409, "", {"version": candidate, "percent": 5}, "is under way"),
        (400, "", {"version": candidate, "percent": 60}, "at most 50%"),
        (400, "", {"percent": 5}, "either `version` or `text`"),
        (409, "/stop", {"number": 7}, "not 7"),
    ):
        refused = await canaries.ask("POST", f"/canary{path}", status, json=body)
        assert why in refused["error"]["message"]
    await canaries.followed_beside(candidate)
    stopped = await canaries.ask("POST", "/canary/stop", json={"message": "not today"})
    assert (stopped["end"]["how"], stopped["end"]["reason"]) == ("stopped", "not today")
    await canaries.followed_beside(None)
    refused = await canaries.ask("POST", "/canary/promote", 404)
    assert "There is no canary now" in refused["error"]["message"]

    order = {"version": candidate[-6:], "percent": 10, "stickiness": "key", "expected": control}
    refused = await canaries.ask("POST", "/canary", 404, json={**order, "version": "ffff"})
    started = await canaries.ask("POST", "/canary", 201, json={**order, "version": candidate})
    assert started["number"] == 2
    told = await canaries.ask("POST", "/canary/promote", json={"message": "good"})
    assert (told["active"]["version"], told["before"]) == (candidate, control)
    await canaries.followed(candidate)
    await canaries.followed_beside(None)
    audited = await canaries.gateway.client.get(
        "/admin/v1/audit", params={"action": "policy"}, headers=canaries.gateway.admin
    )
    assert sorted(one["action"] for one in audited.json()["data"]) == [
        "policy.canary",
        "policy.canary",
        "policy.canary_promoted",
        "policy.canary_stopped",
        "policy.draft",
        "policy.publish",
        "policy.seed",
    ]
    history = (await canaries.ask("GET", "/canary/history"))["data"]
    assert [one["end"]["how"] for one in history] == ["promoted", "stopped"]
    refused = await canaries.ask("POST", "/canary", 409, json={"version": candidate, "percent": 5})
    assert "is active already" in refused["error"]["message"]


async def test_another_activation_ends_it(canaries: Canaries) -> None:
    candidate = (await canaries.start())["version"]
    await canaries.followed_beside(candidate)
    await canaries.publish(CONTROL.replace("max_tokens_default: 256", "max_tokens_default: 300"))
    await canaries.followed_beside(None)
    assert (await canaries.status())["end"]["how"] == "superseded"


async def test_a_good_one_is_told_to_be_so_and_promoted_where_asked(canaries: Canaries) -> None:
    candidate = (await canaries.start(units=8, auto_promote=True))["version"]
    await canaries.followed_beside(candidate)
    await canaries.versions(40)
    await canaries.followed(candidate)
    end = (await canaries.status())["end"]
    assert (end["how"], end["actor"]) == ("promoted", "guard")
    assert "no harm found in" in end["reason"]


DROPPED = "tollgate-reference-speculative"


async def test_a_candidate_that_refuses_is_taken_back_and_never_promoted(canaries: Canaries) -> None:
    document = yaml.safe_load(CONTROL)
    del document["models"][DROPPED]
    candidate = (await canaries.start(text=yaml.safe_dump(document), units=8, auto_promote=True))["version"]
    await canaries.followed_beside(candidate)
    statuses = set()
    async with asyncio.timeout(60):
        for number in itertools.count():
            answer = await canaries.gateway.chat(f"Hm {number}", model=DROPPED)
            statuses.add(answer.status_code)
            if canaries.gateway.services.pipeline.routing.beside is None:
                break
            await asyncio.sleep(0.01)
    assert statuses == {200, 404}
    end = (await canaries.status())["end"]
    assert (end["how"], end["actor"]) == ("rolled_back", "guard")
    assert "were refused" in end["reason"]
    assert (end["evidence"]["harmed"], end["evidence"]["served_units"]) == ("failures", 0)
    assert await canaries.active() != candidate
    metrics = await canaries.gateway.client.get("/metrics", headers=canaries.gateway.admin)
    assert f'tollgate_policy_refusals_total{{code="model_not_found",version="{candidate}"}}' in metrics.text
