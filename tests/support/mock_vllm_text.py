"""What does the mock say, in which tokens, and in which steps?

Pure and deterministic: the same prompt gives the same answer, cut into the same engine steps. A token is a
short piece of text; a step is what one engine iteration puts out: one token, or several when drafts were
accepted.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

WORDS: Final = (
    "The",
    " ledger",
    " closes",
    " each",
    " day",
    " at",
    " noon",
    ",",
    " and",
    " the",
    " café",
    " beside",
    " it",
    " sells",
    " tea",
    " for",
    " 3",
    " €",
    ".",
    " Two",
    " clerks",
    " count",
    " 東京",
    " coins",
    " →",
    " slowly",
    ";",
    " nobody",
    " hurries",
    " 🙂",
    "!",
    "\n",
)
_JSON_TOKEN_CHARS: Final = 4


@dataclass(frozen=True, slots=True)
class Script:
    """One answer, step by step."""

    steps: tuple[tuple[str, ...], ...]
    """Tokens by engine step; the first step is the prefill and yields one token."""
    accepted: tuple[int, ...]
    """Accepted draft tokens of each verify step (every step but the first); empty without speculation."""
    is_cut: bool
    """The text had more to say than there was room for."""
    stop: str | None
    """The stop text that ended it."""
    tokens: int
    """Number of tokens."""
    text: str
    """The whole answer."""
    step_kinds: tuple[tuple[int, int | None, int], ...]
    """How many steps had so many tokens and accepted drafts: (tokens, accepted, times)."""

    def accepted_at(self, step: int) -> int | None:
        """Accepted draft tokens of a step; None: no verify step."""
        return self.accepted[step - 1] if step and self.accepted else None


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is given, whatever it says."""

    draft_tokens: int = 0
    acceptance: float = 0.0
    stops: tuple[str, ...] = ()
    """Texts that end it; they are not part of it."""


@lru_cache(maxsize=4096)
def script(seed: int, tokens: int, manner: Manner) -> Script:
    """Canned prose of `tokens` tokens."""
    start = seed % len(WORDS)
    words = [WORDS[(start + i) % len(WORDS)] for i in range(tokens)]
    return _in_steps(words, seed, manner, is_cut=False)


def script_of_text(text: str, limit: int, seed: int, manner: Manner) -> Script:
    """A given text, at most `limit` tokens of it."""
    pieces = [text[i : i + _JSON_TOKEN_CHARS] for i in range(0, len(text), _JSON_TOKEN_CHARS)]
    return _in_steps(pieces[:limit], seed, manner, is_cut=len(pieces) > limit)


def _stopped(words: list[str], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    """The tokens until a stop text is complete, without it; the token it ends in still counts."""
    said = ""
    for number, word in enumerate(words):
        found = [stop for stop in stops if stop in said + word]
        if found:
            left = len((said + word).partition(found[0])[0])
            kept = []
            for spoken in words[: number + 1]:
                kept.append(spoken[: max(left, 0)])
                left -= len(spoken)
            return kept, found[0]
        said += word
    return words, None


def _in_steps(words: list[str], seed: int, manner: Manner, *, is_cut: bool) -> Script:
    words, stop = _stopped(words, manner.stops)
    is_cut = is_cut and stop is None
    draft_tokens, acceptance = manner.draft_tokens, manner.acceptance
    if not draft_tokens or not words:
        return _script([(word,) for word in words], [], is_cut=is_cut, stop=stop)
    chance = random.Random(seed)
    steps: list[tuple[str, ...]] = [(words[0],)]
    accepted: list[int] = []
    position = 1
    while position < len(words):
        kept = 0
        while kept < draft_tokens and chance.random() < acceptance:
            kept += 1
        kept = min(kept, len(words) - position - 1)
        steps.append(tuple(words[position : position + kept + 1]))
        accepted.append(kept)
        position += kept + 1
    return _script(steps, accepted, is_cut=is_cut, stop=stop)


def _script(steps: list[tuple[str, ...]], accepted: list[int], *, is_cut: bool, stop: str | None) -> Script:
    kinds: Counter[tuple[int, int | None]] = Counter()
    for number, step in enumerate(steps):
        kinds[len(step), accepted[number - 1] if number and accepted else None] += 1
    text = "".join(token for step in steps for token in step)
    counted = tuple((tokens, kept, times) for (tokens, kept), times in kinds.items())
    return Script(tuple(steps), tuple(accepted), is_cut, stop, sum(map(len, steps)), text, counted)


def sample_json(schema: Any) -> str:
    """A small document that satisfies the usual parts of a JSON schema; {"answer": …} without one."""
    if not isinstance(schema, dict) or not schema:
        return '{"answer": "yes", "confidence": 0.9}'
    return json.dumps(_sample(schema), ensure_ascii=False)


def _sample(schema: dict[str, Any]) -> object:
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: _sample(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_sample(schema.get("items", {"type": "string"}))]
    plain: dict[str, object] = {"integer": 7, "number": 0.5, "boolean": True, "null": None}
    return plain.get(kind, "word")
