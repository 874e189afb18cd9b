"""Is what is explained what happens: the same rule, targets and refusals, live and on the command line?"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway.cli import app as program
from gateway.errors import GatewayError
from tests.integration.gateway.overflow_rig import KEY
from tests.integration.gateway.rig import Gateway, eventually, running, settings_for
from tests.integration.gateway.test_rules import budget, policy
from tests.support.mock_process import MockVllm

pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)
EXPLAIN = "/admin/v1/policies/explain"
DRAFT = """\
name: draft
models: {auto: {pools: [speculative, plain]}}
routes: {predictable: [speculative, plain], creative: [plain, speculative]}
max_tokens_default: 64
rules: [{name: all-plain, use: [plain]}]
"""


async def explained(gateway: Gateway, **asked: Any) -> dict[str, Any]:
    answer = await gateway.client.post(EXPLAIN, json=asked, headers=gateway.admin)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def receipt_of(gateway: Gateway, answer: httpx.Response) -> dict[str, Any]:
    await eventually(lambda: not gateway.services.spool.unshipped_count)
    found: dict[str, Any] = (
        await gateway.client.get(f"/v1/receipts/{answer.headers['x-request-id']}")
    ).json()
    return found


async def test_an_explanation_is_what_happens(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    settings = settings_for(home, urls, policy=policy(home), external_keys={"elsewhere": KEY})
    async with running(settings) as gateway:
        key_id = gateway.services.keys.authenticate({"authorization": f"Bearer {gateway.key}"}).key_id
        body = {"model": "auto", "messages": [{"role": "user", "content": "Write a poem about rain"}]}
        answer = await gateway.client.post("/v1/chat/completions", json=body)
        receipt = await receipt_of(gateway, answer)
        told = await explained(gateway, body=body, key_id=key_id)
        decided = receipt["decision"]
        for name in ("rule", "branch", "reason"):
            assert told[name] == decided[name]
        assert [each["target"] for each in told["candidates"]] == [
            each["target"] for each in decided["candidates"]
        ]
        assert [each["charge_usd_at_most"] for each in told["candidates"]] == [
            each["charge_usd_at_most"] for each in decided["candidates"]
        ]
        assert told["policy"] == answer.headers["x-tollgate-policy"]
        assert told["facts"]["tenant"] == "acme"
        assert told["facts"]["task"] == "creative"
        names = [rule["name"] for rule in told["rules"]]
        assert names[-1] == "not-dear"
        assert told["rules"][1] == {
            "name": "by-tenant",
            "is_matched": False,
            "why_not": ["tenant is acme, not umbrella"],
        }
        assert all(each["predicted"]["total_ms"] > 0 for each in told["candidates"])
        # By its receipt alone: no text was kept, and it is the same.
        again = await explained(gateway, receipt=receipt["id"])
        assert (again["rule"], again["reason"]) == (told["rule"], told["reason"])
        assert again["recorded"] == {"went_to": ["speculative"], "policy": told["policy"]}
        # A draft, a pool that is down, a refusal.
        draft = await explained(gateway, receipt=receipt["id"], policy=DRAFT)
        assert (draft["rule"], draft["candidates"][0]["target"]) == ("all-plain", "plain")
        down = await explained(gateway, given={"task": "extraction", "down": "speculative"})
        assert [each["target"] for each in down["candidates"]] == ["plain"]
        assert down["drops"] == [{"target": "speculative", "reason": "no replica is up"}]
        await budget(gateway, 1)
        refused = await explained(gateway, key_id=key_id, given={"task": "summarization"})
        assert refused["error"] is None, "nothing of it is used, as far as is known"
        refused = await explained(
            gateway, key_id=key_id, given={"task": "summarization", "budget_used_percent": 51}
        )
        assert (refused["error"]["status"], refused["rule"]) == (402, "refuses")
        for bad in (
            {"policy": "name: ["},
            {"given": {"down": "nowhere"}},
            {"receipt": "req_00", "body": body},
        ):
            answer = await gateway.client.post(EXPLAIN, json=bad, headers=gateway.admin)
            assert answer.status_code == 400, answer.text
        missing = await gateway.client.post(
            EXPLAIN, json={"receipt": "req_" + "0" * 32}, headers=gateway.admin
        )
        assert missing.status_code == 404
        await _by_command(gateway, home, receipt, key_id)


async def _by_command(gateway: Gateway, home: Path, receipt: dict[str, Any], key_id: str) -> None:
    settings = gateway.settings
    environment = {
        "TOLLGATE_STATE_DIR": str(settings.state_dir),
        "TOLLGATE_DATABASE_URL": settings.effective_database_url,
        "TOLLGATE_POLICY": str(settings.policy),
        "TOLLGATE_POOLS": str(settings.pools),
    }

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(program, ["policy", "explain", *arguments], env=environment)

    found = await asyncio.to_thread(run, "--receipt", receipt["id"], "--json")
    told = json.loads(found.stdout)
    assert (found.exit_code, told["rule"]) == (0, "not-dear")
    assert told["reason"] == receipt["decision"]["reason"]
    shown = await asyncio.to_thread(run, "--receipt", receipt["id"])
    assert "It went to speculative by ruled@" in shown.stdout
    by_key = await asyncio.to_thread(run, "--key", key_id, "--given", "task=chat", "--json")
    assert json.loads(by_key.stdout)["facts"]["project"] == "default"
    unknown = await asyncio.to_thread(run, "--key", "nobody", "--given", "task=chat")
    assert isinstance(unknown.exception, GatewayError)
