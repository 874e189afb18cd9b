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

_PHRASES: dict[TaskType, tuple[str, ...]] = {
    TaskType.EXTRACTION: (
        r"extract",
        r"pull out",
        r"find all",
        r"list (?:all|every) (?:the )?(?:names?|dates?|entities|amounts?)",
    ),
    TaskType.CLASSIFICATION: (
        r"classif(?:y|ies)",
        r"categori[sz]e",
        r"label (?:the|this|each)",
        r"is (?:the|this) (?:\w+ )?(?:positive|spam)",
        r"positive or negative",
        r"sentiment",
        r"which category",
    ),
    TaskType.SUMMARIZATION: (
        r"summari[sz]e",
        r"summary of",
        r"tl;?dr",
        r"condense",
        r"key points of",
        r"in (?:one|two|three) sentences?:",
    ),
    TaskType.TRANSLATION: (
        r"translate",
        r"translation of",
        r"in(?:to)? (?:english|german|french|spanish|chinese|japanese):",
    ),
    TaskType.REWRITING: (
        r"rewrite",
        r"rephrase",
        r"paraphrase",
        r"proofread",
        r"polish",
        r"correct (?:the |this |my )?(?:grammar|spelling|text|sentence)",
        r"fix (?:the )?(?:grammar|spelling)",
        r"make (?:this|it) (?:shorter|more formal|simpler)",
    ),
    TaskType.CODE: (
        r"(?:write|implement|fix|debug|refactor|complete|review) (?:a |an |the |this |my )?(?:\w+ ){0,3}"
        r"(?:function|class|script|program|code|query|regex|unit tests?|method|sql)\b",
    ),
    TaskType.BRAINSTORMING: (
        r"brainstorm",
        r"(?:give|suggest|list|come up with) (?:me )?(?:\w+ ){0,2}(?:ideas|names|ways|topics|titles)\b",
    ),
    TaskType.CREATIVE: (
        r"(?:write|tell|compose|create|make up)(?: me| us)? (?:a |an |another )?(?:\w+ ){0,3}"
        r"(?:story|stories|poem|tale|song|haiku|lyrics|limerick|novel|scene|dialogue|slogan|fable|joke|advert)\b",
        r"once upon a time",
        r"role-?play",
    ),
    TaskType.MATH: (
        r"calculate",
        r"compute",
        r"solve (?:for|the)",
        r"how (?:many|much) .{0,80}\d",
        r"what is \d",
        r"prove that",
        r"evaluate the",
    ),
    TaskType.QA: (
        r"(?:what|who|when|where|which|why|how) (?:is|are|was|were|does|do|did|can|many|much|long|far)\b",
    ),
}
_INSTRUCTION = re.compile(
    r"\b(?:" + "|".join(f"(?P<{task}>{'|'.join(phrases)})" for task, phrases in _PHRASES.items()) + ")",
    re.IGNORECASE,
)
"""The phrase that stands first in the text decides; at the same place, the task that stands first here."""
_CODE = re.compile(r"```|\bdef \w+\(|\bfunction \w*\(|#include <|\bSELECT .{1,80} FROM\b")

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
        has_code = _CODE.search(facts.instruction) is not None
        return _signal(TaskType.CODE if has_code else TaskType.REWRITING, _STRONG)
    verb = _task_of_instruction(facts.instruction) or _task_of_instruction(facts.system)
    if verb is not None:
        return _signal(verb, _USUAL)
    if _CODE.search(facts.instruction):
        return _signal(TaskType.CODE, _USUAL)
    if facts.has_tools:
        return _signal(TaskType.STRUCTURED, _WEAK)
    if facts.temperature is not None and facts.temperature >= CREATIVE_TEMPERATURE:
        return _signal(TaskType.CREATIVE, _WEAK)
    if facts.temperature == 0:
        return _signal(TaskType.QA, _WEAK)
    return None


def _task_of_instruction(text: str) -> TaskType | None:
    if not text:
        return None
    found = _INSTRUCTION.search(text[:HEAD_CHARS])
    if found is None and len(text) > HEAD_CHARS:
        found = _INSTRUCTION.search(text[-TAIL_CHARS:])
    return None if found is None or found.lastgroup is None else TaskType(found.lastgroup)


def _signal(task: TaskType, confidence: float) -> Task:
    return Task(type=task, source=TaskSource.SIGNAL, confidence=confidence)
