"""Are the token counts of an answer put into meters that never count a token twice?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference import EngineMetrics, TokenUsage
from gateway.protocols.json_body import raw
from gateway.protocols.openai import read_engine_metrics, read_usage

GOLDEN = Path(__file__).parents[3] / "support/golden"


def usage(**fields: Any) -> TokenUsage:
    found = read_usage(raw(fields))
    assert found is not None
    return found


def golden_answer(name: str) -> dict[str, msgspec.Raw]:
    exchange = json.loads((GOLDEN / name).read_text())
    body = "".join(exchange["response"]["pieces"])
    return msgspec.json.decode(body, type=dict[str, msgspec.Raw])


def test_input_and_output_are_the_simple_case() -> None:
    assert usage(prompt_tokens=5, completion_tokens=2, total_tokens=7) == TokenUsage(input=5, output=2)


def test_cached_tokens_leave_the_input_meter() -> None:
    found = usage(prompt_tokens=10, completion_tokens=0, prompt_tokens_details={"cached_tokens": 8})
    assert found == TokenUsage(input=2, cached_input=8)


def test_reasoning_tokens_leave_the_output_meter() -> None:
    found = usage(prompt_tokens=1, completion_tokens=9, completion_tokens_details={"reasoning_tokens": 7})
    assert found == TokenUsage(input=1, output=2, reasoning=7)


def test_more_cached_than_input_is_bounded() -> None:
    found = usage(prompt_tokens=10, completion_tokens=0, prompt_tokens_details={"cached_tokens": 99})
    assert found == TokenUsage(cached_input=10)


def test_more_reasoning_than_output_is_bounded() -> None:
    found = usage(prompt_tokens=0, completion_tokens=3, completion_tokens_details={"reasoning_tokens": 4})
    assert found == TokenUsage(reasoning=3)


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None, "created_cache_tokens": None}])
def test_details_may_be_missing(details: Any) -> None:
    assert usage(prompt_tokens=4, completion_tokens=1, prompt_tokens_details=details) == TokenUsage(
        input=4, output=1
    )


@pytest.mark.parametrize("details", [None, {}, {"reasoning_tokens": None}])
def test_output_details_may_be_missing(details: Any) -> None:
    assert usage(prompt_tokens=4, completion_tokens=1, completion_tokens_details=details) == TokenUsage(
        input=4, output=1
    )


@pytest.mark.parametrize("fields", [{"prompt_tokens": 4}, {"prompt_tokens": 4, "completion_tokens": None}])
def test_an_output_that_is_not_counted_is_none(fields: dict[str, Any]) -> None:
    assert usage(**fields) == TokenUsage(input=4)


def test_negative_counts_are_nothing() -> None:
    found = usage(
        prompt_tokens=-4,
        completion_tokens=-1,
        prompt_tokens_details={"cached_tokens": -2},
        completion_tokens_details={"reasoning_tokens": -2},
    )
    assert found == TokenUsage()


@pytest.mark.parametrize("value", [None, raw(None)])
def test_no_usage_is_none(value: msgspec.Raw | None) -> None:
    assert read_usage(value) is None


@pytest.mark.parametrize(
    "value", [[], "a", 5, {}, {"prompt_tokens": None}, {"prompt_tokens": "5"}, {"prompt_tokens": 1.5}]
)
def test_what_is_no_usage_cannot_be_read(value: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_usage(raw(value))


@given(
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.none() | st.integers(-5, 10**7),
    st.none() | st.integers(-5, 10**7),
)
def test_meters_are_disjoint_and_add_up(
    prompt: int, completion: int, cached: int | None, reasoning: int | None
) -> None:
    found = usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        prompt_tokens_details={"cached_tokens": cached},
        completion_tokens_details={"reasoning_tokens": reasoning},
    )
    meters = (found.input, found.cached_input, found.cache_write, found.output, found.reasoning)
    assert min(meters) >= 0
    assert found.total == sum(meters) == prompt + completion
    assert found.input + found.cached_input + found.cache_write == prompt


@pytest.mark.parametrize("pool", ["plain", "speculative"])
def test_the_usage_of_a_recorded_answer_is_read(pool: str) -> None:
    wire = json.loads(bytes(golden_answer(f"{pool}/chat.json")["usage"]))
    found = read_usage(golden_answer(f"{pool}/chat.json")["usage"])
    assert found is not None
    assert found.total == wire["total_tokens"]
    assert found.output == wire["completion_tokens"]


# ------------------------------------------------------------------------------------------ engine metrics
@pytest.mark.parametrize("value", [None, raw(None), raw({})])
def test_no_metrics_are_empty_ones(value: msgspec.Raw | None) -> None:
    assert read_engine_metrics(value) == EngineMetrics()


def test_metrics_of_a_plain_engine_say_nothing_of_drafts() -> None:
    found = read_engine_metrics(golden_answer("plain/chat.json")["metrics"])
    assert found.queue_ms is not None
    assert found.generation_ms is not None
    assert (found.draft_steps, found.draft_tokens, found.accepted_tokens) == (None, None, None)


def test_metrics_of_a_speculating_engine_count_drafts() -> None:
    found = read_engine_metrics(golden_answer("speculative/chat.json")["metrics"])
    assert found.draft_steps is not None
    assert found.draft_tokens is not None
    assert found.accepted_tokens is not None
    assert found.draft_tokens == 4 * found.draft_steps
    assert 0 <= found.accepted_tokens <= found.draft_tokens


def test_what_are_no_metrics_cannot_be_read() -> None:
    with pytest.raises(msgspec.DecodeError):
        read_engine_metrics(raw({"queue_time_ms": "long"}))
