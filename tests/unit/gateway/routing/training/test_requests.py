"""Are the requests that we write ourselves whole, varied and repeatable?"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.inference import TaskType
from gateway.routing.training.prompts import PROMPTSOURCE, PromptsError, family_of, load_prompts, passages
from gateway.routing.training.requests import PHRASES, Writer, choose, sections

ROW: dict[str, Any] = {
    "text": "What is rain?",
    "task": "qa",
    "source": "dolly-15k",
    "license_class": "sharealike",
    "license": "CC-BY-SA-3.0",
}


def test_every_task_has_phrases_and_no_phrase_has_a_slot_that_nothing_fills() -> None:
    for request in Writer(3).requests(60):
        assert request.facts.instruction.strip()
        assert "{sentence}" not in request.facts.instruction
        assert "{topic}" not in request.facts.instruction
    for task in TaskType:
        assert sum(len(lines) for lines in sections(PHRASES / f"{task}.txt").values()) >= 10


def test_one_seed_one_sequence_and_another_seed_another() -> None:
    assert Writer(1).requests(5) == Writer(1).requests(5)
    assert Writer(1).requests(5) != Writer(2).requests(5)


def test_borrowed_passages_stand_as_material() -> None:
    written = Writer(1, borrowed=["A PASSAGE OF ANOTHER SOURCE"]).requests(40)
    assert any("a passage of another source" in each.facts.instruction.lower() for each in written)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("(a|b)", {"a", "b"}),
        ("x (a|(b|c)) y", {"x a y", "x b y", "x c y"}),
        ("(a)", {"(a)"}),
        ("f(x|", {"f(x|"}),
        ("a | b", {"a | b"}),
        ("a) b", {"a) b"}),
        ("go( home|)", {"go home", "go"}),
    ],
)
def test_alternatives(text: str, choices: set[str]) -> None:
    rng = random.Random(1)
    assert {choose(text, rng) for _ in range(60)} == choices


def written(path: Path, *rows: object) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_labelled_prompts_are_read_with_all_that_the_classifier_may_see(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "second"},
    ]
    more = {"text": "second", "messages": messages, "tools": [{}], "license_class": "unspecified"}
    plain, full = load_prompts(written(tmp_path / "p.jsonl.gz", ROW, ROW | more))
    assert (plain.task, plain.family, plain.may_train) == (TaskType.QA, "dolly-15k", True)
    assert (full.facts.system, full.facts.previous, full.facts.has_tools) == ("Be brief.", "first", True)
    assert not full.may_train


def test_sets_with_the_same_templates_are_one_family() -> None:
    assert family_of("p3-xsum") == family_of("p3-paws") == family_of("aqua-rat") == PROMPTSOURCE
    assert family_of("auto-j") == "auto-j"


def test_no_passage_comes_from_a_family_that_is_left_out_or_may_not_train(tmp_path: Path) -> None:
    long = "This is a sentence of the passage. " * 20
    rows = [
        ROW | {"text": f"Context: {long}", "source": "p3-quoref"},
        ROW | {"text": f"Context: {long}!", "source": "p3-quoref", "license_class": "unspecified"},
        ROW | {"text": "my sorrow", "source": "counsel-chat"},
    ]
    prompts = load_prompts(written(tmp_path / "p.jsonl.gz", *rows))
    assert len(passages(prompts, held_out=None)) == 2
    assert passages(prompts, held_out=PROMPTSOURCE) == ["my sorrow"]


@pytest.mark.parametrize("row", [{"text": "x"}, ROW | {"task": "cooking"}, 7, ROW | {"messages": [{}]}])
def test_a_row_that_is_none_is_named_by_its_line(row: object, tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"p\.jsonl\.gz:2: not a labelled prompt"):
        load_prompts(written(tmp_path / "p.jsonl.gz", ROW, row))


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="cannot be read"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(PromptsError, match="there is no prompt"):
        load_prompts(written(tmp_path / "p.jsonl.gz"))
