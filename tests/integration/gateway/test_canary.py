"""Does a part of the requests follow a candidate, and does the guard take a bad one back?"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import CanarySettings
from tests.integration.gateway.rig import running, settings_for
from tests.integration.gateway.test_policy_life import Desk
from tests.support.mock_process import MockVllm
from tests.support.pool_files import DEFAULT_POLICY

CANDIDATE = DEFAULT_POLICY.read_text().replace("cache:\n", "cache:\n  enabled: false\n")
"""Sends what is creative, and so what says nothing, to the plain pool."""
CONTROL = CANDIDATE.replace("creative: [plain, speculative]", "creative: [speculative, plain]")
Answer = dict[str, Any]


class Canaries(Desk):
    """An operator of canaries."""

    async def start(self, **more: Any) -> Answer:
        told: Answer = await self.ask("POST", "/canary", 201, json={"text": CANDIDATE, "percent": 50, **more})
        return told

    async def status(self) -> Answer:
        found: Answer = await self.ask("GET", "/canary")
        return found

    async def followed_beside(self, version: str | None) -> None:
        """Wait until the gateway has this candidate, or none."""
        async with asyncio.timeout(20):
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
        home, urls, policy=policy, canary=CanarySettings(interval_s=0.1, settle_s=0.1, units_min=5)
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
    for number in range(400):
        if number % 4 == 0:
            plain.fault("status", 500, times=1)
        answer = await canaries.gateway.chat(f"Hm {number}")
        seen.add(answer.headers.get("x-tollgate-policy"))
        if canaries.gateway.services.pipeline.routing.beside is None:
            break
    assert seen >= {control, candidate}
    ended = (await canaries.status())["end"]
    assert (ended["how"], ended["actor"]) == ("rolled_back", "guard")
    assert ended["evidence"]["harmed"] == "failures"
    assert await canaries.active() == control
