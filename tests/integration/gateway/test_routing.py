"""Does each task reach the right pool, and is what the answer says about itself true?"""

import json
import re
from typing import Any

import httpx
import pytest

from gateway.inference import CREATIVE_TASKS, TaskType
from tests.integration.gateway.rig import CHAT, TEXT, Events, Gateway
from tests.support.mock_process import MockVllm

# Nothing here depends on where keys and rows are kept: the other files try both kinds of store.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
POLICY = re.compile(r"default@[0-9a-f]{12}")


@pytest.mark.parametrize("task", list(TaskType))
async def test_a_declared_task_decides_the_pool(gateway: Gateway, task: TaskType) -> None:
    answer = await gateway.chat("Hello", headers={"x-tollgate-task": task.value})
    pool = "plain" if task in CREATIVE_TASKS else "speculative"
    assert answer.status_code == 200
    assert answer.headers["x-tollgate-pool"] == pool
    assert answer.headers["x-tollgate-task"] == f"{task.value}; source=declared; confidence=1.00"
    (row,) = await gateway.rows(1)
    assert (row.pool, row.task, row.task_source) == (pool, task.value, "declared")
    assert row.nature == ("creative" if task in CREATIVE_TASKS else "predictable")


async def test_a_task_may_be_declared_in_the_metadata_and_the_header_wins(gateway: Gateway) -> None:
    by_metadata = await gateway.chat("Hello", metadata={"task": "extraction", "team": "search"})
    assert by_metadata.headers["x-tollgate-task"].startswith("extraction; source=declared")
    by_header = await gateway.chat(
        "Hello", metadata={"task": "extraction"}, headers={"x-tollgate-task": " Creative "}
    )
    assert by_header.headers["x-tollgate-task"].startswith("creative; source=declared")
    rows = await gateway.rows(2)
    assert rows[0].tags == {"task": "extraction", "team": "search"}


@pytest.mark.parametrize(
    ("content", "fields", "task", "pool"),
    [
        ("Extract all names: Bob met Ann.", {}, "extraction", "speculative"),
        ("Classify the sentiment: I love it", {}, "classification", "speculative"),
        ("Hi", {"response_format": {"type": "json_object"}}, "structured", "speculative"),
        ("Hi", {"structured_outputs": {"choice": ["yes", "no"]}}, "structured", "speculative"),
        ("Write a python function that adds", {}, "code", "speculative"),
        ("Write me a poem about rain", {}, "creative", "plain"),
        ("Brainstorm names for a cat", {}, "brainstorming", "plain"),
    ],
)
async def test_a_signal_decides_where_nothing_is_declared(
    gateway: Gateway, content: str, fields: dict[str, Any], *, task: str, pool: str
) -> None:
    answer = await gateway.chat(content, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollgate-task"].startswith(f"{task}; source=signal; confidence=0.")
    assert answer.headers["x-tollgate-pool"] == pool


UNSIGNED = "I feel lonely since my best friend moved away. What should I do?"


async def test_without_a_signal_the_classifier_decides_and_says_how_sure_it_is(gateway: Gateway) -> None:
    answer = await gateway.chat(UNSIGNED)
    told = re.fullmatch(r"chat; source=classifier; confidence=(\d\.\d\d)", answer.headers["x-tollgate-task"])
    assert told is not None, answer.headers["x-tollgate-task"]
    assert 0.5 < float(told[1]) <= 1
    assert answer.headers["x-tollgate-pool"] == "plain"
    answer = await gateway.chat("Why is the sky blue in the daytime?")
    assert answer.headers["x-tollgate-task"].startswith("qa; source=classifier; confidence=0.")
    assert answer.headers["x-tollgate-pool"] == "speculative"
    rows = await gateway.rows(2)
    assert [(row.task, row.task_source) for row in rows] == [("chat", "classifier"), ("qa", "classifier")]


async def test_an_unsure_classifier_leaves_it_to_the_policys_default_task(gateway: Gateway) -> None:
    answer = await gateway.chat("Hm")
    assert answer.headers["x-tollgate-task"] == "chat; source=default; confidence=0.00"
    assert answer.headers["x-tollgate-pool"] == "plain"


@pytest.mark.parametrize("field", [{"min_p": 0.1}, {"logit_bias": {"5": 10}}])
async def test_what_a_speculating_engine_refuses_never_goes_there(
    gateway: Gateway, speculative: MockVllm, field: dict[str, Any]
) -> None:
    before = speculative.stats()["requests"]
    answer = await gateway.chat("Extract all names: Bob", **field)
    assert answer.status_code == 200
    assert answer.headers["x-tollgate-pool"] == "plain"
    assert speculative.stats()["requests"] == before


async def test_a_model_that_only_one_pool_serves_goes_nowhere_else(gateway: Gateway) -> None:
    answer = await gateway.chat("Extract all names: Bob", model="tollgate-reference-plain")
    assert answer.headers["x-tollgate-pool"] == "plain"
    answer = await gateway.chat("Tell me a story", model="tollgate-reference-speculative")
    assert answer.headers["x-tollgate-pool"] == "speculative"
    refused = await gateway.chat("Hi", model="tollgate-reference-speculative", min_p=0.2)
    assert refused.status_code == 403
    assert refused.headers["x-should-retry"] == "false"
    assert "a speculating engine refuses min_p" in refused.json()["error"]["message"]
    await gateway.rows(2)


async def test_a_plain_answer_says_all_that_the_contract_promises(gateway: Gateway) -> None:
    answer = await gateway.chat("Extract all names: Bob", headers={"x-request-id": "mine-7"})
    told = answer.headers
    assert REQUEST_ID.fullmatch(told["x-request-id"])
    assert told["x-tollgate-task"] == "extraction; source=signal; confidence=0.95"
    assert told["x-tollgate-pool"] == "speculative"
    assert told["x-tollgate-replica"] == "speculative-0"
    assert POLICY.fullmatch(told["x-tollgate-policy"])
    assert told["x-tollgate-cache"] == "bypass"
    assert told["x-tollgate-max-tokens"] == "256"
    assert re.fullmatch(r"0\.\d{9}", told["x-tollgate-cost-usd"])
    assert "x-tollgate-dropped" not in told
    (row,) = await gateway.rows(1)
    assert row.request_id == told["x-request-id"]
    assert row.client_request_id == "mine-7"


async def test_a_stream_says_what_is_known_before_its_first_byte(gateway: Gateway) -> None:
    answer = await gateway.chat("Tell me a story", stream=True)
    told = answer.headers
    assert told["content-type"] == "text/event-stream; charset=utf-8"
    assert told["cache-control"] == "no-store"
    assert REQUEST_ID.fullmatch(told["x-request-id"])
    assert told["x-tollgate-task"] == "creative; source=signal; confidence=0.95"
    assert (told["x-tollgate-pool"], told["x-tollgate-replica"]) == ("plain", "plain-0")
    assert POLICY.fullmatch(told["x-tollgate-policy"])
    assert told["x-tollgate-cache"] == "bypass"
    assert told["x-tollgate-max-tokens"] == "256"
    assert "x-tollgate-cost-usd" not in told
    assert Events(answer.content).data[-1] == "[DONE]"


async def test_what_tenants_may_not_set_is_removed_and_named(gateway: Gateway, plain: MockVllm) -> None:
    forbidden = {
        "priority": 1,
        "cache_salt": "mine",
        "kv_transfer_params": {"do": 1},
        "ec_transfer_params": {"do": 1},
        "vllm_xargs": {"x": 1},
        "request_id": "r",
        "session_id": "s",
        "chat_template": "{{ x }}",
        "mm_processor_kwargs": {"a": 1},
    }
    headers = {"x-data-parallel-rank": "3", "x-session-id": "s"}
    answer = await gateway.chat("Hm", **forbidden, headers=headers, seed=7)
    assert answer.status_code == 200
    named = answer.headers["x-tollgate-dropped"].split(", ")
    assert sorted(named) == sorted([*forbidden, *headers])
    sent = plain.stats()["last_request"]
    assert not (set(forbidden) - {"cache_salt"}) & set(sent["body"])
    assert sent["body"]["cache_salt"] != "mine"
    assert sent["body"]["seed"] == 7
    assert not set(headers) & set(sent["headers"])


async def test_a_forbidden_field_is_found_behind_escapes_too(gateway: Gateway, plain: MockVllm) -> None:
    body = rb'{"model": "auto", "pri\u006frity": 5, "messages": [{"role": "user", "content": "Hm"}]}'
    answer = await gateway.client.post(CHAT, content=body)
    assert answer.headers["x-tollgate-dropped"] == "priority"
    assert "priority" not in plain.stats()["last_request"]["body"]


async def test_only_the_engines_business_is_sent_to_it(gateway: Gateway, plain: MockVllm) -> None:
    answer = await gateway.chat(
        "Hm",
        metadata={"team": "search"},
        user="ann@example.com",
        safety_identifier="ann",
        service_tier="flex",
        prompt_cache_key="k",
        store=True,
        temperature=0.3,
        seed=5,
        custom_field={"kept": [1, None]},
        headers={"cookie": "secret=1", "x-request-id": "mine"},
    )
    assert answer.status_code == 200
    sent = plain.stats()["last_request"]
    assert sent["body"] == {
        "model": "tollgate-reference",
        "messages": [{"role": "user", "content": "Hm"}],
        "temperature": 0.3,
        "seed": 5,
        "custom_field": {"kept": [1, None]},
        "cache_salt": sent["body"]["cache_salt"],
        "max_tokens": 256,
    }
    assert set(sent["headers"]) == {"host", "content-type", "accept", "content-length"}
    (row,) = await gateway.rows(1)
    assert row.service_tier == "flex"
    assert row.end_user is not None
    assert "ann" not in row.end_user


async def test_the_cache_salt_is_the_tenants_and_nobody_elses(gateway: Gateway, plain: MockVllm) -> None:
    async def salt_of(**more: Any) -> str:
        await gateway.chat("Hm", **more)
        salt: str = plain.stats()["last_request"]["body"]["cache_salt"]
        return salt

    mine = await salt_of()
    sister = await gateway.issue_key("acme", "another project")
    other = await gateway.issue_key("globex")
    assert re.fullmatch(r"[0-9a-f]{64}", mine)
    assert await salt_of(headers={"authorization": f"Bearer {sister}"}) == mine
    assert await salt_of(headers={"authorization": f"Bearer {other}"}) != mine


async def test_a_missing_bound_on_the_output_is_set_and_named_and_a_given_one_kept(
    gateway: Gateway, plain: MockVllm
) -> None:
    def sent() -> dict[str, Any]:
        found: dict[str, Any] = plain.stats()["last_request"]["body"]
        return {name: value for name, value in found.items() if "max" in name}

    answer = await gateway.chat("Hm")
    assert answer.headers["x-tollgate-max-tokens"] == "256"
    assert sent() == {"max_tokens": 256}
    for field in ("max_tokens", "max_completion_tokens"):
        answer = await gateway.chat("Hm", **{field: 3})
        assert "x-tollgate-max-tokens" not in answer.headers
        assert sent() == {field: 3}
        assert answer.json()["usage"]["completion_tokens"] == 3


async def test_completions_go_through_the_same_door(gateway: Gateway, plain: MockVllm) -> None:
    answer = await gateway.client.post(TEXT, json={"model": "auto", "prompt": "Once upon a time", "n": 2})
    assert answer.status_code == 200
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1]
    assert plain.stats()["last_request"]["path"] == TEXT
    (row,) = await gateway.rows(1)
    assert (row.endpoint, row.output_tokens) == ("completions", 32)


async def test_the_models_are_the_policys_aliases(gateway: Gateway) -> None:
    answer = await gateway.client.get("/v1/models")
    assert answer.status_code == 200
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
    assert [card["id"] for card in answer.json()["data"]] == [
        "auto",
        "tollgate-reference",
        "tollgate-reference-speculative",
        "tollgate-reference-plain",
    ]


async def test_an_unknown_path_and_a_wrong_method_say_what_there_is(gateway: Gateway) -> None:
    missing = await gateway.client.post("/v1/images", json={})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert "/v1/chat/completions" in missing.json()["error"]["message"]
    wrong: httpx.Response = await gateway.client.get(CHAT)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert wrong.headers["x-should-retry"] == "false"


async def test_the_body_that_is_sent_is_small_and_in_the_clients_order(
    gateway: Gateway, plain: MockVllm
) -> None:
    body = '{"seed":1,"messages":[{"role":"user","content":"Grüße 東京"}],"model":"auto","x":1e3}'
    await gateway.client.post(CHAT, content=body.encode(), headers={"x-tollgate-task": "chat"})
    sent = plain.stats()["last_request"]["body"]
    assert list(sent) == ["seed", "messages", "model", "x", "cache_salt", "max_tokens"]
    assert sent["messages"] == json.loads(body)["messages"]
