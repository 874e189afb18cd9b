"""What of a request does the task classifier look at?

The words at both ends of the last user turn (instructions stand before the material or after it), the first
words of the system prompt and of the user turn before the last, and some two dozen facts about the request's
form. What lies between the ends is material: it says what the text is about, not what shall be done with it.
The cost is therefore bounded, whatever the length. Any text will do, lone surrogates and NULs included.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from gateway.inference import CallFacts

HEAD_CHARS: Final = 320
HEAD_TOKENS: Final = 36
TAIL_CHARS: Final = 200
TAIL_TOKENS: Final = 20
SYSTEM_CHARS: Final = 400
SYSTEM_TOKENS: Final = 40
PREVIOUS_CHARS: Final = 240
PREVIOUS_TOKENS: Final = 24

START: Final = "\x02"
"""Stands before the first word, so that a pair can say that a text starts with it."""
END: Final = "\x03"
ZONES: Final = ("head", "tail", "system", "previous")

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_IMPERATIVE_CODE: Final = ("```", "def ", "();", "</", "#include", "import ", "=>")
_SCRIPTS: Final = (
    # first code point beyond the script, how its words are called
    (0x250, "<latin>"),
    (0x370, "<other>"),
    (0x400, "<greek>"),
    (0x530, "<cyrillic>"),
    (0x590, "<other>"),
    (0x780, "<right-to-left>"),
    (0x900, "<other>"),
    (0xE00, "<indic>"),
    (0x2000, "<other>"),
    (0x2E80, "<symbol>"),
)
FLAGS: Final = (
    "schema",
    "json_mode",
    "tools",
    "dialogue",
    "system",
    "code",
    "ends_with_question_mark",
    "question_mark",
    "under_40_chars",
    "under_100_chars",
    "under_300_chars",
    "under_1000_chars",
    "long",
    "lines",
    "many_lines",
    "colon",
    "ends_with_colon",
    "formula",
    "braces",
    "digits",
    "many_digits",
    "not_ascii",
    "starts_small",
    "i",
    "my",
    "you",
    "options",
    "quotes",
)
"""Facts about the form, by name; their order is that in `Reading.flags`."""
_FLAG: Final = {name: index for index, name in enumerate(FLAGS)}
_OPTIONS = re.compile(r"(?:^|\s)\(?[bB][).:]\s")
_LENGTHS: Final = (
    (40, _FLAG["under_40_chars"]),
    (100, _FLAG["under_100_chars"]),
    (300, _FLAG["under_300_chars"]),
    (1000, _FLAG["under_1000_chars"]),
)


class Reading(NamedTuple):
    """A request as the classifier sees it."""

    zones: tuple[list[str], list[str], list[str], list[str]]
    """Words by zone, in the order of `ZONES`; empty where there is none."""
    flags: list[int]
    """Indexes into `FLAGS` of the facts that hold."""


def read(facts: CallFacts) -> Reading:
    """What the classifier sees of a call; never fails."""
    text = facts.instruction
    length = len(text)
    first = text[:HEAD_CHARS]
    words = tokens(first)
    head = [START, *words[:HEAD_TOKENS]]
    if length > HEAD_CHARS:
        last = text[max(HEAD_CHARS, length - TAIL_CHARS) :]
        tail = [*tokens(last)[-TAIL_TOKENS:], END]
    else:
        last = first
        tail = [*words[HEAD_TOKENS:][-TAIL_TOKENS:], END] if len(words) > HEAD_TOKENS else []
        if not tail:
            head.append(END)
    system = [START, *tokens(facts.system[:SYSTEM_CHARS])[:SYSTEM_TOKENS]] if facts.system else []
    previous = [START, *tokens(facts.previous[:PREVIOUS_CHARS])[:PREVIOUS_TOKENS]] if facts.previous else []
    return Reading((head, tail, system, previous), _flags(facts, first, last, head=head))


def tokens(text: str) -> list[str]:
    """Lower-case words, `0` or `00` for numbers of one or more digits, the script's name for others."""
    found = _TOKEN.findall(text.lower())
    if text.isascii():
        return [each if each > ":" or not each.isdigit() else _number(each) for each in found]
    return [_named(each) for each in found]


def _number(digits: str) -> str:
    return "0" if len(digits) == 1 else "00"


def _named(token: str) -> str:
    if token.isascii():
        return _number(token) if token.isdigit() else token
    point = ord(token[0])
    for beyond, name in _SCRIPTS:
        if point < beyond:
            return name
    return "<east-asian>"


def _flags(facts: CallFacts, first: str, last: str, *, head: list[str]) -> list[int]:
    text = facts.instruction
    lines = text.count("\n")
    zeros = head.count("00") + head.count("0")
    held = [
        (facts.has_schema, "schema"),
        (facts.has_json_mode, "json_mode"),
        (facts.has_tools, "tools"),
        (facts.previous, "dialogue"),
        (facts.system, "system"),
        (any(mark in first for mark in _IMPERATIVE_CODE), "code"),
        (last.rstrip().endswith("?"), "ends_with_question_mark"),
        ("?" in first or "?" in last, "question_mark"),
        (lines, "lines"),
        (lines > 5, "many_lines"),  # noqa: PLR2004 - more than a greeting and a signature
        (": " in first or ":\n" in first, "colon"),
        (last.rstrip().endswith(":"), "ends_with_colon"),
        (first.count("$") > 1 or "\\" in first, "formula"),
        ("{" in first and "}" in text, "braces"),
        (zeros, "digits"),
        (zeros > 2, "many_digits"),  # noqa: PLR2004 - a date has three
        (not first.isascii(), "not_ascii"),
        (first[:1].islower(), "starts_small"),
        ("i" in head, "i"),
        ("my" in head, "my"),
        ("you" in head or "your" in head, "you"),
        (_OPTIONS.search(last), "options"),
        ('"' in first, "quotes"),
    ]
    flags = [_FLAG[name] for holds, name in held if holds]
    flags.append(next((flag for below, flag in _LENGTHS if len(text) < below), _FLAG["long"]))
    return flags
