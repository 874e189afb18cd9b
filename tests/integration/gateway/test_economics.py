"""Does routing follow what is measured: acceptance that changes, load, latency classes, constraints?"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.inference import TaskType
from tests.integration.gateway.rig import Gateway, eventually, running, settings_for
from tests.support.mock_process import MockVllm

ECONOMICS = """\
name: economic
models:
  auto: {{pools: [speculative, plain]}}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 64
cache: {{enabled: false}}
economics: {{enabled: true, exploration: {exploration}}}
"""


def policy(folder: Path, exploration: float = 0.2) -> Path:
    path = folder / "economic.yaml"
    path.write_text(ECONOMICS.format(exploration=exploration))
    return path


def paced(speculative: MockVllm, plain: MockVllm, *, acceptance: float) -> None:
    """A step that drafts takes half as long again; with guesses that are accepted it yields up to four."""
    speculative.control(step_ms=3.0, acceptance=acceptance, answer_tokens=24)
    plain.control(step_ms=2.0, answer_tokens=24)


async def pools_of(
    gateway: Gateway, count: int, *, content: str = "Extract all names: {}", **more: Any
) -> Counter[str]:
    """Where so many requests went, a few of them at a time."""
    found: Counter[str] = Counter()
    gate = asyncio.Semaphore(4)

    async def ask(number: int) -> None:
        async with gate:
            answer = await gateway.chat(content.format(number), **more)
            assert answer.status_code == 200, answer.text
            found[answer.headers["x-tollgate-pool"]] += 1

    await asyncio.gather(*(ask(number) for number in range(count)))
    return found


@pytest.fixture
def engines(speculative: MockVllm, plain: MockVllm) -> tuple[MockVllm, MockVllm]:
    return speculative, plain


async def test_routing_follows_acceptance_within_200_requests_and_back_again(
    home: Path, urls: dict[str, list[str]], engines: tuple[MockVllm, MockVllm]
) -> None:
    paced(*engines, acceptance=0.9)
    async with running(settings_for(home, urls, policy=policy(home))) as gateway:
        # Whatever goes to the plain pool tells how long its steps take, for any task.
        await pools_of(gateway, 20, content="Tell me a story about {}.")
        before = await pools_of(gateway, 60)
        assert before["speculative"] > before["plain"] * 2, (before, believed(gateway))
        engines[0].control(acceptance=0.0)
        await pools_of(gateway, 200)
        after = await pools_of(gateway, 40)
        assert after["plain"] > after["speculative"] * 2, (after, believed(gateway))
        engines[0].control(acceptance=0.9)
        await pools_of(gateway, 200)
        again = await pools_of(gateway, 40)
        assert again["speculative"] > again["plain"] * 2, (again, believed(gateway))


def believed(gateway: Gateway) -> list[str]:
    """For a failure's text."""
    economist = gateway.services.pipeline.routing.economist
    return [
        f"{pool}: {economist.outlook(pool, TaskType.EXTRACTION)} {economist.evidence(pool, 'extraction')}"
        for pool in ("speculative", "plain")
    ]
