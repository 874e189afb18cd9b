"""Do requests go on while somebody's YAML is read, and is what is too large refused before?"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

from backends import yaml_source
from gateway.errors import ConfigurationError
from gateway.routing.policy import parse_policy
from tests.integration.gateway.overflow_rig import KEY
from tests.integration.gateway.rig import Gateway, running, settings_for
from tests.support.pool_files import DEFAULT_POLICY

embedded = pytest.mark.parametrize("home", ["embedded"], indirect=True)
POLICIES = "/admin/v1/policies"
RULE = "  - {{name: r{0}, when: {{tenant: [t{0}]}}, use: [plain]}}\n"
OUTSIDE = """\
external:
  away:
    model: openai/gpt-4o
    api_key: elsewhere
    max_model_len: 9000
    rates: {input: "RATE", cached_input: "RATE", output: "1.00"}
"""
LEAVES = DEFAULT_POLICY.read_text().replace(
    "  auto:\n    pools: [speculative, plain]\n",
    "  auto:\n    pools: [speculative, plain]\n    overflow: [away]\n",
)


LARGE = f"{DEFAULT_POLICY.read_text()}rules:\n{''.join(RULE.format(number) for number in range(2_000))}"
"""Takes long to read, and has too many rules."""
MANY = 50
"""Turns of a loop that has nothing else to do come in thousands."""
_T = TypeVar("_T")


class Turns:
    """How often the loop turns while some thread reads YAML, as another thread sees it.

    Turns before and after do not count: a request that waits for the database lets the loop turn a lot.
    """

    def __init__(self) -> None:
        self.count = 0
        """All."""
        self.while_reading = 0
        self.looks = 0
        """At a thread that was reading."""
        self._is_over = threading.Event()

    async def of(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What the work comes to, with the loop turning beside it as often as it may."""
        watching = threading.Thread(target=self._watch)
        watching.start()
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(work)
                while not task.done():
                    await asyncio.sleep(0)
                    self.count += 1
            return task.result()
        finally:
            self._is_over.set()
            watching.join()

    def _watch(self) -> None:
        last: int | None = None
        while not self._is_over.is_set():
            before = self.count
            is_reading = any(map(_reads, sys._current_frames().values()))
            if not is_reading:
                last = None
            else:
                self.looks += 1
                # All between two looks at one reading, however long this thread waits for its turn.
                self.while_reading += 0 if last is None else max(0, before - last)
                last = self.count
            time.sleep(0.001)


def _reads(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == yaml_source.__file__:
            return True
        frame = frame.f_back
    return False


def with_rate(usd: str) -> str:
    return LEAVES + OUTSIDE.replace("RATE", usd)


async def posted(gateway: Gateway, path: str, **body: Any) -> tuple[int, Any]:
    answer = await gateway.client.post(POLICIES + path, json=body, headers=gateway.admin)
    return answer.status_code, answer.json()


@embedded
async def test_the_loop_turns_while_a_policy_is_read(home: Path, urls: dict[str, list[str]]) -> None:
    text = LARGE
    async with running(settings_for(home, urls)) as gateway:
        for path, body in (
            ("/explain", {"policy": text, "given": {"task": "code"}}),
            ("", {"text": text}),
            ("/publish", {"text": text}),
            ("/canary", {"text": text, "percent": 5}),
        ):
            turns = Turns()
            status, told = await turns.of(posted(gateway, path, **body))
            assert status == 400
            assert "at most 200 items" in told["error"]["message"]
            assert turns.looks > 2, f"{path}: nobody saw it read"
            assert turns.while_reading > MANY, f"{path}: the loop stood still"


async def test_a_reader_that_blocks_the_loop_would_be_seen() -> None:
    async def blocking() -> None:
        for _ in range(200):
            await asyncio.sleep(0.0001)  # as a request waits for the database
        with pytest.raises(ConfigurationError, match="at most 200 items"):
            parse_policy(LARGE, source="p.yaml", pools=())
        for _ in range(200):
            await asyncio.sleep(0.0001)

    turns = Turns()
    await turns.of(blocking())
    assert turns.looks > 2
    assert turns.count > MANY
    assert turns.while_reading == 0


@embedded
async def test_what_is_too_large_is_refused_unread(home: Path, urls: dict[str, list[str]]) -> None:
    async with running(settings_for(home, urls)) as gateway:
        for path, field in (("/explain", "policy"), ("", "text"), ("/publish", "text")):
            status, told = await posted(gateway, path, **{field: "#" * 500_001})
            assert (status, told["error"]["code"]) == (413, "payload_too_large")
            assert "at most 500,000 bytes, this one 500,001" in told["error"]["message"]


@embedded
async def test_a_drafts_own_rates_outside_are_explained(home: Path, urls: dict[str, list[str]]) -> None:
    active = home / "policy.yaml"
    active.write_text(with_rate("2.00"))
    settings = settings_for(home, urls, policy=active, external_keys={"elsewhere": KEY})
    async with running(settings) as gateway:

        async def most(policy: str | None) -> dict[str, str]:
            given = {"may_leave": True, "input_tokens": 1000, "max_tokens": 10}
            status, told = await posted(gateway, "/explain", policy=policy, given=given)
            assert status == 200, told
            return {each["target"]: each["charge_usd_at_most"] for each in told["candidates"]}

        now, dearer = await most(None), await most(with_rate("20.00"))
        assert float(dearer["away"]) > 9 * float(now["away"])
        assert dearer["plain"] == now["plain"]
        # What finance entered is so whatever a draft says.
        entered = await gateway.client.post(
            "/admin/v1/prices/away",
            json={"input": "3.00", "cached_input": "1.00", "output": "1.00"},
            headers=gateway.admin,
        )
        assert entered.status_code == 200, entered.text
        async with asyncio.timeout(20):
            while True:
                changed = await most(None)
                if changed != now:
                    break
                await asyncio.sleep(0.02)
        assert (await most(with_rate("20.00")))["away"] == changed["away"]
