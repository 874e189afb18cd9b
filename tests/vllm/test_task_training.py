"""Does the trainer of the task classifier run from prompts to a file that the gateway loads?

It needs torch, which lives with vLLM. No labelled data is in the repository: a few dozen requests of our own
stand for it, under names of sources that may train and of one that may not.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from gateway.inference import CallFacts, TaskType
from gateway.routing.classifier.predict import best
from gateway.routing.classifier.weights import load
from gateway.routing.training.requests import Writer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SOURCES = (("ours-a", "permissive"), ("ours-b", "sharealike"), ("ours-c", "unspecified"))


def write_prompts(path: Path) -> Path:
    rows = [
        {
            "text": request.facts.instruction,
            "task": request.task.value,
            "source": source,
            "license_class": licence,
            "license": licence,
        }
        for seed, (source, licence) in enumerate(SOURCES)
        for request in Writer(seed + 50).requests(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train(prompts: Path, out: Path, *options: str) -> dict[str, Any]:
    command = [str(PYTHON), "-m", "gateway.routing.training", "--prompts", str(prompts), "--out", str(out)]
    small = ["--without-encoder", "--per-task", "30", "--epochs", "3", *options]
    done = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads((out / "figures.json").read_text())
    return figures


def test_a_small_training_judges_writes_its_card_and_ships_a_file_that_works(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    figures = train(prompts, tmp_path / "whole")
    assert {each["family"] for each in figures["families"]} == {"ours-a", "ours-b", "ours-c"}
    assert figures["training"]["rows"] == 2 * 6 * len(TaskType), "a source that may not train has trained"
    assert figures["classifier"]["macro_f1"] > 0.3, "worse than a few phrases allow"
    assert figures["curve"][-1]["families"] == 2
    names = {"weights.bin", "figures.json", "CARD.md", "confusion.svg", "reliability.svg", "curve.svg"}
    assert {file.name for file in (tmp_path / "whole").iterdir()} == names
    weights = load(tmp_path / "whole" / "weights.bin")
    assert best(CallFacts(instruction="Summarize the following article:"), weights)[0] in set(TaskType)

    again = train(prompts, tmp_path / "again", "--no-evaluation")
    data = (tmp_path / "again" / "weights.bin").read_bytes()
    assert again["training"]["sha256"] == hashlib.sha256(data).hexdigest()
    once_more = train(prompts, tmp_path / "more", "--no-evaluation")
    assert once_more["training"]["sha256"] == again["training"]["sha256"], "the seed does not decide"
