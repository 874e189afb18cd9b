"""Does `tollgate classify` say what each request is, and which line is wrong?"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_process import environment
from tests.support.own_process import run_here
from tests.support.pool_files import write_pools

REQUESTS: list[dict[str, Any]] = [
    {"text": "I feel lonely since my best friend moved away. What should I do?"},
    {"messages": [{"role": "user", "content": "Summarize this: Sales rose."}], "model": "auto"},
    {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}},
    {"prompt": "Write a haiku about rain."},
    {"messages": [{"role": "user", "content": "x"}], "metadata": {"task": "math"}},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    nowhere = ["http://127.0.0.1:9"]
    write_pools(tmp_path / "pools", {"speculative": nowhere, "plain": nowhere})
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    outcome = run_here(environment(folder), folder, "classify", *arguments)
    return outcome.returncode, outcome.stdout, outcome.stderr


def write(folder: Path, *lines: str) -> str:
    (folder / "r.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "r.jsonl"


def test_each_request_gets_one_line_of_json(folder: Path) -> None:
    file = write(folder, *(json.dumps(request) for request in REQUESTS), "")
    status, printed, told = run(folder, file, "--json")
    found = [json.loads(line) for line in printed.splitlines()]
    assert (status, told) == (0, "")
    assert [(each["line"], each["task"], each["nature"], each["source"]) for each in found] == [
        (1, "chat", "creative", "classifier"),
        (2, "summarization", "predictable", "signal"),
        (3, "structured", "predictable", "signal"),
        (4, "creative", "creative", "signal"),
        (5, "math", "predictable", "declared"),
    ]
    assert all(0 < each["confidence"] <= 1 for each in found)


def test_people_get_a_table(folder: Path) -> None:
    status, printed, _ = run(folder, write(folder, json.dumps(REQUESTS[0])))
    assert status == 0
    assert "chat" in printed
    assert "I feel lonely" in printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "r.jsonl:2: not JSON"),
        ("[" * 5000, "r.jsonl:2: not JSON"),
        ("7", 'r.jsonl:2: not an object: write {"text": "…"} or a request body'),
        ('{"text": ""}', "r.jsonl:2: neither"),
        ('{"messages": []}', "r.jsonl:2: `messages` is empty"),
        ('{"messages": [{"role": "user", "content": 7}]}', "r.jsonl:2: `messages` has the wrong type"),
        ('{"text": "x", "metadata": {"task": "cooking"}}', "r.jsonl:2: Unknown task 'cooking'"),
    ],
)
def test_a_line_that_is_no_request_is_named(folder: Path, line: str, message: str) -> None:
    status, _, told = run(folder, write(folder, '{"text": "fine"}', line), "--json")
    assert status == 2
    assert message in told


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    status, _, told = run(folder, "none.jsonl")
    assert (status, told) == (2, "tollgate: none.jsonl: cannot be read: No such file or directory\n")
