"""Does the shipped model know plain requests, and is its arithmetic what it says?"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigurationError
from gateway.inference import CREATIVE_TASKS, CallFacts, TaskType
from gateway.routing.classifier.features import FLAGS, ZONES, read
from gateway.routing.classifier.predict import best, logits, probabilities
from gateway.routing.classifier.weights import MAGIC, SHIPPED, TASKS, Weights, load, packed, write
from gateway.routing.policy import CONFIDENCE_MIN

HEADER = {
    "tasks": list(TASKS),
    "flags": list(FLAGS),
    "zones": list(ZONES),
    "step": 0.5,
    "flag_step": 0.25,
    "bias": [0.0] * len(TASKS),
    "temperature": 1.0,
    "confidence_min": 0.0,
}


def row(task: TaskType, step: int) -> bytes:
    return struct.pack(f"{len(TASKS)}b", *(step if each is task else 0 for each in TASKS))


def small(path: Path, **changed: object) -> Weights:
    """A model that knows the word "poem", the pair "a poem" and one flag."""
    nothing: tuple[list[str], bytes] = ([], b"")
    flags = b"".join(row(TaskType.CODE, -100 if flag == "code" else 0) for flag in FLAGS)
    tables = [
        (["poem"], row(TaskType.CREATIVE, 127)),
        (["a poem"], row(TaskType.CREATIVE, -127)),
        *[nothing] * (2 * len(ZONES) - 2),
        (list(FLAGS), flags),
    ]
    write(path, {**HEADER, **changed}, tables)
    return load(path)


def test_scores_are_the_sums_that_they_should_be(tmp_path: Path) -> None:
    weights = small(tmp_path / "a.bin")
    scores = dict(zip(TASKS, logits(read(CallFacts(instruction="a poem poem")), weights), strict=True))
    # Five words with start and end; "poem" twice, "a poem" once.
    assert scores[TaskType.CREATIVE] == pytest.approx((2 * 127 - 127) * 0.5 / math.sqrt(5))
    assert scores[TaskType.CODE] == 0
    scores = dict(zip(TASKS, logits(read(CallFacts(instruction="```")), weights), strict=True))
    assert scores[TaskType.CODE] == pytest.approx(-100 * 0.25)
    assert scores[TaskType.CREATIVE] == 0


@given(st.lists(st.lists(st.integers(-127, 127), min_size=12, max_size=12), min_size=1, max_size=300))
def test_packed_rows_add_up_field_by_field(rows: list[list[int]]) -> None:
    total = sum(packed(each) for each in rows)
    assert total == packed([sum(column) for column in zip(*rows, strict=True)])


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Summarize the following report in three sentences:\n\nSales rose.", TaskType.SUMMARIZATION),
        ("Translate this letter into Polish: Dear friend, I am well.", TaskType.TRANSLATION),
        ("Write a short story about a lighthouse keeper who finds a door.", TaskType.CREATIVE),
        ("Implement a binary search tree in Rust with insert and delete.", TaskType.CODE),
        ("Give me ten ideas for a name for my bakery.", TaskType.BRAINSTORMING),
        ("Classify this review as positive or negative: I loved it.", TaskType.CLASSIFICATION),
        ("Why is the sky blue?", TaskType.QA),
        ("Rewrite this sentence so that it sounds more polite: Send it now.", TaskType.REWRITING),
        ("Tom has 12 apples and gives 5 to Ann. How many apples does he have left?", TaskType.MATH),
        ("I feel lonely since my best friend moved away. What should I do?", TaskType.CHAT),
        ("Extract all company names from this text: Acme bought Initech.", TaskType.EXTRACTION),
        ("Return the order as JSON with the keys id and total: order 7, 12 EUR", TaskType.STRUCTURED),
    ],
)
def test_the_shipped_model_knows_plain_requests(text: str, task: TaskType) -> None:
    found, confidence = best(CallFacts(instruction=text), load())
    assert found is task
    assert 1 / len(TASKS) < confidence <= 1


@given(st.text(max_size=300), st.booleans(), st.booleans())
def test_probabilities_add_up_and_the_best_is_the_greatest(text: str, tools: bool, schema: bool) -> None:  # noqa: FBT001
    facts = CallFacts(instruction=text, has_tools=tools, has_schema=schema)
    likely = probabilities(facts, load())
    task, confidence = best(facts, load())
    assert sum(likely) == pytest.approx(1)
    assert confidence == pytest.approx(max(likely))
    assert likely[TASKS.index(task)] == max(likely)


@pytest.mark.parametrize(
    "text", ["\0" * 4000, "\ud800" * 4000, "z" * 4000, "9" * 4000, "今" * 4000, "🙂" * 4000]
)
def test_hostile_texts_get_an_answer(text: str) -> None:
    task, confidence = best(CallFacts(instruction=text, system=text, previous=text), load())
    assert task in TASKS
    assert 0 < confidence <= 1


def test_the_shipped_file_is_the_one_that_the_card_describes_and_small() -> None:
    data = SHIPPED.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert f"SHA-256 `{sha256}`" in SHIPPED.with_name("CARD.md").read_text(encoding="utf-8")
    assert json.loads(SHIPPED.with_name("figures.json").read_text())["training"]["sha256"] == sha256
    assert len(data) < 6_000_000


def test_the_policys_threshold_is_the_one_that_was_chosen() -> None:
    assert load().confidence_min == CONFIDENCE_MIN


def test_the_scores_that_the_card_tells_reach_what_was_asked_for() -> None:
    told = json.loads(SHIPPED.with_name("figures.json").read_text())
    assert told["whole"]["macro_f1"] >= 0.75
    assert told["whole"]["nature_accuracy"] >= 0.92
    matrix = told["whole"]["confusion"]
    creative = [task in CREATIVE_TASKS for task in TASKS]
    right = sum(
        count
        for true, counts in enumerate(matrix)
        for found, count in enumerate(counts)
        if creative[true] == creative[found]
    )
    assert right / sum(map(sum, matrix)) == pytest.approx(told["whole"]["nature_accuracy"], abs=1e-4)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:0],
        lambda data: b"MZ" + data,
        lambda data: data[: len(MAGIC) + 2],
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"sizes"', b'"sizez"', 1),
        lambda data: data.replace(b'"extraction"', b'"extractiom"', 1),
        lambda data: data[:-40] + bytes(40),
    ],
    ids=["empty", "another format", "no header", "cut", "no sizes", "another task", "damaged"],
)
def test_a_file_that_is_not_whole_is_refused_with_advice(spoil: object, tmp_path: Path) -> None:
    assert callable(spoil)
    path = tmp_path / "bad.bin"
    path.write_bytes(spoil(SHIPPED.read_bytes()))
    with pytest.raises(ConfigurationError, match=r"bad\.bin: not a task classifier.*reinstall Tollgate"):
        load(path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.bin: the task classifier cannot be read"):
        load(tmp_path / "none.bin")
