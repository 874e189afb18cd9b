"""Does everything that a rule says really happen: targets, limits, cache, retries, canaries, low budgets?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.identity.store import get_project, update_project
from gateway.ledger.buckets import Scope, Window
from gateway.ledger.budget_store import Owner, create_budget
from gateway.settings import HedgeSettings
from gateway.upstream.hedging import SAMPLES_MIN
from tests.integration.gateway.overflow_rig import KEY, NOWHERE, opt_in
from tests.integration.gateway.rig import PATIENCE_S, Gateway, bearer, eventually, running, settings_for
from tests.support.factories import make_act
from tests.support.mock_process import MockVllm, OpenAiServer

# Nothing here depends on where keys and rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

POLICY: Final = """\
name: ruled
models:
  auto: {pools: [speculative, plain]}
  both: {pools: [speculative, plain]}
external:
  outside:
    model: gpt-4o-mini
    api_base: OUTSIDE
    api_key: elsewhere
    max_model_len: 128000
    rates: {input: "1.50", cached_input: "0.75", output: "6"}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 64
rules:
  - {name: by-tag, when: {tag: {batch: [nightly, weekly]}}, use: speculative}
  - {name: by-tenant, when: {tenant: umbrella}, use: [speculative, plain]}
  - {name: by-tools, when: {task: chat, tools: true}, use: [speculative, plain]}
  - {name: by-length, when: {task: chat, input_tokens: {min: 500, max: 900}}, use: [speculative, plain]}
  - {name: by-format, when: {task: chat, format: json_object}, use: [speculative, plain]}
  - {name: by-class, when: {task: chat, latency_class: flex}, use: [speculative, plain]}
  - {name: by-hour, when: {task: structured, time: HOURS}, use: [plain]}
  - {name: away, when: {task: structured, model: both}, use: [outside, plain]}
  - {name: warmer, when: {task: qa}, cache: {temperature_max: 0.5}}
  - {name: uncached, when: {task: translation}, cache: {enabled: false}}
  - {name: once, when: {task: math}, attempts_max: 1}
  - name: canary
    when: {task: code}
    use: [speculative]
    canary: {shares: [{percent: 50, use: [plain]}]}
  - {name: not-dear, when: {task: creative}, limits: {output_usd_per_million: 0.5}}
  - {name: too-cheap, when: {task: brainstorming}, limits: {output_usd_per_million: 0.1}}
  - {name: refuses, when: {task: summarization}, budget_low: {at_percent: 50, then: refuse}}
  - name: saves
    when: {task: rewriting}
    use: [plain, speculative]
    budget_low: {at_percent: 50, then: cheaper}
  - {name: tells, when: {task: classification}, budget_low: {at_percent: 50, then: alert}}
  - {name: twice, when: {model: both, nature: creative}, hedging: true}
"""


def policy(home: Path, outside: str = NOWHERE) -> Path:
    hour = datetime.now(UTC).hour  # noqa: TID251 - the gateway goes by the same
    hours = f"{{from_hour: {hour}, to_hour: {(hour + 2) % 24}}}"
    path = home / "ruled.yaml"
    path.write_text(POLICY.replace("OUTSIDE", outside).replace("HOURS", hours))
    return path


@pytest.fixture
async def ruled(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Gateway]:
    keys = {"elsewhere": KEY}
    async with running(settings_for(home, urls, policy=policy(home), external_keys=keys)) as gateway:
        yield gateway


async def ask(gateway: Gateway, task: str, content: str = "Hello", **fields: Any) -> httpx.Response:
    headers = {"x-tollgate-task": task, **fields.pop("headers", {})}
    return await gateway.chat(content, headers=headers, **fields)


async def decision(gateway: Gateway, answer: httpx.Response) -> dict[str, Any]:
    await eventually(lambda: not gateway.services.spool.unshipped_count)
    headers = {"authorization": answer.request.headers["authorization"]}
    path = f"/v1/receipts/{answer.headers['x-request-id']}"
    found: dict[str, Any] = (await gateway.client.get(path, headers=headers)).json()["decision"]
    return found


TOOL: Final = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


DECIDED: Final[list[tuple[str, str | None, str, dict[str, Any]]]] = [
    ("chat", None, "plain", {}),
    ("chat", "by-tools", "speculative", {"tools": [TOOL], "tool_choice": "none"}),
    ("chat", "by-length", "speculative", {"content": "long " * 500}),
    ("chat", "by-format", "speculative", {"response_format": {"type": "json_object"}}),
    ("chat", "by-class", "speculative", {"service_tier": "flex"}),
    ("structured", "by-hour", "plain", {}),
    ("creative", "not-dear", "speculative", {}),
    ("extraction", None, "speculative", {}),
]


async def test_a_rule_decides_and_the_receipt_names_it(ruled: Gateway) -> None:
    for task, rule, pool, fields in DECIDED:
        answer = await ask(ruled, task, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-tollgate-pool"] == pool, rule
        told = await decision(ruled, answer)
        assert (told["rule"], told["branch"]) == (rule, None)
        if rule == "not-dear":
            reason = "its output costs 0.60 USD per million tokens, the rule allows 0.50"
            assert told["drops"] == [{"target": "plain", "reason": reason}]


async def test_who_asks_counts_and_a_change_of_tags_is_obeyed(ruled: Gateway) -> None:
    other = bearer(await ruled.issue_key("umbrella"))
    answer = await ask(ruled, "chat", headers=other)
    assert (await decision(ruled, answer))["rule"] == "by-tenant"
    assert (await ask(ruled, "chat")).headers["x-tollgate-pool"] == "plain"
    services = ruled.services
    async with services.sessions() as session:
        project = await get_project(session, ruled.project_id)
        await update_project(session, project, act=make_act(services.clock), tags={"batch": "weekly"})
        await session.commit()
    headers = bearer(ruled.key)
    await eventually(lambda: services.keys.authenticate(headers).fixed_tags)
    # What the caller says about itself is not what an operator fixed.
    answer = await ask(ruled, "chat", metadata={"batch": "daily"})
    assert answer.headers["x-tollgate-pool"] == "speculative"
    assert (await decision(ruled, answer))["rule"] == "by-tag"


async def test_a_rule_says_what_the_cache_takes(ruled: Gateway, speculative: MockVllm) -> None:
    for task, second in (("qa", "hit"), ("translation", "bypass"), ("extraction", "bypass")):
        temperature = 0 if task == "translation" else 0.4
        statuses = [(await ask(ruled, task, f"Why {task}?", temperature=temperature)) for _ in range(2)]
        assert [each.headers["x-tollgate-cache"] for each in statuses][1] == second, task


async def test_an_answer_is_only_found_again_under_a_rule_with_the_same_targets(ruled: Gateway) -> None:
    for status in ("miss", "hit"):
        for task, pool in (("structured", "plain"), ("math", "speculative")):
            answer = await ask(ruled, task, "The same question", temperature=0)
            headers = answer.headers
            assert (headers["x-tollgate-cache"], headers["x-tollgate-pool"]) == (status, pool), task


async def test_a_rule_says_how_often_is_tried(ruled: Gateway, speculative: MockVllm) -> None:
    speculative.fault("status", 500)
    answer = await ask(ruled, "math")
    assert answer.status_code in {500, 502}, answer.text
    assert len(await ruled.rows(1)) == 1
    assert (await ask(ruled, "extraction")).headers["x-tollgate-pool"] == "plain"


async def test_a_canary_takes_its_share_of_conversations_and_keeps_them(ruled: Gateway) -> None:
    found = {}
    for number in range(24):
        turns = [{"role": "user", "content": f"Conversation {number}"}]
        first = await ask(ruled, "code", messages=turns)
        turns += [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": f"More {number}"}]
        second = await ask(ruled, "code", messages=turns)
        assert second.headers["x-tollgate-pool"] == first.headers["x-tollgate-pool"]
        found[number] = first
    pools = [answer.headers["x-tollgate-pool"] for answer in found.values()]
    # 50 %: fewer than 3 of 24 would happen once in 80,000 times, and the names are the same each time.
    assert 3 <= pools.count("plain") <= 21
    for pool, branch in (("plain", "canary"), ("speculative", None)):
        told = await decision(ruled, found[pools.index(pool)])
        assert (told["rule"], told["branch"]) == ("canary", branch)
        assert [each["target"] for each in told["candidates"]] == [pool]


async def test_where_nothing_is_cheap_enough_the_answer_says_so(ruled: Gateway) -> None:
    answer = await ask(ruled, "brainstorming")
    assert answer.status_code == 403
    message = answer.json()["error"]["message"]
    assert "by rule 'too-cheap'" in message
    assert "the rule allows 0.10" in message


async def budget(gateway: Gateway, usd_nanos: int) -> None:
    services = gateway.services
    before = services.pipeline._budgets.book
    async with services.sessions() as session:
        await create_budget(
            session,
            "small",
            owner=Owner(Scope.TENANT, gateway.tenant_id, gateway.tenant_id),
            window=Window.MONTH,
            limit_usd_nanos=usd_nanos,
            is_hard=False,
            act=make_act(services.clock),
        )
        await session.commit()
    await eventually(lambda: services.pipeline._budgets.book is not before)


async def test_a_low_budget_refuses_saves_or_tells_as_the_rule_says(
    ruled: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = ("summarization", "rewriting", "classification")
    await budget(ruled, 10_000)
    first = [await ask(ruled, task, max_tokens=1) for task in tasks]
    assert [each.status_code for each in first] == [200, 200, 200]
    assert first[1].headers["x-tollgate-pool"] == "plain"
    # Dear enough that more than half is used, whether it is booked already or not.
    await ask(ruled, "extraction", max_tokens=60)
    for _ in range(2):
        refused, saved, told = [await ask(ruled, task, max_tokens=1) for task in tasks]
        assert (refused.status_code, refused.headers["x-should-retry"]) == (402, "false")
        error = refused.json()["error"]
        assert error["code"] == "budget_exceeded"
        assert "% of the budget 'small' are used, and rule 'refuses'" in error["message"]
        assert "It begins anew at 20" in error["message"]
        assert (saved.status_code, saved.headers["x-tollgate-pool"]) == (200, "speculative")
        assert told.status_code == 200
        await eventually(lambda: not ruled.services.spool.unshipped_count)
    assert (await decision(ruled, saved))["branch"] == "budget_low"
    assert (await decision(ruled, told))["budget_low"] == "alert"
    lines = [each.getMessage() for each in caplog.records if "policy rule tells" in each.getMessage()]
    assert len(lines) == 1
    assert "of the budget small are used (alert)" in lines[0]
    page = (await ruled.client.get("/metrics", headers=ruled.admin)).text
    assert 'tollgate_budget_low_total{rule="saves",then="cheaper"} 2.0' in page
    assert 'tollgate_budget_low_total{rule="refuses",then="refuse"} 2.0' in page
    version = ruled.services.pipeline.routing.policy.version
    assert f'tollgate_policy_refusals_total{{code="budget_exceeded",version="{version}"}} 2.0' in page


async def test_a_rule_leads_outside_whom_the_owner_lets(
    home: Path, urls: dict[str, list[str]], outside: OpenAiServer
) -> None:
    path = policy(home, outside.api_base)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "by-hour" not in line))
    settings = settings_for(home, urls, policy=path, external_keys={"elsewhere": KEY})
    async with running(settings) as gateway:
        inside = await ask(gateway, "structured", model="both")
        assert inside.headers["x-tollgate-pool"] == "plain"
        assert {"target": "outside", "reason": "requests of this tenant stay inside the company"} in (
            await decision(gateway, inside)
        )["drops"]
        await opt_in(gateway)
        away = await ask(gateway, "structured", model="both")
        assert (away.status_code, away.headers["x-tollgate-pool"]) == (200, "outside")
        told = await decision(gateway, away)
        assert [each["target"] for each in told["candidates"]] == ["outside", "plain"]


async def test_a_rule_turns_hedging_on(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, speculative: MockVllm
) -> None:
    urls = {"speculative": [speculative.url], "plain": [plain.url, speculative.url]}
    settings = settings_for(
        home,
        urls,
        policy=policy(home),
        external_keys={"elsewhere": KEY},
        hedging=HedgeSettings(ratio=0, quantile=0.5, delay_s_min=0.3),
    )
    async with running(settings) as gateway:
        registry = gateway.services.registry
        await eventually(lambda: registry.snapshot("plain").ready_count == 2)
        for _ in range(SAMPLES_MIN):
            assert (await ask(gateway, "chat", model="both", stream=True)).status_code == 200
        hedging = gateway.services.pipeline.dispatcher.hedging
        assert hedging is not None
        made = hedging.allowance.made
        for mock in (plain, speculative):
            mock.fault("hold")
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(ask(gateway, "chat", model="both", stream=True))
            for mock in (plain, speculative):
                await asyncio.to_thread(mock.wait_for, PATIENCE_S, in_flight=1)
            for mock in (plain, speculative):
                mock.clear()
            assert (await slow).status_code == 200
        assert hedging.allowance.made == made + 1
