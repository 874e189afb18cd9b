"""What is a prompt at least, that no engine counted?"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.inference import CallFacts
from gateway.protocols.prompt_size import COUNTED_BYTES, tokens_at_least
from tests.support.factories import make_call


def tokens(prompts: int = 1, *, has_media: bool = False, **fields: Any) -> int:
    raw = {
        name: msgspec.Raw(json.dumps(value, separators=(",", ":")).encode()) for name, value in fields.items()
    }
    return tokens_at_least(make_call(fields=raw, prompts=prompts, facts=CallFacts(has_media=has_media)))


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def test_a_chat_is_its_text_without_what_is_around_it() -> None:
    assert tokens(messages=chat("Tell me a story")) == 3
    assert tokens(messages=chat("x" * 400)) in range(98, 101)
    many = tokens(messages=chat(*["x" * 40] * 10))
    assert 90 <= many <= 100, "ten messages of ten tokens"


def test_a_text_is_a_quarter_of_its_bytes() -> None:
    assert tokens(prompt="x" * 100) == 25
    assert tokens(input="x" * 100) == 25
    assert tokens(2, prompt=["x" * 40, "y" * 40]) in range(19, 21)


@pytest.mark.parametrize("count", [2, 10, 100_000])
def test_token_ids_are_counted_and_not_measured(count: int) -> None:
    found = tokens(prompt=[1000] * count)
    assert count * 0.99 - 1 <= found <= count * 1.01
    assert 8 <= tokens(2, prompt=[[7] * 5, [8] * 5]) <= 10
    assert len(json.dumps([1000] * 100_000)) > COUNTED_BYTES


def test_what_cannot_be_measured_is_one_token_a_prompt() -> None:
    assert tokens() == 1
    assert tokens(3, prompt=["", "", ""]) == 3
    assert tokens(messages=chat("")) == 1
    assert tokens(messages=chat("x" * 100_000), has_media=True) == 1, "a picture's bytes are no text"
    assert tokens(prompt=[]) == 1
