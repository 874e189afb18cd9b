"""Is the task of a request found where there is a sign of it, and left open where there is none?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference import CREATIVE_TASKS, CallFacts, Task, TaskSource, TaskType
from gateway.routing.classifier.memory import AGREEING
from gateway.routing.classify import HEAD_CHARS, TAIL_CHARS, TaskFinder, classify
from gateway.routing.policy import CONFIDENCE_MIN
from tests.support.factories import make_call, make_policy

E, C, S, T, R = (
    TaskType.EXTRACTION,
    TaskType.CLASSIFICATION,
    TaskType.SUMMARIZATION,
    TaskType.TRANSLATION,
    TaskType.REWRITING,
)


def task_of(
    default: TaskType = TaskType.CHAT,
    declared: TaskType | None = None,
    confidence_min: float | None = CONFIDENCE_MIN,
    **facts: Any,
) -> Task:
    policy = dataclasses.replace(
        make_policy(), default_task=default, classifier_confidence_min=confidence_min
    )
    return classify(make_call(facts=CallFacts(**facts), declared_task=declared), policy)


@pytest.mark.parametrize(
    ("instruction", "task"),
    [
        ("Extract all names, dates and amounts from this invoice: ACME, 3 May, 20 EUR", E),
        ("Please extract the order number from the following email.", E),
        ("Pull out every company mentioned below.", E),
        ("Find all phone numbers in this text.", E),
        ("List all dates in the contract.", E),
        ("Return the invoice's vendor, total and due date as JSON.", TaskType.STRUCTURED),
        ("Answer in valid JSON with the keys a and b.", TaskType.STRUCTURED),
        ("Turn this table into CSV.", TaskType.STRUCTURED),
        ("Classify the following ticket as bug, feature or question.", C),
        ("Is this review positive or negative?", C),
        ("Sentiment of this tweet, please: I love it", C),
        ("Which category does this product belong to?", C),
        ("Label this email as spam or not spam.", C),
        ("Categorize these expenses.", C),
        ("Determine whether this message is spam.", C),
        ("Summarize the following article in three bullet points.", S),
        ("Give me a summary of this meeting.", S),
        ("TL;DR: The committee met on Monday and ...", S),
        ("Write a summary of the report below.", S),
        ("Condense this to a paragraph.", S),
        ("Translate this into French: Good morning.", T),
        ("Translate the following sentence from German to English.", T),
        ("Now in Spanish: good night", T),
        ("Rewrite this paragraph in a more formal tone.", R),
        ("Fix the grammar: he go to school.", R),
        ("Proofread my essay.", R),
        ("Make this shorter: ...", R),
        ("Correct my spelling in this letter.", R),
        ("Improve the wording of this email.", R),
        ("Write a Python function that reverses a string.", TaskType.CODE),
        ("Implement a binary search in Rust.", TaskType.CODE),
        ("Show me quicksort in C++", TaskType.CODE),
        ("Debug this code for me", TaskType.CODE),
        ("Write a SQL query that lists the top ten customers.", TaskType.STRUCTURED),
        ("Refactor the following class to use dataclasses.", TaskType.CODE),
        ("Write unit tests for this module.", TaskType.CODE),
        ("Fix this bug in my JavaScript code.", TaskType.CODE),
        ("Explain what this code does: ```print(1)```", TaskType.CODE),
        ("def area(r):\n    return", TaskType.CODE),
        ("SELECT name FROM users WHERE", TaskType.CODE),
        ("#include <stdio.h>\nint main() {", TaskType.CODE),
        ("function add(a, b) {", TaskType.CODE),
        ("What is the capital of France?", TaskType.QA),
        ("When did the Berlin wall fall?", TaskType.QA),
        ("Why is the sky blue?", TaskType.QA),
        ("How does photosynthesis work?", TaskType.QA),
        ("Calculate 15% of 240.", TaskType.MATH),
        ("What is 17 * 23?", TaskType.MATH),
        ("Solve for x: 3x + 5 = 20.", TaskType.MATH),
        ("A train needs 45 minutes for 60 km; how many km does it travel in 2 hours?", TaskType.MATH),
        ("Prove that the square root of 2 is irrational.", TaskType.MATH),
        ("Write a short story about a lighthouse keeper.", TaskType.CREATIVE),
        ("Tell me a story about a dragon.", TaskType.CREATIVE),
        ("Compose a poem about autumn.", TaskType.CREATIVE),
        ("Write a haiku about rain.", TaskType.CREATIVE),
        ("Make up a bedtime story for my daughter.", TaskType.CREATIVE),
        ("Once upon a time, in a land far away,", TaskType.CREATIVE),
        ("Tell me a joke.", TaskType.CREATIVE),
        ("Brainstorm ways to reduce plastic waste.", TaskType.BRAINSTORMING),
        ("Give me ten names for a coffee shop.", TaskType.BRAINSTORMING),
        ("Suggest some ideas for a birthday party.", TaskType.BRAINSTORMING),
        ("Come up with a slogan for our bakery.", TaskType.BRAINSTORMING),
    ],
)
def test_an_instruction_shows_its_task(instruction: str, task: TaskType) -> None:
    found = task_of(instruction=instruction)
    assert found.type is task
    assert found.source in {TaskSource.SIGNAL, TaskSource.CLASSIFIER}
    assert 0 < found.confidence <= 1


@pytest.mark.parametrize(
    "instruction",
    [
        "",
        "Hi!",
        "Hello, how are you today?",
        "I feel a bit down lately.",
        "Thanks, that helped a lot.",
        "你好",
    ],
)
def test_without_a_sign_the_policys_default_is_taken_without_confidence(instruction: str) -> None:
    expected = Task(type=TaskType.SUMMARIZATION, source=TaskSource.DEFAULT, confidence=0.0)
    assert task_of(TaskType.SUMMARIZATION, confidence_min=None, instruction=instruction) == expected
    assert task_of(TaskType.SUMMARIZATION, confidence_min=1.0, instruction=instruction) == expected


@pytest.mark.parametrize(
    "instruction",
    ["extraction of oil costs", "She told a historian.", "unsummarized", "prescript in pythons", "makeup"],
)
def test_words_inside_other_words_are_no_sign(instruction: str) -> None:
    assert task_of(confidence_min=None, instruction=instruction).source is TaskSource.DEFAULT


def test_case_does_not_matter() -> None:
    assert task_of(instruction="SUMMARIZE THIS").type is TaskType.SUMMARIZATION


# ---------------------------------------------------------------------------------------------- long texts
MATERIAL = "The committee met on Monday and talked about the budget. " * 40


def test_an_instruction_behind_long_material_is_found() -> None:
    assert task_of(instruction=f"{MATERIAL}\n\nSummarize the text above.").type is TaskType.SUMMARIZATION


def test_an_instruction_before_the_material_beats_one_behind_it() -> None:
    text = f"Rewrite this: {MATERIAL} Summarize it."
    assert task_of(instruction=text).type is TaskType.REWRITING


def test_the_middle_of_long_material_is_not_read() -> None:
    text = "x " * HEAD_CHARS + "Summarize this. " + "x " * TAIL_CHARS
    assert task_of(confidence_min=None, instruction=text).source is TaskSource.DEFAULT


def test_the_instruction_may_stand_in_the_system_prompt() -> None:
    found = task_of(system="You classify support tickets.", instruction="My parcel did not arrive.")
    assert found.type is TaskType.CLASSIFICATION


def test_the_users_instruction_beats_the_system_prompt() -> None:
    found = task_of(system="You classify support tickets.", instruction="Write a poem about parcels.")
    assert found.type is TaskType.CREATIVE


# ---------------------------------------------------------------------------------------------- precedence
SIGNS: list[tuple[dict[str, Any], TaskType]] = [
    ({"has_schema": True}, TaskType.STRUCTURED),
    ({"has_prediction": True}, TaskType.REWRITING),
    ({"instruction": "Write a poem."}, TaskType.CREATIVE),
    ({"has_tools": True}, TaskType.STRUCTURED),
    ({"temperature": 1.0}, TaskType.CREATIVE),
]


@pytest.mark.parametrize("first", range(len(SIGNS)))
def test_a_stronger_sign_beats_all_weaker_ones(first: int) -> None:
    facts: dict[str, Any] = {}
    for sign, _ in SIGNS[first:]:
        facts |= sign
    assert task_of(confidence_min=None, **facts).type is SIGNS[first][1]


@pytest.mark.parametrize("sign", [sign for sign, _ in SIGNS])
def test_what_is_declared_beats_every_sign(sign: dict[str, Any]) -> None:
    expected = Task(type=TaskType.MATH, source=TaskSource.DECLARED, confidence=1.0)
    assert task_of(declared=TaskType.MATH, **sign) == expected


def test_code_beats_tools() -> None:
    assert task_of(instruction="def area(r):", has_tools=True).type is TaskType.CODE


def test_json_mode_is_structured_work() -> None:
    assert task_of(has_json_mode=True, instruction="Write a poem.").type is TaskType.STRUCTURED


def test_a_prediction_of_code_is_code() -> None:
    assert task_of(has_prediction=True, instruction="Rename x: ```x = 1```").type is TaskType.CODE


def test_a_verb_beats_code_in_the_text() -> None:
    assert task_of(instruction="Summarize: ```print(1)```").type is TaskType.SUMMARIZATION


@pytest.mark.parametrize(
    ("temperature", "task"),
    [(0, TaskType.QA), (0.0, TaskType.QA), (1.0, TaskType.CREATIVE), (1.9, TaskType.CREATIVE)],
)
def test_the_temperature_is_the_last_sign(temperature: float, task: TaskType) -> None:
    assert task_of(confidence_min=None, temperature=temperature).type is task
    assert task_of(confidence_min=1.0, temperature=temperature).type is task
    found = task_of(confidence_min=0.0, temperature=temperature, instruction="Where can I find my order?")
    assert found.source is TaskSource.CLASSIFIER


@pytest.mark.parametrize("temperature", [None, 0.1, 0.7, 0.99])
def test_a_usual_temperature_says_nothing(temperature: float | None) -> None:
    assert task_of(confidence_min=None, temperature=temperature).source is TaskSource.DEFAULT


def test_stronger_signs_are_surer() -> None:
    confidences = [task_of(confidence_min=None, **sign).confidence for sign, _ in SIGNS]
    assert confidences == sorted(confidences, reverse=True)


@given(st.text(max_size=400), st.text(max_size=400))
def test_no_text_is_too_strange(instruction: str, system: str) -> None:
    found = task_of(instruction=instruction, system=system)
    assert (found.source is TaskSource.DEFAULT) == (found.confidence == 0)


def test_three_tasks_are_usually_creative() -> None:
    assert {TaskType.CREATIVE, TaskType.BRAINSTORMING, TaskType.CHAT} == CREATIVE_TASKS


# ---------------------------------------------------------------------------------------------- classifier
UNSIGNED = "I feel lonely since my best friend moved away. What should I do?"


def test_where_no_signal_is_the_classifier_is_asked_and_says_how_sure_it_is() -> None:
    found = task_of(TaskType.CODE, instruction=UNSIGNED)
    assert (found.type, found.source) == (TaskType.CHAT, TaskSource.CLASSIFIER)
    assert found.confidence == round(found.confidence, 2) >= CONFIDENCE_MIN


def test_a_signal_beats_the_classifier() -> None:
    assert task_of(instruction="Summarize: " + UNSIGNED).source is TaskSource.SIGNAL


def test_unsure_is_the_default() -> None:
    found = task_of(TaskType.CODE, confidence_min=1.0, instruction=UNSIGNED)
    assert found == Task(type=TaskType.CODE, source=TaskSource.DEFAULT, confidence=0.0)


SYSTEM = (
    "You are the help desk of a shop for garden tools. Be kind, be short, and never promise a refund. " * 2
)


def test_a_finder_remembers_what_a_system_prompt_is_for() -> None:
    finder, policy = TaskFinder(), dataclasses.replace(make_policy(), classifier_confidence_min=0.0)
    usual = make_call(facts=CallFacts(instruction=UNSIGNED, system=SYSTEM))
    odd = make_call(facts=CallFacts(instruction="Summarize this.", system=SYSTEM))
    for _ in range(AGREEING):
        assert finder.find(usual, policy, key_id="a").type is TaskType.CHAT
    known = finder.find(odd, policy, key_id="a")
    assert (known.type, known.source) == (TaskType.CHAT, TaskSource.CLASSIFIER)
    assert finder.find(odd, policy, key_id="b").type is TaskType.SUMMARIZATION
    schema = make_call(facts=CallFacts(instruction="x", system=SYSTEM, has_schema=True))
    assert finder.find(schema, policy, key_id="a").type is TaskType.STRUCTURED
    declared = make_call(facts=CallFacts(system=SYSTEM), declared_task=TaskType.MATH)
    assert finder.find(declared, policy, key_id="a").source is TaskSource.DECLARED
    other = dataclasses.replace(policy, version="another")
    assert finder.find(odd, other, key_id="a").type is TaskType.SUMMARIZATION


def test_a_finder_remembers_nothing_of_a_short_system_prompt() -> None:
    finder, policy = TaskFinder(), dataclasses.replace(make_policy(), classifier_confidence_min=0.0)
    for _ in range(AGREEING):
        finder.find(make_call(facts=CallFacts(instruction=UNSIGNED, system="Be kind.")), policy, key_id="a")
    odd = make_call(facts=CallFacts(instruction="Summarize this.", system="Be kind."))
    assert finder.find(odd, policy, key_id="a").type is TaskType.SUMMARIZATION


def test_marks_of_code_are_found_at_both_ends_of_a_very_long_text() -> None:
    filler = "and so on " * 10_000
    assert task_of(instruction="```python\ndef f(x): return x\n```\n" + filler).type is TaskType.CODE
    assert task_of(instruction=filler + "\n```python\ndef f(x): return x\n```").type is TaskType.CODE
