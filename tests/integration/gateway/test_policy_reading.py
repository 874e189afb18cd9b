"""Do requests go on while somebody's YAML is read, and is what is too large refused before?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway.overflow_rig import KEY
from tests.integration.gateway.rig import Gateway, running, settings_for
from tests.support.pool_files import DEFAULT_POLICY

pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)
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


def with_rate(usd: str) -> str:
    return LEAVES + OUTSIDE.replace("RATE", usd)


async def posted(gateway: Gateway, path: str, **body: Any) -> tuple[int, Any]:
    answer = await gateway.client.post(POLICIES + path, json=body, headers=gateway.admin)
    return answer.status_code, answer.json()


async def test_the_loop_turns_while_a_policy_is_read(home: Path, urls: dict[str, list[str]]) -> None:
    rules = "".join(RULE.format(number) for number in range(2_000))
    text = f"{DEFAULT_POLICY.read_text()}rules:\n{rules}"
    async with running(settings_for(home, urls)) as gateway:
        for path, body in (
            ("/explain", {"policy": text, "given": {"task": "code"}}),
            ("", {"text": text}),
            ("/publish", {"text": text}),
            ("/canary", {"text": text, "percent": 5}),
        ):
            turns = 0
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(posted(gateway, path, **body))
                while not asking.done():
                    await asyncio.sleep(0)
                    turns += 1
            status, told = asking.result()
            assert status == 400
            assert "at most 200 items" in told["error"]["message"]
            assert turns > 50, f"{path}: the loop stood still"


async def test_what_is_too_large_is_refused_unread(home: Path, urls: dict[str, list[str]]) -> None:
    async with running(settings_for(home, urls)) as gateway:
        for path, field in (("/explain", "policy"), ("", "text"), ("/publish", "text")):
            status, told = await posted(gateway, path, **{field: "#" * 500_001})
            assert (status, told["error"]["code"]) == (413, "payload_too_large")
            assert "at most 500,000 bytes, this one 500,001" in told["error"]["message"]


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
