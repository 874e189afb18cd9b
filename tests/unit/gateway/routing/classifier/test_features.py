"""Does the classifier see what tells tasks apart, and survive what nobody should send?"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference import CallFacts
from gateway.routing.classifier.features import (
    END,
    FLAGS,
    HEAD_TOKENS,
    START,
    SYSTEM_TOKENS,
    TAIL_TOKENS,
    read,
    tokens,
)


def flags_of(**facts: str | bool) -> set[str]:
    return {FLAGS[flag] for flag in read(CallFacts(**facts)).flags}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Write a poem.", ["write", "a", "poem", "."]),
        ("It's 7 or 1999!", ["it", "'", "s", "0", "or", "00", "!"]),
        ("naïve Привет 今天 שלום !", ["<latin>", "<cyrillic>", "<east-asian>", "<right-to-left>", "!"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
    ],
)
def test_words_numbers_and_alphabets(text: str, words: list[str]) -> None:
    found = tokens(text)
    assert found == words or [word for word in found if word != "na"] == words


def test_a_short_text_is_all_head_and_says_where_it_ends() -> None:
    (head, tail, system, previous), _ = read(CallFacts(instruction="Hello you"))
    assert head == [START, "hello", "you", END]
    assert tail == system == previous == []


def test_of_a_long_text_both_ends_are_seen_and_the_middle_is_not() -> None:
    text = "Summarize this. " + "padding " * 500 + "secret " + "padding " * 500 + "In French please"
    (head, tail, _, _), _ = read(CallFacts(instruction=text))
    assert head[:3] == [START, "summarize", "this"]
    assert tail[-4:] == ["in", "french", "please", END]
    assert "secret" not in head + tail
    assert len(head) <= HEAD_TOKENS + 1
    assert len(tail) <= TAIL_TOKENS + 1


def test_system_prompt_and_earlier_turn_are_zones_of_their_own() -> None:
    (_, _, system, previous), flags = read(
        CallFacts(instruction="and this?", system="You translate " * 90, previous="Translate: hi")
    )
    assert system[:3] == [START, "you", "translate"]
    assert len(system) == SYSTEM_TOKENS + 1
    assert previous[:2] == [START, "translate"]
    assert {"system", "dialogue"} <= {FLAGS[flag] for flag in flags}


@pytest.mark.parametrize(
    ("facts", "flag"),
    [
        ({"has_schema": True}, "schema"),
        ({"has_json_mode": True}, "json_mode"),
        ({"has_tools": True}, "tools"),
        ({"instruction": "```\nx\n```"}, "code"),
        ({"instruction": "Why? "}, "ends_with_question_mark"),
        ({"instruction": "Translate: x"}, "colon"),
        ({"instruction": "French:"}, "ends_with_colon"),
        ({"instruction": "$x$"}, "formula"),
        ({"instruction": '{"a": 1}'}, "braces"),
        ({"instruction": "3 + 4"}, "digits"),
        ({"instruction": "What is it? a) x b) y"}, "options"),
        ({"instruction": "Ждать"}, "not_ascii"),
        ({"instruction": "tell me"}, "starts_small"),
        ({"instruction": "x" * 2000}, "long"),
        ({"instruction": "Hi"}, "under_40_chars"),
    ],
)
def test_facts_about_the_form(facts: dict[str, str | bool], flag: str) -> None:
    assert flag in flags_of(**facts)


@given(st.text(), st.text(), st.text())
def test_any_text_can_be_read_and_always_in_the_same_way(text: str, system: str, previous: str) -> None:
    facts = CallFacts(instruction=text, system=system, previous=previous)
    assert read(facts) == read(facts)
    assert all(0 <= flag < len(FLAGS) for flag in read(facts).flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 4000,
        "\ud800\udfff" * 2000,
        "a" * 4000,
        "(" * 4000,
        "?" * 4000,
        "🙂" * 4000,
        "\n" * 4000,
        "İ" * 400,
    ],
    ids=[
        "empty",
        "nul",
        "surrogates",
        "one word",
        "brackets",
        "marks",
        "emoji",
        "lines",
        "grows in lower case",
    ],
)
def test_hostile_texts_take_no_time(text: str) -> None:
    begun = time.process_time()
    for _ in range(20):
        read(CallFacts(instruction=text, system=text, previous=text))
    # Far above what it takes: only a regular expression that backtracks would come near.
    assert time.process_time() - begun < 20
