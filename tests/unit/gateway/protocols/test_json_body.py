"""Is a body taken apart without losing, changing or doubling anything?"""

from __future__ import annotations

import contextlib
import gzip
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest, UnsupportedEncoding
from gateway.protocols.json_body import ABSENT, decode_object, encode_object, is_there, raw

texts = st.text('aé"\\/\n\x00\U0001f600[{:,', max_size=6)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=5)

# What malformed bodies are made of.
PIECES = ['{"a":1', '{"a": ', *'[]{},:"\\1-. \n\0/é', "\\u00", "\\ud800", "e9", "NaN", "null", "\ufeff"]


def refusal(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_object(body)
    return caught.value


# ------------------------------------------------------------------------------------------ what goes through
def test_values_keep_the_bytes_they_came_with() -> None:
    fields = decode_object(b'{"model": "auto", "temperature": 1.50, "stop": ["\\u0041", "b" ]}')
    assert {name: bytes(value) for name, value in fields.items()} == {
        "model": b'"auto"',
        "temperature": b"1.50",
        "stop": b'["\\u0041", "b" ]',
    }


@given(value=json_objects, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 2]))
def test_decoding_and_encoding_keeps_every_value(
    *, value: dict[str, Any], ensure_ascii: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode()
    fields = decode_object(body)
    assert {name: json.loads(bytes(each)) for name, each in fields.items()} == value
    assert decode_object(encode_object(fields)) == fields


@given(json_objects)
def test_a_compact_body_comes_out_byte_for_byte(value: dict[str, Any]) -> None:
    body = msgspec.json.encode(value)
    assert encode_object(decode_object(body)) == body


def test_an_escaped_key_that_is_said_once_is_read_by_its_name() -> None:
    assert list(decode_object(b'{"mod\\u0065l":"auto"}')) == ["model"]


def test_keys_that_differ_only_in_case_are_two_keys() -> None:
    assert list(decode_object(b'{"model":"a","Model":"b"}')) == ["model", "Model"]


def test_a_key_repeated_deeper_down_is_the_clients_business() -> None:
    assert bytes(decode_object(b'{"a":{"b":1,"b":2}}')["a"]) == b'{"b":1,"b":2}'


def test_the_empty_object_is_an_object() -> None:
    assert decode_object(b" {} ") == {}


@pytest.mark.parametrize("separator", [b":", b": "])
def test_a_number_longer_than_python_reads_stays_bytes(separator: bytes) -> None:
    digits = b"1" * 5_000
    assert bytes(decode_object(b'{"seed"' + separator + digits + b"}")["seed"]) == digits


# --------------------------------------------------------------------------------------------- repeated keys
@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"\\u006d\\u006f\\u0064\\u0065\\u006c":"a","model":"b"}',
        b'{"model": "a", "model": "b"}',
        b'{\n  "model": "a",\n  "mod\\u0065l": "b"\n}',
        b'{"model":"a","model":"a"}',
        b'{"n":1,"model":"a","x":[{"model":"c"}],"model":"b"}',
    ],
    ids=["plain", "escaped", "all escaped", "spaced", "pretty escaped", "same value", "far apart"],
)
def test_a_key_said_twice_is_refused_by_name(body: bytes) -> None:
    error = refusal(body)
    assert error.caller_detail == "The request body says 'model' 2 times: say each field once."
    assert error.param == "model"


def test_a_key_said_three_times_is_counted() -> None:
    assert "says 'n' 3 times" in refusal(b'{"n":1,"n":2,"n":3}').caller_detail


@given(
    st.lists(st.sampled_from(["model", "n", "max_tokens", "é"]), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.sampled_from(["", " ", "\n\t"]),
)
def test_repeated_keys_are_refused_however_they_are_written(
    names: list[str], escaped: list[int], blank: str
) -> None:
    def written(name: str, style: int) -> str:
        if style == 0:
            return name
        position = style % len(name)
        return f"{name[:position]}\\u{ord(name[position]):04x}{name[position + 1 :]}"

    pairs = [f'"{written(name, style)}":{blank}1' for name, style in zip(names, escaped, strict=False)]
    body = ("{" + f",{blank}".join(pairs) + "}").encode()
    if len(set(names)) == len(names):
        assert set(decode_object(body)) == set(names)
    else:
        assert "times: say each field once" in refusal(body).caller_detail


# -------------------------------------------------------------------------------------------- not an object
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[1]", "an array"),
        (b'"model"', "a string"),
        (b" null", "null"),
        (b"true", "a boolean"),
        (b"\nfalse", "a boolean"),
        (b"12", "a number"),
        (b"-1.5", "a number"),
    ],
)
def test_another_kind_of_value_is_named(body: bytes, kind: str) -> None:
    assert refusal(body).caller_detail == (
        f'The request body must be a JSON object such as {{"model": "auto", "messages": [...]}}, not {kind}.'
    )


# ------------------------------------------------------------------------------------------------ malformed
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"a": 1,}', "Expecting property name enclosed in double quotes at line 1, column 9"),
        (b'{"a": 1', "Expecting ',' delimiter at line 1, column 8"),
        (b'{\n "a": 1\n "b": 2}', "Expecting ',' delimiter at line 3, column 2"),
        (b'{"a": tru}', "Expecting value at line 1, column 7"),
        (b'{"a": 1}{', "Extra data at line 1, column 9"),
        (b'{"a": "\x01"}', "Invalid control character at line 1, column 8"),
        ('{"é": 01}'.encode(), "Expecting ',' delimiter at line 1, column 8"),
        (b"{'a': 1}", "Expecting property name enclosed in double quotes at line 1, column 2"),
        (b"model=auto", "Expecting value at line 1, column 1"),
    ],
)
def test_malformed_json_is_refused_with_its_place(body: bytes, problem: str) -> None:
    assert refusal(body).caller_detail == f"The request body is not valid JSON: {problem}."


@pytest.mark.parametrize("body", [b"", b"   ", b"\r\n"])
def test_an_empty_body_is_called_empty(body: bytes) -> None:
    assert refusal(body).caller_detail == "The request body is empty: send a JSON object."


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"temperature":NaN}', "NaN"),
        (b'{"temperature": Infinity}', "Infinity"),
        (b'{"a":[1,{"b":-Infinity}]}', "-Infinity"),
        (b"NaN", "NaN"),
    ],
)
def test_numbers_that_are_none_are_named(body: bytes, name: str) -> None:
    expected = f"The request body holds {name}, which is not JSON: send a number or null instead."
    assert refusal(body).caller_detail == expected


def test_a_byte_order_mark_is_explained() -> None:
    assert "byte-order mark" in refusal(b"\xef\xbb\xbf{}").caller_detail


def test_a_gzipped_body_is_told_to_come_uncompressed() -> None:
    with pytest.raises(UnsupportedEncoding, match="gzip"):
        decode_object(gzip.compress(b'{"model":"auto"}'))


@pytest.mark.parametrize(
    ("body", "position"),
    [
        (b'{"user":"caf\xe9"}', 12),
        (b'{"caf\xe9":1}', 5),
        (b'{"caf\xe9":', 5),
        (b'{"a":"\xed\xa0\x80"}', 6),
    ],
    ids=["in a value", "in a key", "in what is malformed anyway", "a surrogate"],
)
def test_bytes_that_are_not_utf8_are_pointed_at(body: bytes, position: int) -> None:
    expected = f"The request body is not UTF-8 text: bad byte at position {position}."
    assert refusal(body).caller_detail == expected


def test_utf16_is_refused() -> None:
    assert "not valid JSON" in refusal('{"model": "auto"}'.encode("utf-16-le")).caller_detail


@pytest.mark.parametrize("body", [b'{"a":"\\ud83d"}', b'{"a": "cut \\uD83D."}'])
def test_half_an_emoji_is_explained(body: bytes) -> None:
    assert "half of a surrogate pair" in refusal(body).caller_detail


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a": ' + b'{"b": ' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"a": ' + b"[" * 50_000,
    ],
    ids=["arrays", "objects", "never closed"],
)
def test_deep_nesting_is_refused(body: bytes) -> None:
    assert refusal(body).caller_detail == "The request body is nested too deeply."


def test_nesting_at_the_edge_of_what_can_be_read_is_read_or_refused() -> None:
    for depth in range(850, 1_050, 3):
        for body in (b'{"a": %s1%s}', b'{"a":%s1%s,,}'):
            with contextlib.suppress(InvalidRequest):
                decode_object(body % (b"[" * depth, b"]" * depth))


def test_a_malformed_body_with_a_number_longer_than_python_reads_is_refused() -> None:
    assert "line 1" in refusal(b'{"seed": ' + b"1" * 5_000 + b",}").caller_detail


@given(
    st.lists(st.sampled_from(PIECES), max_size=9),
    st.binary(max_size=2),
)
def test_whatever_arrives_is_read_or_refused_politely(parts: list[str], tail: bytes) -> None:
    with contextlib.suppress(InvalidRequest, UnsupportedEncoding):
        decode_object("".join(parts).encode() + tail)


# ------------------------------------------------------------------------------------------- raw values
@pytest.mark.parametrize(
    ("value", "expected"),
    [(ABSENT, False), (raw(None), False), (raw(0), True), (raw(""), True), (raw([]), True), (raw({}), True)],
)
def test_a_field_is_there_unless_it_is_left_out_or_null(value: msgspec.Raw, *, expected: bool) -> None:
    assert is_there(value) is expected


def test_a_raw_value_is_compact_json() -> None:
    assert bytes(raw({"é": [1, None]})) == '{"é":[1,null]}'.encode()
