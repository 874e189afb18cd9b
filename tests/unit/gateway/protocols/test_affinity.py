"""All turns of a conversation have one key; other conversations and other tenants have others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.inference import Call, Endpoint
from gateway.protocols.affinity import OPENING_BYTES, SEARCHED_BYTES, SHORT_BYTES, affinity_key
from tests.support.factories import make_call

LONG = "Tell me, in as many words as it takes, how the river came to the valley. " * 4


def call(value: Any, *, endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS, **changes: Any) -> Call:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    name = "messages" if endpoint is Endpoint.CHAT_COMPLETIONS else "prompt"
    return make_call(endpoint=endpoint, fields={name: msgspec.Raw(text)}, **changes)


def key(value: Any, tenant: str = "acme", **changes: Any) -> int | None:
    return affinity_key(call(value, **changes), tenant)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


WRITERS: dict[str, Callable[[Any], str]] = {
    "compact": lambda value: json.dumps(value, separators=(",", ":")),
    "spaced": json.dumps,
    "indented": lambda value: json.dumps(value, indent=2),
    "unescaped": lambda value: json.dumps(value, ensure_ascii=False),
    "content first": lambda value: json.dumps([dict(reversed(each.items())) for each in value]),
}
TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(['"role":"user"', '{"role": "user"}', "}]", "},{", LONG, "x" * 1000, "é" * 600]),
    st.builds("".join, st.lists(st.sampled_from(["x" * 997, "}", '"', "user", "ü"]), max_size=6)),
)
CONVERSATIONS = st.tuples(
    st.lists(TEXT.map(lambda text: {"role": "system", "content": text}), max_size=1),
    TEXT.map(user),
    st.lists(st.tuples(TEXT.map(assistant), TEXT.map(user)), min_size=1, max_size=4),
)


@given(CONVERSATIONS, st.sampled_from(sorted(WRITERS)))
def test_every_turn_of_a_conversation_has_the_key_of_the_first(
    conversation: tuple[list[dict[str, str]], dict[str, str], list[tuple[dict[str, str], dict[str, str]]]],
    writer: str,
) -> None:
    system, opening, turns = conversation
    messages = [*system, opening]
    written = WRITERS[writer](messages).encode()
    assume(len(written) >= SHORT_BYTES)
    first = key(written)
    assert first is not None
    for turn in turns:
        messages = [*messages, *turn]
        assert key(WRITERS[writer](messages).encode()) == first


@pytest.mark.parametrize("writer", sorted(WRITERS))
@pytest.mark.parametrize("system", ["", LONG, "long " * 5_000])
def test_conversations_that_open_differently_have_different_keys(writer: str, system: str) -> None:
    def opening(text: str) -> bytes:
        text = text + LONG
        return WRITERS[writer]([{"role": "system", "content": system}, user(text)]).encode()

    assert len({key(opening(f"Question {number}.")) for number in range(50)}) == 50


def test_what_follows_the_opening_does_not_matter() -> None:
    document = "A long report. " * 200
    assert len(document) > OPENING_BYTES
    assert key([user(document + "What is it about?")]) == key([user(document + "Who wrote it?")])


def test_parts_are_a_content_too() -> None:
    def turn(text: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": text}]}

    first = key([turn(LONG)])
    assert key([turn(LONG), assistant("Yes."), turn("And then?")]) == first
    assert key([turn("Other. " + LONG)]) != first


def test_tenants_never_share_a_key() -> None:
    assert key([user(LONG)], "acme") != key([user(LONG)], "globex")
    named = {"affinity_key": "session-1"}
    assert key([user(LONG)], "acme", **named) != key([user(LONG)], "globex", **named)


def test_a_named_key_decides_alone() -> None:
    named = {"affinity_key": "report-7"}
    assert key([user("Hi")], **named) == key([user(LONG)], **named) is not None
    assert key([user(LONG)], **named) != key([user(LONG)])
    assert key([user(LONG)], affinity_key="") == key([user(LONG)])


def test_what_is_short_has_no_key() -> None:
    assert key([user("Hi")]) is None
    assert key("Hi", endpoint=Endpoint.COMPLETIONS) is None
    assert affinity_key(make_call(fields={}), "acme") is None


def test_a_text_prompt_goes_by_its_beginning() -> None:
    prompt = "Once upon a time. " * 100
    found = key(prompt, endpoint=Endpoint.COMPLETIONS)
    assert found == key(prompt + "More.", endpoint=Endpoint.COMPLETIONS) is not None
    assert found != key("Not " + prompt, endpoint=Endpoint.COMPLETIONS)
    tokens = list(range(1000, 1400))
    assert key(tokens, endpoint=Endpoint.COMPLETIONS) == key([*tokens, 7], endpoint=Endpoint.COMPLETIONS)


@pytest.mark.parametrize("count", [1, 30])
def test_without_a_user_or_behind_too_long_a_system_prompt_the_beginning_decides(count: int) -> None:
    system = {"role": "system", "content": LONG * count}
    assert key([system]) is not None
    far = {"role": "system", "content": "x" * SEARCHED_BYTES}
    assert key([far, user("a" * 300)]) == key([far, user("b" * 300)])
