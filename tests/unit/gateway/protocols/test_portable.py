"""Is exactly that sent outside which may be, and does a call stay inside where another model would not do?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference import Call, Endpoint
from gateway.protocols.json_body import raw
from gateway.protocols.openai import FORBIDDEN_FIELDS, GATEWAY_ONLY, ParseLimits, parse_call
from gateway.protocols.portable import HINTS, PORTABLE, portability, portable_fields
from tests.support.factories import make_call

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> Call:
    body = msgspec.json.encode({"model": "auto", "messages": MESSAGES, **fields})
    limits = ParseLimits(messages_max=10, choices_max=10)
    return parse_call(Endpoint.CHAT_COMPLETIONS, body, {}, limits=limits)


def text(**fields: Any) -> Call:
    given_fields = {name: raw(value) for name, value in {"model": "auto", **fields}.items()}
    return make_call(endpoint=Endpoint.COMPLETIONS, fields=given_fields)


def obstacle(call: Call) -> str:
    found = portability(call)
    assert found.obstacle is not None
    return found.obstacle


def test_a_usual_call_leaves_whole() -> None:
    call = chat(temperature=0.5, stop=["x"], n=2, seed=1, logprobs=True)
    assert portability(call).obstacle is None
    assert portability(call).withheld == ()
    assert set(portable_fields(call)) == {"messages", "temperature", "stop", "n", "seed", "logprobs"}


def test_the_model_and_how_it_is_streamed_are_written_anew() -> None:
    call = chat(stream=True, stream_options={"include_usage": True})
    assert set(portable_fields(call)) == {"messages"}
    assert portability(call).withheld == ()


def test_what_the_gateway_reads_or_refuses_is_no_part_of_what_leaves() -> None:
    for names in PORTABLE.values():
        assert not names & (GATEWAY_ONLY | FORBIDDEN_FIELDS | HINTS)


@pytest.mark.parametrize("name", sorted(HINTS))
def test_a_hint_is_withheld_and_named(name: str) -> None:
    call = chat(**{name: {"a": 1} if name in {"prediction", "chat_template_kwargs"} else 1})
    assert portability(call).obstacle is None
    assert portability(call).withheld == (name,)
    assert name not in portable_fields(call)


def test_usage_in_every_event_is_a_hint_too() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    call = chat(stream=True, stream_options=options)
    assert portability(call).withheld == ("stream_options.continuous_usage_stats",)


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "a+"}},
        {"guided_json": {"type": "object"}},
        {"min_tokens": 5},
        {"ignore_eos": True},
        {"stop_token_ids": [1]},
        {"logit_bias": {"5": 1}},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"web_search_options": {"search_context_size": "low"}},
        {"modalities": ["text", "audio"]},
        {"api_base": "http://evil.example"},
        {"fallbacks": ["other"]},
    ],
)
def test_what_changes_the_answer_and_what_nobody_knows_keeps_a_call_inside(fields: dict[str, Any]) -> None:
    assert "means something to our own engines only" in obstacle(chat(**fields))


@pytest.mark.parametrize("nothing", [None, False, 0, 0.0, "", [], {}])
@pytest.mark.parametrize("name", ["structured_outputs", "ignore_eos", "min_tokens", "unheard_of", "top_k"])
def test_a_field_that_asks_for_nothing_hinders_nobody(name: str, nothing: object) -> None:
    call = make_call(fields={"messages": raw(MESSAGES), name: raw(nothing)})
    assert portability(call).obstacle is None
    assert portability(call).withheld == ()
    assert set(portable_fields(call)) == {"messages"}


def test_a_null_is_not_sent() -> None:
    assert set(portable_fields(chat(temperature=None, stop=None))) == {"messages"}


@pytest.mark.parametrize("kind", ["text", "json_object", "json_schema"])
def test_formats_that_openai_knows_leave(kind: str) -> None:
    assert portability(chat(response_format={"type": kind})).obstacle is None


def test_a_format_that_only_vllm_knows_stays() -> None:
    assert "response_format" in obstacle(chat(response_format={"type": "structural_tag"}))


@pytest.mark.parametrize(("kind", "leaves"), [("function", True), ("custom", True), ("web_search", False)])
def test_only_tools_that_the_caller_runs_leave(kind: str, *, leaves: bool) -> None:
    found = portability(chat(tools=[{"type": "function"}, {"type": kind}]))
    assert (found.obstacle is None) == leaves


@pytest.mark.parametrize("prompt", ["Once", ["Once"], ["Once", "upon"]])
def test_prompts_of_text_leave(prompt: object) -> None:
    call = text(prompt=prompt, suffix="x", echo=True)
    assert portability(call).obstacle is None
    assert set(portable_fields(call)) == {"prompt", "suffix", "echo"}


@pytest.mark.parametrize("prompt", [[1, 2], [[1], [2]]])
def test_prompts_of_token_ids_stay(prompt: object) -> None:
    assert "token ids" in obstacle(text(prompt=prompt))


def test_each_path_has_fields_of_its_own() -> None:
    assert "`best_of`" in obstacle(text(prompt="x", best_of=3))
    assert "`messages`" in obstacle(text(prompt="x", messages=MESSAGES))
    assert "`prompt`" in obstacle(chat(prompt="x"))


@given(st.dictionaries(st.text(max_size=20), st.integers() | st.booleans() | st.text(max_size=5), max_size=8))
def test_whatever_a_client_sends_only_the_published_list_leaves(fields: dict[str, Any]) -> None:
    call = make_call(
        fields={
            name: raw(value) for name, value in fields.items() if name not in {"tools", "response_format"}
        }
    )
    assert set(portable_fields(call)) <= PORTABLE[Endpoint.CHAT_COMPLETIONS]
    found = portability(call)
    if found.obstacle is None:
        unsent = {name for name, value in call.fields.items() if value and name not in portable_fields(call)}
        asked_for = {name for name in unsent if msgspec.json.decode(call.fields[name])}
        assert asked_for <= set(found.withheld) | {"model", "stream", "stream_options"}
