"""Who judges, and what is said where vLLM cannot?

Interpreters here are small programs with vLLM's answers; the real one has `tests/vllm/test_pool_check.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from backends.check.engine import EngineUnavailable, Line, ask_engine, has_plugin, installed_version
from backends.check.findings import Severity
from backends.check.pool_check import Checked, Verdict, check_files
from backends.check.stand_in import line_of_pool
from backends.files import load_pools
from tests.integration.backends.check.conftest import POOL, said


def interpreter(folder: Path, *answers: object, version: str = "0.32.0") -> Path:
    """A program that answers so whatever it is asked, in an environment with this release."""
    python = folder / "engine" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(f"TOLLGATE {json.dumps(answer)}" for answer in answers)
    (folder / "engine" / "said").write_text(f"a warning of its own\n{lines}\n")
    python.write_text(f"#!/bin/sh\ncat {folder / 'engine' / 'said'}\n")
    python.chmod(0o755)
    (folder / f"engine/lib/python3.11/site-packages/vllm-{version}+cu130.dist-info").mkdir(
        parents=True, exist_ok=True
    )
    return python


ABOUT = {"about": {"version": "0.32.0", "is_cpu": True}}


def checked(folder: Path, engine: Path | None, text: str = POOL) -> Checked:
    (folder / "mine.yaml").write_text(text)
    return check_files([folder / "mine.yaml"], engine=engine)


def test_a_real_verdict_names_release_and_level(tmp_path: Path) -> None:
    engine = interpreter(tmp_path, ABOUT, {"name": "0", "level": "C", "error": None})
    found = checked(tmp_path, engine)
    (pool,) = found.pools
    assert (pool.verdict, pool.on_whose_word, pool.level) == (Verdict.VALID, "real vLLM 0.32.0", "C")
    assert found.why_snapshot is None


def test_a_refusal_is_an_error_in_its_words(tmp_path: Path) -> None:
    engine = interpreter(tmp_path, ABOUT, {"name": "0", "level": "A", "error": "ValueError: no\n  way"})
    (pool,) = checked(tmp_path, engine).pools
    assert pool.verdict is Verdict.INVALID
    assert said(pool) == ["mine.yaml: vLLM 0.32.0 refuses its command line: ValueError: no way"]


@pytest.mark.parametrize(
    ("error", "where"),
    [
        ("ValueError: not supported on CPU", "on this machine, where no GPU is"),
        ("ValueError: Failed to import Ray: No module named 'ray'", "on this machine, where no GPU is"),
        ("ValueError: Couldn't instantiate the backend tokenizer", "without the model itself"),
        ("ValueError: Cannot find the config file for modelopt", "without the model itself"),
        ("LocalEntryNotFoundError: no cached snapshot", "without the Hub"),
    ],
)
def test_what_is_about_the_judging_is_no_mistake_of_the_pool(tmp_path: Path, error: str, where: str) -> None:
    answer = {"name": "0", "level": "B", "error": error}
    (pool,) = checked(tmp_path, interpreter(tmp_path, ABOUT, answer)).pools
    assert (pool.verdict, pool.level) == (Verdict.VALID, "B")
    assert f"mine.yaml: vLLM 0.32.0 cannot tell {where}: {error}" in said(pool, Severity.NOTE)


def test_where_the_pool_will_run_the_same_words_count(tmp_path: Path) -> None:
    answer = {"name": "0", "level": "B", "error": "ImportError: pip install arctic-inference"}
    text = POOL.replace("A100-80GB", "cpu")
    (pool,) = checked(tmp_path, interpreter(tmp_path, ABOUT, answer), text).pools
    assert pool.verdict is Verdict.INVALID


def test_a_tokenizer_by_name_is_not_looked_up(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"{POOL}engine_args: {{tokenizer: hub/other, seed: 1}}\n")
    line = line_of_pool(load_pools(tmp_path)["mine"], Path("python"), tmp_path / "stand-in")
    assert "--tokenizer" not in line.argv
    assert line.argv[-2:] == ("--seed", "1")
    assert line.is_stand_in


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (
            [ABOUT, {"unavailable": "RuntimeError: Failed to infer device type"}],
            "Failed to infer device type",
        ),
        ([ABOUT], "stopped before it had judged every pool"),
        ([], "could not load vLLM"),
    ],
)
def test_a_vllm_that_cannot_judge_makes_no_pool_wrong(
    tmp_path: Path, answers: list[object], reason: str
) -> None:
    found = checked(tmp_path, interpreter(tmp_path, *answers))
    (pool,) = found.pools
    assert (pool.verdict, pool.on_whose_word) == (Verdict.VALID, "snapshot 0.32.0")
    assert found.why_snapshot is not None
    assert reason in found.why_snapshot


def test_another_release_than_the_snapshots_is_told(tmp_path: Path) -> None:
    engine = interpreter(tmp_path, ABOUT, {"unavailable": "no GPU"}, version="0.33.0")
    assert installed_version(engine) == "0.33.0"
    why = checked(tmp_path, engine).why_snapshot
    assert why is not None
    assert why.endswith("What is installed is vLLM 0.33.0, the snapshot is of 0.32.0: flags may differ")


def test_no_vllm_at_all(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "bin" / "python"
    why = checked(tmp_path, nowhere).why_snapshot
    assert why == f"no vLLM is installed ({nowhere} is missing)"
    assert installed_version(nowhere) is None
    assert not has_plugin(nowhere)


def test_an_interpreter_without_vllm(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="No module named 'vllm'"):
        ask_engine(Path(sys.executable), {"0": Line(("--model", "x"), has_model=False)})


def test_one_that_does_not_answer(tmp_path: Path) -> None:
    python = interpreter(tmp_path)
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(EngineUnavailable, match="did not answer within"):
        ask_engine(python, {"0": Line((), has_model=False)}, timeout_s=0.2)


def test_by_the_snapshot_a_wrong_flag_has_its_line(tmp_path: Path) -> None:
    (pool,) = checked(tmp_path, None, POOL + "engine_args:\n  sede: 1\n  seed: many\n").pools
    assert said(pool) == [
        "mine.yaml:16: engine_args.sede: --sede is no flag of vLLM 0.32.0; did you mean --seed?",
        "mine.yaml:17: engine_args.seed: --seed many: expected a whole number",
    ]


def test_servers_of_someone_else_stay_unchecked(tmp_path: Path) -> None:
    text = POOL.replace("driver: process", "driver: external\nurls: ['http://10.0.0.7:8000']")
    (pool,) = checked(tmp_path, None, text).pools
    assert pool.verdict is Verdict.UNCHECKED
    assert pool.on_whose_word == "someone else runs it: the file is right, the servers were not asked"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- a list\n", "mine.yaml:1: expected a mapping of keys such as 'name', 'driver' and 'model'"),
        ("name: a\nname: b\n", "mine.yaml:2: duplicate key 'name': on line 1 and on line 2"),
        (
            POOL.replace("driver: process", "driver: proces"),
            "mine.yaml:2: driver: expected 'process' or 'external'",
        ),
        (
            POOL + "speculation: {method: eagle3, num_speculative_tokens: 3}\n",
            "mine.yaml:15: speculation: method",
        ),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str, line: str) -> None:
    (pool,) = checked(tmp_path, None, text).pools
    assert (pool.verdict, pool.fit) == (Verdict.INVALID, None)
    assert said(pool)[0].startswith(line)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\n")
    (pool,) = check_files([tmp_path / "mine.yaml"], engine=None).pools
    assert said(pool)[0].startswith("mine.yaml: cannot be read: 'utf-8' codec")


def test_a_name_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POOL)
    (tmp_path / "b.yaml").write_text(f"# again\n{POOL}")
    _, second = check_files(sorted(tmp_path.glob("*.yaml")), engine=None).pools
    assert said(second) == [f"b.yaml:2: name: pool 'mine' is already defined at {tmp_path / 'a.yaml'}:1"]


def test_a_rule_of_the_callers(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(POOL)
    (pool,) = check_files([tmp_path / "mine.yaml"], engine=None, also=lambda spec: f"{spec.name}: no").pools
    assert said(pool) == ["mine.yaml: mine: no"]


# --------------------------------------------------------------------------------------------- stand-ins
def test_models_that_are_not_here_are_stood_in_for(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        POOL.replace("  served_name", "  quantization: awq_marlin\n  served_name")
        + "speculation: {method: draft_model, model: hub/Llama-3.1-8B-FP8, num_speculative_tokens: 3}\n"
    )
    spec = load_pools(tmp_path)["mine"]
    line = line_of_pool(spec, Path("python"), tmp_path / "stand-in")
    target = Path(line.argv[line.argv.index("--model") + 1])
    config = json.loads((target / "config.json").read_text())
    assert (config["num_hidden_layers"], config["quantization_config"]["quant_method"]) == (80, "awq")
    assert "--quantization" not in line.argv
    draft = json.loads(line.argv[line.argv.index("--speculative-config") + 1])["model"]
    assert (
        json.loads((Path(draft) / "config.json").read_text())["quantization_config"]["quant_method"] == "fp8"
    )
    assert line.has_model
    assert line.is_for_gpu


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("hub/unknown", ""),
        ("hub/Llama-3.1-8B", "speculation: {method: eagle3, model: hub/head, num_speculative_tokens: 3}\n"),
    ],
)
def test_an_unknown_model_stays_at_level_b(tmp_path: Path, model: str, more: str) -> None:
    text = POOL.replace("hub/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", model)
    (tmp_path / "mine.yaml").write_text(text + more)
    line = line_of_pool(load_pools(tmp_path)["mine"], Path("python"), tmp_path / "stand-in")
    assert not line.has_model
