"""Which task is this call?

What the caller declares beats what the request shows, and that beats the policy's default. What it shows:
a constrained output format, a prediction, the verb of the instruction, code fences, tools, the temperature,
strongest first. Confidences are fixed judgements of how often a signal of that kind is right, not
probabilities that were measured. Pure.
"""

from __future__ import annotations

import re

from gateway.inference import Call, CallFacts, Task, TaskSource, TaskType

HEAD_CHARS = 240
TAIL_CHARS = 160
"""Instructions stand before the material or after it."""

CREATIVE_TEMPERATURE = 1.0
"""Callers who raise the temperature this far want variety."""

_CODE_THING = r"(?:function|class|script|program|code|query|regex|unit tests?|method|sql|bug)\b"
_CODE_LANGUAGE = r"(?:python|java|javascript|typescript|rust|kotlin|bash|sql|c\+\+|c#)(?!\w)"
_ART_THING = (
    r"(?:story|stories|poem|tale|song|haiku|lyrics|limerick|novel|scene|dialogue|slogan|fable|joke)\b"
)
_LANGUAGE = r"(?:english|german|french|spanish|italian|chinese|japanese)"

_PHRASES: tuple[tuple[TaskType, str, str], ...] = (
    # task, words that a phrase starts with, how it goes on (anything where that is empty)
    (TaskType.EXTRACTION, "extract extracts extracting", ""),
    (TaskType.EXTRACTION, "pull", r" out\b"),
    (TaskType.EXTRACTION, "find", r" all\b"),
    (TaskType.EXTRACTION, "list", r" (?:all|every) (?:the )?(?:names?|dates?|entities|amounts?)\b"),
    (TaskType.CLASSIFICATION, "classify classifies categorize categorise sentiment", ""),
    (TaskType.CLASSIFICATION, "label", r" (?:the|this|each)\b"),
    (TaskType.CLASSIFICATION, "is", r" (?:the|this) (?:\w+ )?(?:positive|negative|spam)\b"),
    (TaskType.CLASSIFICATION, "positive", r" or negative\b"),
    (TaskType.CLASSIFICATION, "which", r" category\b"),
    (TaskType.CLASSIFICATION, "determine decide", r" (?:whether|if)\b"),
    (TaskType.STRUCTURED, "as in into", r" (?:valid |strict )?(?:json|yaml|csv|xml)\b"),
    (TaskType.SUMMARIZATION, "summarize summarise summary tldr condense", ""),
    (TaskType.SUMMARIZATION, "tl", r"; ?dr\b"),
    (TaskType.SUMMARIZATION, "key", r" points of\b"),
    (TaskType.SUMMARIZATION, "in", r" (?:one|two|three) sentences?:"),
    (TaskType.TRANSLATION, "translate translation", ""),
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
    (TaskType.CREATIVE, "once", r" upon a time\b"),
    (TaskType.CREATIVE, "roleplay", ""),
    (TaskType.MATH, "calculate compute", ""),
    (TaskType.MATH, "solve", r" (?:for|the)\b"),
    (TaskType.MATH, "how", r" (?:many|much)\b[^\n]{0,80}\d"),
    (TaskType.MATH, "what", r" is -?\d"),
    (TaskType.MATH, "prove", r" that\b"),
    (
        TaskType.QA,
        "what who when where which why how",
        r" (?!are you\b)(?:is|are|was|were|does|do|did|can|many|much|long|far)\b",
    ),
)


def _by_lead() -> dict[str, tuple[tuple[TaskType, re.Pattern[str]], ...]]:
    """The phrases by their first word: one dictionary look-up per word of the text, a match only on a hit."""
    table: dict[str, tuple[tuple[TaskType, re.Pattern[str]], ...]] = {}
    for task, leads, rest in _PHRASES:
        for lead in leads.split():
            table[lead] = (*table.get(lead, ()), (task, re.compile(rest, re.IGNORECASE)))
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

_STRONG = 0.9
_USUAL = 0.75
_WEAK = 0.55


def classify(call: Call, *, default: TaskType) -> Task:
    """The task of a call; never fails, "unknown" is the default with confidence 0."""
    if call.declared_task is not None:
        return Task(type=call.declared_task, source=TaskSource.DECLARED, confidence=1.0)
    return _from_signals(call.facts) or Task(type=default, source=TaskSource.DEFAULT, confidence=0.0)


def _from_signals(facts: CallFacts) -> Task | None:
    if facts.has_schema or facts.has_json_mode:
        return _signal(TaskType.STRUCTURED, _STRONG)
    if facts.has_prediction:  # the caller supplies most of the output: an edit
        return _signal(TaskType.CODE if _has_code(facts.instruction) else TaskType.REWRITING, _STRONG)
    verb = _task_of_instruction(facts.instruction) or _task_of_instruction(facts.system)
    if verb is not None:
        return _signal(verb, _USUAL)
    if _has_code(facts.instruction):
        return _signal(TaskType.CODE, _USUAL)
    if facts.has_tools:
        return _signal(TaskType.STRUCTURED, _WEAK)
    if facts.temperature is not None and facts.temperature >= CREATIVE_TEMPERATURE:
        return _signal(TaskType.CREATIVE, _WEAK)
    if facts.temperature == 0:
        return _signal(TaskType.QA, _WEAK)
    return None


def _task_of_instruction(text: str) -> TaskType | None:
    """The phrase that stands first in the text decides; at the same place, the one first in the table."""
    found = _first_phrase(text[:HEAD_CHARS])
    if found is None and len(text) > HEAD_CHARS:
        found = _first_phrase(text[-TAIL_CHARS:])
    return found


def _has_code(text: str) -> bool:
    return any(literal in text and pattern.search(text) for literal, pattern in _CODE.items())


def _first_phrase(text: str) -> TaskType | None:
    lowered = text.lower()
    for word in _WORD.finditer(lowered):
        for task, rest in _LEADS.get(word.group(), ()):
            if rest.match(lowered, word.end()):
                return task
    return None


def _signal(task: TaskType, confidence: float) -> Task:
    return Task(type=task, source=TaskSource.SIGNAL, confidence=confidence)
