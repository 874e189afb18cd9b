"""What does the client get, and who pays, when an engine misbehaves?"""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.settings import RetrySettings, TimeoutSettings
from tests.integration.gateway.rig import Events, Gateway, eventually, running, settings_for
from tests.support.mock_process import MockVllm

# Nothing here depends on where keys and rows are kept: the other files try both kinds of store.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

IMPATIENT: Final = TimeoutSettings(connect_s=2, first_token_s=3, between_tokens_s=3, total_s=3)
EXTRACT: Final = "Extract all names: Bob met Ann."
"""Goes to the speculative pool first."""

# fault, its value, what the failed attempt's row says: error_code, status_code, usage_source
Failure = tuple[str, Any, str, int | None, str]
BEFORE_CONTENT: Final[list[Failure]] = [
    ("refuse", None, "upstream_unavailable", None, "none"),
    ("status", 503, "upstream_overloaded", 503, "none"),
    ("status", "429,2", "upstream_overloaded", 429, "none"),
    ("status", 500, "upstream_unavailable", 500, "none"),
    ("status", 404, "upstream_unavailable", 404, "none"),
    ("error_string_body", None, "upstream_unavailable", 401, "none"),
    ("die_before_first_chunk", None, "upstream_unavailable", None, "estimated"),
]
OF_STREAMS: Final[list[Failure]] = [
    ("error_first_event", None, "upstream_unavailable", None, "estimated"),
    ("error_before_first_content", None, "upstream_unavailable", None, "estimated"),
    ("half_event", 0, "upstream_unavailable", None, "estimated"),
    ("die_mid_stream", 0, "upstream_unavailable", None, "estimated"),
    ("garbage", "event", "upstream_protocol", None, "estimated"),
    ("garbage", None, "upstream_unavailable", None, "estimated"),
]
OF_WHOLE_ANSWERS: Final[list[Failure]] = [
    ("wrong_length", None, "upstream_unavailable", None, "estimated"),
    ("die_mid_stream", 3, "upstream_unavailable", None, "estimated"),
    ("half_event", 3, "upstream_unavailable", None, "estimated"),
    ("error_mid_stream", 3, "upstream_unavailable", 500, "none"),
    ("garbage", None, "upstream_protocol", None, "estimated"),
]
HANGS: Final = [("hang", None), ("stall_before_first", 60), ("slow_headers", 60)]


def _cases(failures: list[Failure]) -> list[Any]:
    return [pytest.param(one, id=one[0] if one[1] is None else f"{one[0]}={one[1]}") for one in failures]


async def _is_answered_by_the_other_pool(gateway: Gateway, *, stream: bool) -> None:
    answer = await gateway.chat(EXTRACT, stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollgate-pool"] == "plain"
    assert answer.headers["x-tollgate-replica"] == "plain-0"
    if stream:
        events = Events(answer.content)
        assert events.data[-1] == "[DONE]"
        assert "error" not in events.data[-2]
        roles = [data for data in events.data if '"role":"assistant"' in data]
        assert len(roles) == 1, "something of the failed attempt reached the client"
    else:
        assert answer.json()["choices"][0]["message"]["content"]


async def _books(gateway: Gateway, failure: Failure) -> None:
    first, second = await gateway.rows(2)
    assert first.request_id == second.request_id
    assert (first.attempt_number, first.pool, first.state, first.payer) == (
        1,
        "speculative",
        "failed",
        "platform",
    )
    assert (first.error_code, first.status_code, first.usage_source) == failure[2:]
    assert ((first.charge_usd_nanos or 0) > 0) == (first.usage_source == "estimated")
    assert (second.attempt_number, second.pool, second.state, second.payer) == (
        2,
        "plain",
        "answered",
        "tenant",
    )
    assert (second.error_code, second.status_code, second.usage_source) == (None, 200, "measured")


@pytest.mark.parametrize("failure", _cases(BEFORE_CONTENT + OF_STREAMS))
async def test_a_stream_that_fails_before_its_first_content_is_served_by_the_other_pool(
    gateway: Gateway, speculative: MockVllm, failure: Failure
) -> None:
    speculative.fault(failure[0], failure[1])
    await _is_answered_by_the_other_pool(gateway, stream=True)
    await _books(gateway, failure)


@pytest.mark.parametrize("failure", _cases(BEFORE_CONTENT + OF_WHOLE_ANSWERS))
async def test_a_whole_answer_that_fails_is_given_by_the_other_pool(
    gateway: Gateway, speculative: MockVllm, failure: Failure
) -> None:
    speculative.fault(failure[0], failure[1])
    await _is_answered_by_the_other_pool(gateway, stream=False)
    await _books(gateway, failure)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("fault", "value"), HANGS)
async def test_an_engine_that_hangs_is_given_up_and_let_go(
    home: Path, urls: dict[str, list[str]], speculative: MockVllm, *, fault: str, value: Any, stream: bool
) -> None:
    async with running(settings_for(home, urls, timeouts=IMPATIENT)) as gateway:
        speculative.fault(fault, value)
        await _is_answered_by_the_other_pool(gateway, stream=stream)
        # Its connection was closed: a real engine stops generating then.
        await asyncio.to_thread(speculative.wait_for, aborted=1, in_flight=0)
        await _books(gateway, (fault, value, "upstream_timeout", None, "estimated"))


async def test_creative_work_falls_back_to_the_speculative_pool(gateway: Gateway, plain: MockVllm) -> None:
    plain.fault("status", 500)
    answer = await gateway.chat("Tell me a story")
    assert (answer.status_code, answer.headers["x-tollgate-pool"]) == (200, "speculative")
    rows = await gateway.rows(2)
    assert [row.pool for row in rows] == ["plain", "speculative"]


async def test_another_replica_of_the_same_pool_is_tried_before_the_other_pool(
    home: Path, speculative: MockVllm, plain: MockVllm
) -> None:
    with MockVllm("--speculative", "3") as sister:
        urls = {"speculative": [speculative.url, sister.url], "plain": [plain.url]}
        async with running(settings_for(home, urls)) as gateway:
            registry = gateway.services.registry
            await eventually(lambda: registry.snapshot("speculative").ready_count == 2)
            speculative.fault("status", 500)
            sister.fault("status", 503)
            answer = await gateway.chat(EXTRACT)
            assert answer.headers["x-tollgate-pool"] == "plain"
            rows = await gateway.rows(3)
            assert [row.pool for row in rows] == ["speculative", "speculative", "plain"]
            assert [row.attempt_number for row in rows] == [1, 2, 3]
            assert {row.replica for row in rows[:2]} == {"speculative-0", "speculative-1"}
            sister.clear()
            answer = await gateway.chat(EXTRACT)
            assert answer.headers["x-tollgate-replica"] == "speculative-1"


async def test_when_nobody_answers_the_client_is_told_once_and_may_try_again(
    gateway: Gateway, speculative: MockVllm, plain: MockVllm
) -> None:
    speculative.fault("status", 500)
    plain.fault("status", 503)
    for stream in (False, True):
        answer = await gateway.chat(EXTRACT, stream=stream)
        assert answer.status_code == 503
        assert answer.headers["x-should-retry"] == "true"
        assert answer.headers["retry-after"] == "1"
        error = answer.json()["error"]
        assert error["type"] == "server_error"
        assert error["message"].startswith("The model could not answer (2 attempts")
        assert "127.0.0.1" not in answer.text, "addresses are internal"
    rows = await gateway.rows(4)
    assert {(row.state, row.payer, row.charge_usd_nanos) for row in rows} == {("failed", "platform", 0)}


async def test_with_no_replica_up_the_answer_is_503_with_retry_after(home: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    urls = {"speculative": [nowhere], "plain": [nowhere]}
    async with running(settings_for(home, urls), is_up=False) as gateway:
        answer = await gateway.chat("Hi")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["code"] == "no_target"
        assert "No replica" in answer.json()["error"]["message"]
        ready = await gateway.client.get("/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "overloaded")
        assert (await gateway.client.get("/healthz")).status_code == 200
        await gateway.rows(0)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_refusal_is_passed_on_and_costs_nothing(
    gateway: Gateway, speculative: MockVllm, plain: MockVllm, *, stream: bool
) -> None:
    plain_before = plain.stats()["requests"]
    answer = await gateway.chat("Extract all names: " + "word " * 3000, stream=stream)
    assert answer.status_code == 400
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["message"].startswith("This model's maximum context length is 2048 tokens.")
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "input_tokens",
        "BadRequestError",
    )
    assert plain.stats()["requests"] == plain_before, "a refused request was tried elsewhere"
    (row,) = await gateway.rows(1)
    assert (row.state, row.payer, row.usage_source) == ("failed", "platform", "none")
    assert (row.status_code, row.error_code) == (400, "upstream_rejected")
    assert (row.charge_usd_nanos, row.input_tokens, row.output_tokens) == (0, 0, 0)


async def test_a_refusal_inside_a_stream_is_a_refusal_too(home: Path, speculative: MockVllm) -> None:
    # The pool file of `plain` does not say that its engine speculates, so the gateway cannot know.
    urls = {"speculative": [speculative.url], "plain": [speculative.url]}
    async with running(settings_for(home, urls)) as gateway:
        for _ in range(4):  # more than it takes to eject a replica that fails
            answer = await gateway.chat("Tell me a story", stream=True, min_p=0.5)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["code"] == "BadRequestError"
            assert "min_p and logit_bias" in answer.json()["error"]["message"]
        assert gateway.services.registry.snapshot("plain").ready_count == 1
        rows = await gateway.rows(4)
        assert {(row.error_code, row.status_code, row.charge_usd_nanos) for row in rows} == {
            ("upstream_rejected", 400, 0)
        }


@pytest.mark.parametrize(
    ("fault", "value", "code"),
    [
        ("die_mid_stream", 3, "upstream_unavailable"),
        ("half_event", 3, "upstream_unavailable"),
        ("error_mid_stream", 3, "upstream_unavailable"),
        ("no_done", None, "upstream_unavailable"),
        ("stall_mid_stream", "3,60", "upstream_timeout"),
    ],
)
async def test_a_stream_that_fails_after_its_first_content_ends_with_an_error_and_is_not_begun_again(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, *, fault: str, value: Any, code: str
) -> None:
    async with running(settings_for(home, urls, timeouts=IMPATIENT)) as gateway:
        plain.control(tpot_ms=20)  # each event in a piece of its own
        plain.fault(fault, value)
        answer = await gateway.chat("Tell me a story", stream=True)
        assert answer.status_code == 200
        *before, last, done = Events(answer.content).data
        assert done == "[DONE]"
        error = json.loads(last)["error"]
        assert (error["type"], error["code"]) == ("server_error", code)
        assert "model" in error["message"]
        contents = [json.loads(data)["choices"][0]["delta"].get("content") for data in before]
        count = 16 if fault == "no_done" else 3
        assert contents[0] == ""  # the role
        assert len(contents) == 1 + count
        assert all(contents[1:])
        (row,) = await gateway.rows(1)
        assert (row.state, row.payer, row.pool) == ("interrupted", "platform", "plain")
        assert (row.error_code, row.status_code) == (code, 200)
        measured = fault == "no_done"  # the usage had come, only the end was missing
        assert row.usage_source == ("measured" if measured else "estimated")
        assert row.output_tokens == count
        assert row.ttft_ms is not None


async def test_an_error_that_comes_in_one_piece_with_the_content_may_still_fall_back(
    gateway: Gateway, plain: MockVllm
) -> None:
    plain.fault("coalesce", 100)
    plain.fault("error_mid_stream", 3)
    answer = await gateway.chat("Tell me a story", stream=True)
    # Nothing of it had reached the client.
    assert answer.headers["x-tollgate-pool"] == "speculative"
    first, second = await gateway.rows(2)
    assert (first.state, first.payer, second.state) == ("failed", "platform", "answered")


async def test_an_answer_that_is_whole_counts_even_if_its_connection_breaks_afterwards(
    gateway: Gateway, plain: MockVllm
) -> None:
    plain.fault("wrong_length")
    answer = await gateway.chat("Tell me a story", stream=True)
    assert Events(answer.content).data[-1] == "[DONE]"
    (row,) = await gateway.rows(1)
    assert (row.state, row.payer, row.usage_source, row.error_code) == (
        "answered",
        "tenant",
        "measured",
        None,
    )


@pytest.mark.parametrize(("fault", "value"), [("split", 7), ("coalesce", 5)])
async def test_however_the_engines_bytes_are_cut_the_client_gets_the_same_stream(
    gateway: Gateway, plain: MockVllm, *, fault: str, value: int
) -> None:
    async def said() -> list[str]:
        answer = await gateway.chat("Tell me a story", stream=True)
        return [
            json.loads(data)["choices"][0]["delta"]["content"] for data in Events(answer.content).data[:-1]
        ]

    usual = await said()
    plain.fault(fault, value)
    assert await said() == usual
    first, second = await gateway.rows(2)
    assert first.output_tokens == second.output_tokens == 16


async def test_a_replica_that_keeps_failing_is_left_alone_until_it_serves_again(
    gateway: Gateway, speculative: MockVllm
) -> None:
    speculative.fault("status", 500)
    for _ in range(4):
        assert (await gateway.chat(EXTRACT)).headers["x-tollgate-pool"] == "plain"
    rows = await gateway.rows(7)
    assert [row.pool for row in rows].count("speculative") == 3, "the fourth was spared"
    speculative.clear()
    registry = gateway.services.registry
    await eventually(lambda: registry.snapshot("speculative").ready_count)
    assert (await gateway.chat(EXTRACT)).headers["x-tollgate-pool"] == "speculative"


async def test_an_outage_is_not_multiplied_by_retries(
    home: Path, urls: dict[str, list[str]], speculative: MockVllm, plain: MockVllm
) -> None:
    retries = RetrySettings(ratio=0.25, floor_per_s=0)
    async with running(settings_for(home, urls, retries=retries)) as gateway:
        for engine in (speculative, plain):
            engine.fault("status", 503)  # busy, and so never ejected
        for _ in range(12):
            answer = await gateway.chat(EXTRACT)
            assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "true")
        rows = await gateway.rows(12 + 3)
        assert [row.attempt_number for row in rows].count(2) == 3, "a quarter of the requests so far"
        page = (await gateway.client.get("/metrics", headers=gateway.admin)).text
        assert "tollgate_retries_total 3.0" in page
        assert "tollgate_retries_refused_total 9.0" in page


async def test_operators_see_whose_breaker_is_open_and_why(gateway: Gateway, speculative: MockVllm) -> None:
    speculative.fault("status", 500)
    for _ in range(3):
        assert (await gateway.chat(EXTRACT)).status_code == 200
    answer = await gateway.client.get("/admin/v1/pools", headers=gateway.admin)
    by_name = {pool["name"]: pool for pool in answer.json()["data"]}
    assert (by_name["speculative"]["ready"], by_name["plain"]["ready"]) == (0, 1)
    (ailing,) = by_name["speculative"]["replicas"]
    assert (ailing["state"], ailing["breaker"]["state"], ailing["breaker"]["opened"]) == (
        "unhealthy",
        "open",
        1,
    )
    assert "500" in ailing["detail"]
    assert by_name["plain"]["replicas"][0]["breaker"]["state"] == "closed"
    page = (await gateway.client.get("/metrics", headers=gateway.admin)).text
    assert 'tollgate_replica_breaker{replica="speculative-0"} 2.0' in page
    assert 'tollgate_replica_breaker{replica="plain-0"} 0.0' in page
    assert 'tollgate_replica_ejections_total{replica="speculative-0"} 1.0' in page
    speculative.clear()
    registry = gateway.services.registry
    await eventually(lambda: registry.snapshot("speculative").ready_count)
    assert (await gateway.chat(EXTRACT)).headers["x-tollgate-pool"] == "speculative"
    page = (await gateway.client.get("/metrics", headers=gateway.admin)).text
    assert 'tollgate_replica_breaker{replica="speculative-0"} 0.0' in page


async def test_a_stream_that_goes_on_for_too_long_is_ended(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    timeouts = TimeoutSettings(first_token_s=20, between_tokens_s=20, stream_total_s=1)
    async with running(settings_for(home, urls, timeouts=timeouts)) as gateway:
        plain.control(tpot_ms=50, answer_tokens=400)
        answer = await gateway.chat("Tell me a story", stream=True, max_tokens=400)
        *_, last, done = Events(answer.content).data
        assert done == "[DONE]"
        assert json.loads(last)["error"]["code"] == "upstream_timeout"
        await asyncio.to_thread(plain.wait_for, aborted=1, in_flight=0)
        (row,) = await gateway.rows(1)
        assert (row.state, row.payer) == ("interrupted", "platform")
        assert 0 < row.output_tokens < 400
