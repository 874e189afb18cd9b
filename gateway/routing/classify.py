"""Which task is this call?

What the caller declares beats what the request shows, that beats what the trained classifier makes of it, and
that the policy's default. What a request shows: a constrained output format or a prediction; the verb of the
instruction. A signal stands here only where it is right more often than the classifier on the same requests
(classifier/CARD.md has the counts); its confidence is how often it was right there. Of a key and a system
prompt whose requests have all turned out alike the task is remembered (classifier/memory.py). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from gateway.inference import Call, CallFacts, Task, TaskSource, TaskType
from gateway.routing.classifier.memory import TaskMemory, key_of
from gateway.routing.classifier.predict import best
from gateway.routing.classifier.weights import load
from gateway.routing.policy import Policy

HEAD_CHARS = 240
TAIL_CHARS = 160
"""Instructions stand before the material or after it."""

CODE_CHARS = 20_000
"""Of a longer text its first and last halves of this are searched for marks of code."""

INSTRUCTION_CHARS_MIN = 8
"""Shorter texts, where nothing else is said, are not judged by their words: "Hm", "ok", "x"."""

CREATIVE_TEMPERATURE = 1.0
"""Callers who raise the temperature this far want variety."""

_CODE_THING = r"(?:function|class|script|program|code|regex|unit tests?|method|bug)\b"
_CODE_LANGUAGE = r"(?:python|java|javascript|typescript|rust|kotlin|bash|c\+\+|c#)(?!\w)"
_ART_THING = (
    r"(?:story|stories|poem|tale|song|haiku|lyrics|limerick|novel|scene|dialogue|slogan|fable|joke)\b"
)
_LANGUAGE = r"(?:english|german|french|spanish|italian|chinese|japanese)"

_PHRASES: tuple[tuple[TaskType, str, str], ...] = (
    # task, words that a phrase starts with, how it goes on (anything where that is empty)
    (TaskType.EXTRACTION, "extract extracts extracting", ""),
    (TaskType.EXTRACTION, "pull", r" out\b"),
    (
        TaskType.EXTRACTION,
        "find list",
        r" (?:all|every) (?:the )?(?:names?|dates?|entities|amounts?|addresses|phone numbers?|companies)\b",
    ),
    (TaskType.CLASSIFICATION, "classify classifies categorize categorise sentiment", ""),
    (TaskType.CLASSIFICATION, "label", r" (?:the|this|each)\b"),
    (TaskType.CLASSIFICATION, "is", r" (?:the|this) (?:\w+ )?(?:positive|negative|spam)\b"),
    (TaskType.CLASSIFICATION, "positive", r" or negative\b"),
    (TaskType.CLASSIFICATION, "which", r" category\b"),
    (TaskType.CLASSIFICATION, "determine decide", r" (?:whether|if)\b"),
    (TaskType.STRUCTURED, "sql sqlite postgresql mysql", r" (?:query|queries|statement)\b"),
    (TaskType.SUMMARIZATION, "summarize summarise summary tldr condense", ""),
    (TaskType.SUMMARIZATION, "tl", r"; ?dr\b"),
    (TaskType.SUMMARIZATION, "key", r" points of\b"),
    (TaskType.SUMMARIZATION, "in", r" (?:one|two|three) sentences?:"),
    (TaskType.TRANSLATION, "in into", f" {_LANGUAGE}:"),
    (TaskType.REWRITING, "rewrite rephrase paraphrase proofread polish", ""),
    (TaskType.REWRITING, "correct", r" (?:the |this |my )?(?:grammar|spelling|text|sentence)\b"),
    (TaskType.REWRITING, "fix", r" (?:the |my )?(?:grammar|spelling)\b"),
    (
        TaskType.REWRITING,
        "improve",
        r" (?:the |this |my )?(?:wording|text|style|sentence|paragraph|writing|clarity)\b",
    ),
    (TaskType.REWRITING, "make", r" (?:this|it) (?:shorter|more formal|simpler)\b"),
    (
        TaskType.CODE,
        "write implement fix debug refactor complete review create",
        r" (?:a |an |the |this |my )?(?:\w+ ){0,3}?" + _CODE_THING,
    ),
    (TaskType.CODE, "in", f" {_CODE_LANGUAGE}"),
    (TaskType.BRAINSTORMING, "brainstorm", ""),
    (
        TaskType.BRAINSTORMING,
        "give suggest list",
        r" (?:me )?(?:\w+ ){0,2}?(?:ideas|names|ways|titles)\b",
    ),
    (TaskType.BRAINSTORMING, "come", r" up with\b"),
    (
        TaskType.CREATIVE,
        "write tell compose create make",
        r"(?: up)?(?: me| us)? (?:a |an |another )?(?:\w+ ){0,3}?" + _ART_THING,
    ),
    (TaskType.CREATIVE, "roleplay", ""),
    (TaskType.MATH, "how", r" (?:many|much)\b[^\n]{0,80}\d"),
    (TaskType.MATH, "what", r" is -?\d"),
    (TaskType.MATH, "prove", r" that\b"),
)


def _by_lead() -> dict[str, tuple[tuple[TaskType, str, re.Pattern[str]], ...]]:
    """The phrases by their first word: one dictionary look-up per word of the text, a match only on a hit."""
    table: dict[str, tuple[tuple[TaskType, str, re.Pattern[str]], ...]] = {}
    for task, leads, rest in _PHRASES:
        for lead in leads.split():
            table[lead] = (*table.get(lead, ()), (task, f"{task}: {leads}{rest}", re.compile(rest)))
    return table


_LEADS = _by_lead()
_WORD = re.compile(r"[a-z]+")
_CODE = {
    "```": re.compile(r"```"),
    "def ": re.compile(r"\bdef \w+\("),
    "function ": re.compile(r"\bfunction \w*\("),
    "#include <": re.compile(r"#include <"),
    "SELECT ": re.compile(r"\bSELECT .{1,80} FROM\b"),
}
"""Marks of code by a literal in them: a search for a literal costs a tenth of one for a pattern."""
_SURE_CODE = ("def ", "#include <", "SELECT ")
"""Marks that alone say what the task is; fences and the word function are in other tasks' material."""

_STRONG = 0.98
"""Of a constrained output: no labelled row contradicts it, but a schema may hold a mere answer."""
_USUAL = 0.95
"""How often signals in words were right on the labelled data (classifier/CARD.md)."""
_WEAK = 0.55
"""A guess."""


class TaskFinder:
    """Finds the tasks of calls, and remembers what system prompts are for."""

    def __init__(self) -> None:
        """Load the classifier now: a tenth of a second that no request should wait for.

        Raises:
            ConfigurationError: its file is not usable.
        """
        load()
        self._memory = TaskMemory()
        self._policy: Policy | None = None

    def find(self, call: Call, policy: Policy, *, key_id: str) -> Task:
        """The task of a call that was made with this key; never fails."""
        if call.declared_task is not None:
            return Task(type=call.declared_task, source=TaskSource.DECLARED, confidence=1.0)
        if policy is not self._policy:  # another threshold may judge otherwise
            self._policy = policy
            self._memory.forget()
        facts = call.facts
        formal = _from_format(facts)
        if formal is not None:
            return formal
        key = key_of(key_id, facts.system, has_tools=facts.has_tools)
        if key is None:
            return _afresh(facts, policy)
        known = self._memory.recall(key)
        if known is None:
            known = _afresh(facts, policy)
            self._memory.learn(key, known)
        return known


def classify(call: Call, policy: Policy) -> Task:
    """The task of a call by itself; "unknown" is the default with confidence 0.

    Raises:
        ConfigurationError: the classifier's file is not usable.
    """
    if call.declared_task is not None:
        return Task(type=call.declared_task, source=TaskSource.DECLARED, confidence=1.0)
    return _from_format(call.facts) or _afresh(call.facts, policy)


def _afresh(facts: CallFacts, policy: Policy) -> Task:
    """What the words say: a signal, the classifier where it is sure enough, or the default."""
    signal = _from_words(facts)
    if signal is not None:
        return signal
    least = policy.classifier_confidence_min
    if least is not None and (
        len(facts.instruction) >= INSTRUCTION_CHARS_MIN or facts.system or facts.previous
    ):
        task, confidence = best(facts, load())
        if confidence >= least:
            # Two digits: what is decided for a task is kept by task and confidence (course.py).
            return Task(type=task, source=TaskSource.CLASSIFIER, confidence=round(confidence, 2))
    return _from_temperature(facts.temperature) or Task(
        type=policy.default_task, source=TaskSource.DEFAULT, confidence=0.0
    )


def _from_temperature(temperature: float | None) -> Task | None:
    """A hint that could not be measured (no labelled request has one): only where all else is silent."""
    if temperature is not None and temperature >= CREATIVE_TEMPERATURE:
        return _signal(TaskType.CREATIVE, _WEAK)
    return _signal(TaskType.QA, _WEAK) if temperature == 0 else None


def _from_format(facts: CallFacts) -> Task | None:
    if facts.has_schema or facts.has_json_mode:
        return _signal(TaskType.STRUCTURED, _STRONG)
    if facts.has_prediction:  # the caller supplies most of the output: an edit
        return _signal(TaskType.CODE if _has_code(facts.instruction) else TaskType.REWRITING, _STRONG)
    return None


def _from_words(facts: CallFacts) -> Task | None:
    found = signal_of(facts)
    return None if found is None else _signal(found.task, _USUAL)


class Signal(NamedTuple):
    """A task that the words of a request name, and by what."""

    task: TaskType
    name: str


def signal_of(facts: CallFacts) -> Signal | None:
    """The signal in the words of a request, if there is one."""
    verb = _phrase_of(facts.instruction) or _phrase_of(facts.system)
    if verb is not None:
        return verb
    if _has_code(facts.instruction, _SURE_CODE):
        return Signal(TaskType.CODE, "marks of code")
    return Signal(TaskType.STRUCTURED, "tools") if facts.has_tools else None


def _phrase_of(text: str) -> Signal | None:
    """The phrase that stands first in the text decides; at the same place, the one first in the table."""
    found = _first_phrase(text[:HEAD_CHARS])
    if found is None and len(text) > HEAD_CHARS:
        found = _first_phrase(text[-TAIL_CHARS:])
    return found


def _has_code(text: str, literals: Iterable[str] = tuple(_CODE)) -> bool:
    if len(text) > CODE_CHARS:  # a text may be a megabyte, and the patterns take their time
        text = f"{text[: CODE_CHARS // 2]}\n{text[-CODE_CHARS // 2 :]}"
    return any(literal in text and _CODE[literal].search(text) for literal in literals)


def _first_phrase(text: str) -> Signal | None:
    lowered = text.lower()
    for word in _WORD.finditer(lowered):
        for task, name, rest in _LEADS.get(word.group(), ()):
            if rest.match(lowered, word.end()):
                return Signal(task, name)
    return None


def _signal(task: TaskType, confidence: float) -> Task:
    return Task(type=task, source=TaskSource.SIGNAL, confidence=confidence)
