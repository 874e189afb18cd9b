"""Does a request become the call that its author meant, and a wrong one a sentence that helps?"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.inference import Call, Endpoint, TaskType
from gateway.protocols.json_body import encode_object
from gateway.protocols.openai import (
    FORBIDDEN_FIELDS,
    FORBIDDEN_HEADERS,
    GATEWAY_ONLY,
    GUIDED,
    INSTRUCTION_CHARS,
    TOKENS_MAX,
    ParseLimits,
    _ReadChat,
    _refusal,
    parse_call,
)

LIMITS = ParseLimits(messages_max=5, choices_max=8)
MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(headers: dict[str, str] | None = None, /, **fields: Any) -> Call:
    body = {"model": "auto", "messages": MESSAGES, **fields}
    return parse_call(Endpoint.CHAT_COMPLETIONS, json.dumps(body).encode(), headers or {}, limits=LIMITS)


def complete(**fields: Any) -> Call:
    body = {"model": "auto", "prompt": "Once", **fields}
    return parse_call(Endpoint.COMPLETIONS, json.dumps(body).encode(), {}, limits=LIMITS)


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    return caught.value


def completion_refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        complete(**fields)
    return caught.value


def body_of(call: Call) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(encode_object(call.fields))
    return value


# ------------------------------------------------------------------------------------------ a plain request
def test_the_smallest_chat_asks_for_one_answer_without_limits() -> None:
    call = chat()
    assert (call.endpoint, call.model_alias, call.choices) == (Endpoint.CHAT_COMPLETIONS, "auto", 1)
    assert (call.max_tokens, call.is_streaming, call.declared_task) == (None, False, None)
    assert (call.tags, call.end_user, call.dropped, call.client_request_id) == ({}, None, (), None)


def test_body_bytes_are_those_of_the_body_as_it_came() -> None:
    body = b'{ "model": "auto", "messages": [{"role": "user", "content": "Hi"}] }  '
    call = parse_call(Endpoint.CHAT_COMPLETIONS, body, {}, limits=LIMITS)
    assert call.body_bytes == len(body)


def test_fields_that_nobody_here_knows_reach_the_engine() -> None:
    assert body_of(chat(top_k=5, repetition_penalty=1.1, brand_new={"a": [1]})) == {
        "model": "auto",
        "messages": MESSAGES,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "brand_new": {"a": [1]},
    }


def test_every_optional_field_may_be_null() -> None:
    names = ["stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "temperature", "min_p"]
    names += ["logit_bias", "response_format", "tools", "functions", "prediction", "structured_outputs"]
    names += ["metadata", "user", "safety_identifier", "service_tier", "prompt_cache_key"]
    call = chat(**dict.fromkeys(names))
    assert call.max_tokens is None
    assert call.choices == 1
    assert call.service_tier is None


# ---------------------------------------------------------------------------------------------- wrong types
@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("model", 5, "expected `str`, got `int`"),
        ("model", None, "expected `str`, got `null`"),
        ("messages", "Hi", "expected `array`, got `str`"),
        ("messages", None, "expected `array`, got `null`"),
        ("messages", ["Hi"], "expected `object`, got `str` - at `messages[0]`"),
        ("messages", [{"content": "Hi"}], "object missing required field `role` - at `messages[0]`"),
        ("messages", [{"role": 1}], "expected `str`, got `int` - at `messages[0].role`"),
        (
            "messages",
            [{"role": "user", "content": 5}],
            "expected `str | array | null`, got `int` - at `messages[0].content`",
        ),
        (
            "messages",
            [{"role": "user", "content": "a"}, {"role": "user", "content": ["b"]}],
            "expected `object`, got `str` - at `messages[1].content[0]`",
        ),
        (
            "messages",
            [{"role": "user", "content": [{"type": "text", "text": 7}]}],
            "expected `str | null`, got `int` - at `messages[0].content[0].text`",
        ),
        ("stream", "true", "expected `bool | null`, got `str`"),
        ("stream", 1, "expected `bool | null`, got `int`"),
        ("max_tokens", "8", "expected `int | null`, got `str`"),
        ("max_tokens", 8.5, "expected `int | null`, got `float`"),
        ("max_completion_tokens", [8], "expected `int | null`, got `array`"),
        ("n", True, "expected `int | null`, got `bool`"),
        ("temperature", "hot", "expected `float | null`, got `str`"),
        ("temperature", True, "expected `float | null`, got `bool`"),
        ("min_p", "a", "expected `float | null`, got `str`"),
        ("logit_bias", [1], "expected `object | null`, got `array`"),
        ("logit_bias", {"5": "much"}, "expected `float`, got `str` - at `logit_bias[...]`"),
        ("response_format", "json", "expected `object | null`, got `str`"),
        ("response_format", {"type": 1}, "expected `str`, got `int` - at `response_format.type`"),
        ("tools", {"type": "function"}, "expected `array | null`, got `object`"),
        ("tools", ["look_up"], "expected `object`, got `str` - at `tools[0]`"),
        ("functions", [1], "expected `object`, got `int` - at `functions[0]`"),
        ("prediction", "text", "expected `object | null`, got `str`"),
        ("structured_outputs", "json", "expected `object | null`, got `str`"),
        ("metadata", ["a"], "expected `object | null`, got `array`"),
        ("metadata", {"team": 5}, "expected `str`, got `int` - at `metadata[...]`"),
        ("user", {"id": 1}, "expected `str | null`, got `object`"),
        ("safety_identifier", 1, "expected `str | null`, got `int`"),
        ("service_tier", 1, "expected `str | null`, got `int`"),
        ("prompt_cache_key", ["a"], "expected `str | null`, got `array`"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(name: str, value: Any, where: str) -> None:
    error = refusal(**{name: value})
    assert error.caller_detail == f"`{name}` has the wrong type: {where}."
    assert error.param == name


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (["include_usage"], "expected `object | null`, got `array`"),
        ({"include_usage": "yes"}, "expected `bool | null`, got `str` - at `stream_options.include_usage`"),
        (
            {"continuous_usage_stats": 1},
            "expected `bool | null`, got `int` - at `stream_options.continuous_usage_stats`",
        ),
    ],
)
def test_wrong_stream_options_are_named_with_their_place(value: Any, where: str) -> None:
    error = refusal(stream=True, stream_options=value)
    assert error.caller_detail == f"`stream_options` has the wrong type: {where}."


@pytest.mark.parametrize("value", [5, {"text": "a"}, True])
def test_a_prompt_of_a_wrong_type_is_refused(value: Any) -> None:
    error = completion_refusal(prompt=value)
    assert error.caller_detail.startswith("`prompt` has the wrong type: expected `str | array | null`, got")
    assert error.param == "prompt"


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_temperature_beyond_every_float_is_refused(number: str) -> None:
    body = '{"model":"auto","messages":[{"role":"user","content":"Hi"}],"temperature":' + number + "}"
    with pytest.raises(InvalidRequest, match="`temperature` has the wrong type: number out of range"):
        parse_call(Endpoint.CHAT_COMPLETIONS, body.encode(), {}, limits=LIMITS)


def test_a_text_that_cannot_be_read_is_refused() -> None:
    body = b'{"model":"au\\q","messages":[]}'
    with pytest.raises(InvalidRequest):
        parse_call(Endpoint.CHAT_COMPLETIONS, body, {}, limits=LIMITS)


def test_a_field_nested_to_the_edge_of_what_can_be_read_is_read_or_refused() -> None:
    for depth in range(900, 1_050):
        nested = "[" * depth + "]" * depth
        body = f'{{"model":"auto","messages":[{{"role":"user","content":"Hi","x":{nested}}}]}}'
        try:
            parse_call(Endpoint.CHAT_COMPLETIONS, body.encode(), {}, limits=LIMITS)
        except InvalidRequest as error:
            refused = error
    assert "nested too deeply" in refused.caller_detail


@pytest.mark.parametrize(
    ("depth", "said", "param"),
    [
        (100_000, "`messages` is nested too deeply.", "messages"),
        # A level less than the whole body has: how deep one may go depends on who calls.
        (1, "The request cannot be read: too deep.", None),
    ],
)
def test_a_request_that_is_too_deep_is_told_by_the_field_or_as_a_whole(
    depth: int, said: str, param: str | None
) -> None:
    nested = b"[" * depth + b"]" * depth
    message = b'[{"role":"user","content":"Hi","x":' + nested + b"}]"
    fields = {"model": msgspec.Raw(b'"auto"'), "messages": msgspec.Raw(message)}
    refused = _refusal(_ReadChat, fields, RecursionError("too deep"))
    assert (refused.caller_detail, refused.param) == (said, param)


# ------------------------------------------------------------------------------- model, messages and prompts
@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("model", '`model` is missing: send a model alias such as "auto".'),
        ("messages", '`messages` is missing: send a list such as [{"role": "user", "content": "Hi"}].'),
    ],
)
def test_a_required_field_that_is_missing_is_asked_for(left_out: str, message: str) -> None:
    fields = {"model": "auto", "messages": MESSAGES}
    del fields[left_out]
    with pytest.raises(InvalidRequest) as caught:
        parse_call(Endpoint.CHAT_COMPLETIONS, json.dumps(fields).encode(), {}, limits=LIMITS)
    assert (caught.value.caller_detail, caught.value.param) == (message, left_out)


def test_a_missing_prompt_is_asked_for() -> None:
    with pytest.raises(InvalidRequest, match='`prompt` is missing: send a string such as "Once'):
        parse_call(Endpoint.COMPLETIONS, b'{"model":"auto"}', {}, limits=LIMITS)


def test_an_empty_model_is_refused() -> None:
    assert refusal(model="").caller_detail == '`model` is empty: name a model alias, or "auto".'


def test_an_empty_conversation_is_refused() -> None:
    assert refusal(messages=[]).caller_detail.startswith("`messages` is empty: send at least one")


def test_as_many_messages_as_allowed_are_accepted() -> None:
    assert chat(messages=MESSAGES * 5).choices == 1


def test_more_messages_than_allowed_are_refused_with_the_limit() -> None:
    expected = "6 messages in one request; at most 5 are allowed."
    assert refusal(messages=MESSAGES * 6).caller_detail == expected


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("Once", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["only"], 1), ([[7]], 1)],
)
def test_each_shape_of_prompt_counts_its_answers(prompt: Any, choices: int) -> None:
    assert complete(prompt=prompt).choices == choices


@pytest.mark.parametrize("prompt", ["", [], None])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    error = completion_refusal(prompt=prompt)
    assert error.caller_detail == "`prompt` is empty: send some text, or a list of prompts."


@pytest.mark.parametrize(
    "prompt", [["a", 1], [1, "a"], [1.5], [[]], [[1], []], [["a"]], [True], [[True]], [{}], [None]]
)
def test_a_mixed_prompt_is_refused(prompt: Any) -> None:
    assert completion_refusal(prompt=prompt).caller_detail.startswith("`prompt` must be a string, a list of")


# ------------------------------------------------------------------------------------ how much is asked for
def test_choices_are_n_times_the_prompts() -> None:
    assert complete(prompt=["a", "b"], n=3).choices == 6


def test_as_many_choices_as_allowed_are_accepted() -> None:
    assert chat(n=8).choices == 8


@pytest.mark.parametrize(("prompts", "n"), [(3, 3), (9, 1), (1, 9)])
def test_more_choices_than_allowed_are_refused_with_the_limit(prompts: int, n: int) -> None:
    error = completion_refusal(prompt=["a"] * prompts, n=n)
    assert error.caller_detail == "9 answers in one request; at most 8 are allowed."
    assert error.param == "n"


@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name: str, value: int) -> None:
    error = refusal(**{name: value})
    assert error.caller_detail == f"`{name}` must be at least 1, not {value}."
    assert error.param == name


@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens"])
def test_counts_that_no_ledger_could_hold_are_refused(name: str) -> None:
    assert refusal(**{name: 10**30}).caller_detail == f"`{name}` must be at most {TOKENS_MAX}."


def test_the_newer_name_of_the_limit_wins_in_a_chat() -> None:
    assert chat(max_tokens=100, max_completion_tokens=5).max_tokens == 5


def test_a_null_limit_leaves_the_other_one_in_force() -> None:
    assert chat(max_tokens=100, max_completion_tokens=None).max_tokens == 100


def test_a_completion_knows_only_the_older_name_because_the_engine_does() -> None:
    assert complete(max_completion_tokens=5).max_tokens is None
    assert complete(max_completion_tokens=5, max_tokens=100).max_tokens == 100


# --------------------------------------------------------------------------------------------------- streams
@pytest.mark.parametrize(
    ("options", "usage", "continuous"),
    [
        (None, False, False),
        ({}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": None, "continuous_usage_stats": None}, False, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
    ],
)
def test_stream_options_say_which_usage_is_wanted(options: Any, *, usage: bool, continuous: bool) -> None:
    call = chat(stream=True, stream_options=options)
    assert (call.is_streaming, call.wants_usage, call.wants_continuous_usage) == (True, usage, continuous)


@pytest.mark.parametrize("stream", [False, None])
def test_stream_options_without_a_stream_are_refused(stream: Any) -> None:
    error = refusal(stream=stream, stream_options={"include_usage": True})
    assert error.caller_detail == "`stream_options` is only allowed with `stream: true`."
    assert error.param == "stream_options"


# ------------------------------------------------------------------------------------- tags, users and tiers
def test_metadata_becomes_tags() -> None:
    assert chat(metadata={"team": "search", "ticket": "7"}).tags == {"team": "search", "ticket": "7"}


@pytest.mark.parametrize(
    "metadata",
    [
        {str(number): "x" for number in range(16)},
        {"n" * 64: "v" * 512},
        {"a": ""},
    ],
)
def test_metadata_at_its_limits_is_accepted(metadata: dict[str, str]) -> None:
    assert chat(metadata=metadata).tags == metadata


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({str(number): "x" for number in range(17)}, "`metadata` has 17 pairs; at most 16 are allowed."),
        ({"": "x"}, "`metadata.`: names have 1 to 64 characters, values at most 512."),
        ({"n" * 65: "x"}, "names have 1 to 64 characters, values at most 512."),
        ({"a": "v" * 513}, "`metadata.a`: names have 1 to 64 characters, values at most 512."),
        ({"a": "x\0y"}, "`metadata` holds a NUL character."),
        ({"a\0": "x"}, "`metadata` holds a NUL character."),
    ],
)
def test_metadata_beyond_its_limits_is_refused(metadata: dict[str, str], message: str) -> None:
    error = refusal(metadata=metadata)
    assert message in error.caller_detail
    assert error.param == "metadata"


@pytest.mark.parametrize(
    ("fields", "end_user"),
    [
        ({"user": "u1"}, "u1"),
        ({"safety_identifier": "s1"}, "s1"),
        ({"safety_identifier": "s1", "user": "u1"}, "s1"),
        ({"safety_identifier": "", "user": "u1"}, "u1"),
        ({"user": ""}, None),
    ],
)
def test_the_end_user_has_two_names(fields: dict[str, str], end_user: str | None) -> None:
    assert chat(**fields).end_user == end_user


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "priority"])
def test_known_service_tiers_are_kept(tier: str) -> None:
    assert chat(service_tier=tier).service_tier == tier


def test_an_unknown_service_tier_is_refused_with_the_known_ones() -> None:
    error = refusal(service_tier="gold")
    assert error.caller_detail == "Unknown `service_tier` 'gold': use one of auto, default, flex, priority."


def test_the_cache_key_is_where_a_conversation_wants_to_return_to() -> None:
    assert chat(prompt_cache_key="session-7").affinity_key == "session-7"


def test_the_clients_request_id_is_kept_up_to_its_limit() -> None:
    assert chat({"x-request-id": "abc"}).client_request_id == "abc"
    assert chat({"x-request-id": "a" * 999}).client_request_id == "a" * 256
    assert chat({"x-request-id": ""}).client_request_id is None


@pytest.mark.parametrize("name", sorted(GATEWAY_ONLY))
def test_what_only_the_gateway_reads_never_reaches_an_engine(name: str) -> None:
    value = {"a": "b"} if name == "metadata" else "auto"
    call = chat(**{name: value})
    assert name not in call.fields
    assert call.dropped == ()


# -------------------------------------------------------------------------------------------- declared tasks
@pytest.mark.parametrize("task", list(TaskType))
def test_every_task_can_be_declared(task: TaskType) -> None:
    assert chat({"x-tollgate-task": task}).declared_task is task
    assert chat(metadata={"task": task}).declared_task is task


def test_the_header_beats_the_metadata() -> None:
    assert chat({"x-tollgate-task": "code"}, metadata={"task": "chat"}).declared_task is TaskType.CODE


@pytest.mark.parametrize("name", [" Code ", "CODE"])
def test_a_declared_task_is_read_generously(name: str) -> None:
    assert chat({"x-tollgate-task": name}).declared_task is TaskType.CODE


@pytest.mark.parametrize(
    ("headers", "metadata", "message"),
    [
        (
            {"x-tollgate-task": "extracton"},
            None,
            "Unknown task 'extracton' in x-tollgate-task. Did you mean 'extraction'? Known tasks: ",
        ),
        (
            {},
            {"task": "zzz"},
            "Unknown task 'zzz' in metadata.task. Known tasks: extraction, classification, ",
        ),
        ({"x-tollgate-task": ""}, None, "Unknown task '' in x-tollgate-task. Known tasks: "),
        ({"x-tollgate-task": "q" * 500}, None, "Unknown task '" + "q" * 64 + "' in x-tollgate-task."),
        ({"x-tollgate-task": "bad"}, {"task": "code"}, "Unknown task 'bad' in x-tollgate-task."),
    ],
)
def test_an_unknown_task_is_refused_with_the_known_ones(
    headers: dict[str, str], metadata: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(headers, metadata=metadata)
    assert caught.value.caller_detail.startswith(message)


# ------------------------------------------------------------------------------------- what is taken out
@pytest.mark.parametrize("name", sorted(FORBIDDEN_FIELDS))
def test_forbidden_fields_are_dropped_and_named(name: str) -> None:
    call = chat(**{name: {"anything": 1}})
    assert name not in call.fields
    assert call.dropped == (name,)


@pytest.mark.parametrize("name", FORBIDDEN_HEADERS)
def test_forbidden_headers_are_named(name: str) -> None:
    assert chat({name: "1"}).dropped == (name,)


def test_all_that_is_dropped_is_named_fields_first() -> None:
    call = chat({"x-vllm-priority": "1"}, priority=1, cache_salt="mine")
    assert call.dropped == ("priority", "cache_salt", "x-vllm-priority")


# --------------------------------------------------------------------------------------- guided decoding
@pytest.mark.parametrize(("old", "new"), sorted(GUIDED.items()))
def test_the_removed_spelling_of_a_constraint_is_carried_over(old: str, new: str) -> None:
    call = chat(**{old: ["yes", "no"]})
    assert body_of(call)["structured_outputs"] == {new: ["yes", "no"]}
    assert old not in call.fields
    assert call.facts.has_schema


def test_a_removed_spelling_that_is_null_constrains_nothing() -> None:
    call = chat(guided_json=None, guided_choice=None)
    assert body_of(call) == {"model": "auto", "messages": MESSAGES}
    assert not call.facts.has_schema


def test_a_removed_spelling_beside_a_null_successor_is_carried_over() -> None:
    assert body_of(chat(guided_regex="a+", structured_outputs=None))["structured_outputs"] == {"regex": "a+"}


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": {"type": "object"}, "guided_regex": "a+"},
        {"guided_json": {"type": "object"}, "structured_outputs": {"regex": "a"}},
    ],
)
def test_two_constraints_are_refused(fields: dict[str, Any]) -> None:
    error = refusal(**fields)
    assert error.caller_detail == (
        "`guided_json` together with another constraint on the output: send one, as"
        ' {"structured_outputs": {"json": …}}.'
    )


# ----------------------------------------------------------------------------------------------------- facts
@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "has_schema"),
        ({"response_format": {"type": "structural_tag"}}, "has_schema"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "has_schema"),
        ({"response_format": {"type": "json_object"}}, "has_json_mode"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "has_tools"),
        ({"functions": [{"name": "f"}]}, "has_tools"),
        ({"prediction": {"type": "content", "content": "x"}}, "has_prediction"),
        ({"min_p": 0.1}, "needs_full_sampling"),
        ({"logit_bias": {"5": -100}}, "needs_full_sampling"),
    ],
)
def test_what_a_request_shows_is_noticed(fields: dict[str, Any], fact: str) -> None:
    facts = chat(**fields).facts
    noticed = [
        name
        for name in ("has_schema", "has_json_mode", "has_tools", "has_prediction", "needs_full_sampling")
        if getattr(facts, name)
    ]
    assert noticed == [fact]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": {}},
        {"structured_outputs": {}},
        {"tools": []},
        {"prediction": {}},
        {"min_p": 0},
        {"min_p": 0.0},
        {"logit_bias": {}},
    ],
)
def test_what_constrains_nothing_is_no_fact(fields: dict[str, Any]) -> None:
    facts = chat(**fields).facts
    assert not facts.has_schema
    assert not facts.has_json_mode
    assert not facts.has_tools
    assert not facts.has_prediction
    assert not facts.needs_full_sampling


@pytest.mark.parametrize("temperature", [0, 0.0, 0.7, 2, None])
def test_the_temperature_is_kept(temperature: float | None) -> None:
    assert chat(temperature=temperature).facts.temperature == temperature


def test_the_instruction_is_the_last_turn_of_the_user() -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "First"),
        ("assistant", "Yes"),
        ("user", "Second"),
        ("tool", "r"),
    ]
    call = chat(messages=[{"role": role, "content": text} for role, text in turns])
    assert (call.facts.instruction, call.facts.system) == ("Second", "Be brief.")


def test_without_a_user_the_last_message_is_the_instruction() -> None:
    call = chat(messages=[{"role": "developer", "content": "Sing."}, {"role": "assistant", "content": "La"}])
    assert (call.facts.instruction, call.facts.system) == ("La", "Sing.")


def test_parts_of_a_message_are_joined_and_pictures_left_out() -> None:
    parts = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "What is it?"},
    ]
    assert chat(messages=[{"role": "user", "content": parts}]).facts.instruction == "Look:\nWhat is it?"


def test_a_message_without_content_is_an_empty_instruction() -> None:
    assert chat(messages=[{"role": "assistant", "tool_calls": []}]).facts.instruction == ""


@pytest.mark.parametrize("prompt", ["Once", ["Once", "Twice"]])
def test_the_instruction_of_a_completion_is_its_first_prompt(prompt: Any) -> None:
    assert complete(prompt=prompt).facts.instruction == "Once"


@pytest.mark.parametrize("prompt", [[1, 2], [[1], [2]]])
def test_token_ids_show_no_instruction(prompt: Any) -> None:
    assert complete(prompt=prompt).facts.instruction == ""


def test_a_text_of_the_usual_length_is_looked_at_whole() -> None:
    text = "a" * INSTRUCTION_CHARS
    assert complete(prompt=text).facts.instruction == text


def test_of_a_very_long_text_both_ends_are_looked_at() -> None:
    text = "Summarize this: " + "x" * 500_000 + " In one sentence."
    call = chat(messages=[{"role": "system", "content": text}, {"role": "user", "content": text}])
    for seen in (call.facts.instruction, call.facts.system):
        assert len(seen) == INSTRUCTION_CHARS + 1
        assert seen.startswith("Summarize this: ")
        assert seen.endswith(" In one sentence.")


@given(
    st.dictionaries(
        st.sampled_from([*GUIDED, *FORBIDDEN_FIELDS, *GATEWAY_ONLY, "n", "stream", "tools", "seed", "min_p"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just({}) | st.just([]),
        max_size=5,
    )
)
def test_every_body_is_a_call_or_a_refusal_and_nothing_private_leaks(fields: dict[str, Any]) -> None:
    body = msgspec.json.encode({"model": "auto", "messages": MESSAGES, **fields})
    try:
        call = parse_call(Endpoint.CHAT_COMPLETIONS, body, {}, limits=LIMITS)
    except InvalidRequest:
        return
    assert not (FORBIDDEN_FIELDS | GATEWAY_ONLY | GUIDED.keys()) & call.fields.keys()
