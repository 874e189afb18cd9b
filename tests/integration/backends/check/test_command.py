"""What does `tollgate pools check` print, and with which exit status?"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.backends.check.conftest import POOL
from tests.integration.backends.check.test_engine import ABOUT, interpreter
from tests.support.gateway_process import environment
from tests.support.own_process import run_here

EXTERNAL = POOL.replace("driver: process", "driver: external\nurls: ['http://10.0.0.7:8000']")
OLD = "speculative_model: hub/Meta-Llama-3.1-8B-Instruct-AWQ-INT4  # the draft\nswap_space: 4\n"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(environment(folder), folder, "pools", "check", *arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "pools").mkdir()
    file = tmp_path / "pools" / "mine.yaml"
    file.write_text(POOL)
    return file


def test_a_valid_pool_by_the_snapshot(tmp_path: Path, file: Path) -> None:
    done = run(tmp_path, "--snapshot")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[0] == "By the snapshot: vLLM itself was not to be asked."
    assert lines[1] == "mine: valid (snapshot 0.32.0)"
    assert re.fullmatch(
        r"  fits on 1 x A100-80GB: a cache of 111,\d{3} tokens, 13\.6 requests of 8,192 tokens "
        r"\(state expected_lengths for the mean one\)",
        lines[2],
    )
    rows = [line.split() for line in lines[4:9]]
    assert [row[-1] for row in rows] == ["72.91", "-37.04", "-0.45", "-1.50", "33.92"]
    assert sum(float(row[-1]) for row in rows[:4]) == pytest.approx(33.92, abs=0.02)
    assert lines[9] == "    (measures by the repository's name)"


def test_a_verdict_of_vllm_and_what_is_waited_for(tmp_path: Path, file: Path) -> None:
    engine = interpreter(tmp_path, ABOUT, {"name": "0", "level": "C", "error": None})
    done = run(tmp_path, "--engine", str(engine))
    assert done.stdout.splitlines()[0] == "mine: valid (real vLLM 0.32.0)"
    assert done.stderr == "asking vLLM about 1 pool: it takes about 10 s to load …\n"
    engine = interpreter(tmp_path, ABOUT, {"name": "0", "level": "B", "error": None})
    done = run(tmp_path, "--engine", str(engine))
    assert (
        "  levels A and B: its flags fit together; if they fit its model cannot be told here\n" in done.stdout
    )


def test_a_wrong_pool_is_status_1_and_told_with_its_correction(tmp_path: Path, file: Path) -> None:
    file.write_text(POOL + OLD)
    done = run(tmp_path, "--snapshot", str(file))
    assert done.returncode == 1
    assert "mine: invalid\n" in done.stdout
    assert (
        f"  error: {file}:15: speculative_model: not in vLLM since before 0.32: write speculation:"
        in done.stdout
    )
    assert f"  error: {file}:16: swap_space: " in done.stdout
    assert "  with its errors corrected, as --fix does (snapshot 0.32.0):\n  fits on 1 x A100" in done.stdout


def test_the_correction_is_printed_and_written_only_when_asked(tmp_path: Path, file: Path) -> None:
    file.write_text(POOL + OLD)
    shown = run(tmp_path, "--snapshot", "--fix", str(file))
    assert shown.returncode == 0
    assert shown.stderr.count("corrected: ") == 2
    assert file.read_text() == POOL + OLD
    assert shown.stdout.startswith("name: mine\n")
    assert "swap_space" not in shown.stdout
    done = run(tmp_path, "--snapshot", "--fix", "--write", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{file}: written" in done.stderr
    assert file.read_text() == shown.stdout
    assert run(tmp_path, "--snapshot").returncode == 0


def test_a_corrected_file_keeps_its_link_and_its_rights(tmp_path: Path, file: Path) -> None:
    file.write_text(POOL + OLD)
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    assert run(tmp_path, "--snapshot", "--fix", "--write", str(link)).returncode == 0
    assert link.is_symlink()
    assert "swap_space" not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_what_no_edit_settles_is_left(tmp_path: Path, file: Path) -> None:
    file.write_text(POOL.replace("max_model_len: 8192", "max_model_len: 131072") + "swap_space: 4\n")
    done = run(tmp_path, "--snapshot", "--fix", str(file))
    assert done.returncode == 1
    assert f"left to you: {file}:10: hardware: does not fit on 1 x A100-80GB" in done.stderr


def test_as_json(tmp_path: Path, file: Path) -> None:
    file.write_text(POOL + OLD)
    done = run(tmp_path, "--snapshot", "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    (pool,) = shown["pools"]
    assert (pool["verdict"], pool["checked_by"], pool["level"]) == ("invalid", "snapshot 0.32.0", None)
    first = pool["findings"][0]
    assert (first["severity"], first["line"], first["key"]) == ("error", 15, "speculative_model")
    assert {"path": "speculation.method", "value": "draft_model", "is_removal": False} in first["edits"]
    assert pool["fit"]["fits"] is True
    assert shown["why_snapshot"] == "vLLM itself was not to be asked"


def test_servers_of_someone_else_need_no_vllm(tmp_path: Path, file: Path) -> None:
    file.write_text(EXTERNAL)
    done = run(tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == (
        "mine: unchecked (someone else runs it: the file is right, the servers were not asked)"
    )
    assert done.stderr == ""


def test_a_price_that_cannot_be_kept(tmp_path: Path, file: Path) -> None:
    file.write_text(POOL.replace("output: 2", "output: 0.0000000001"))
    done = run(tmp_path, "--snapshot")
    assert done.returncode == 1
    assert re.search(r"error: .*finer than 0\.000000001 USD", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere: no such file or folder; expected pool files"),
        (("empty",), "empty: holds no *.yaml file; expected one file per pool"),
        (("--fix",), "--fix takes one FILE"),
        (("--write", "pools/mine.yaml"), "--write goes with --fix"),
        (("--fix", "pools"), "--fix takes one FILE"),
    ],
)
def test_a_wrong_call_is_status_2(tmp_path: Path, file: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "empty").mkdir()
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_nothing_to_correct_in_what_is_no_yaml(tmp_path: Path, file: Path) -> None:
    file.write_text("name: a\nname: b\n")
    done = run(tmp_path, "--snapshot", "--fix", str(file))
    assert done.returncode == 2
    assert "duplicate key 'name'" in done.stderr


def test_a_key_of_several_lines_goes_whole(tmp_path: Path, file: Path) -> None:
    file.write_text(POOL + "swap_space:\n  - 4\n  - 5\n# the end\n")
    done = run(tmp_path, "--snapshot", "--fix", str(file))
    assert done.returncode == 0
    assert done.stdout == POOL + "# the end\n"


def test_a_layout_that_cannot_be_kept_is_said(tmp_path: Path, file: Path) -> None:
    first, rest = POOL.split("\n", 1)
    assert first == "name: mine"
    file.write_text(f"? name\n: mine\n{rest}seed: 7  # why\n")
    done = run(tmp_path, "--snapshot", "--fix", str(file))
    assert done.returncode == 0
    assert "its layout could not be kept: the comments are lost" in done.stderr
    file.write_text(done.stdout)
    assert run(tmp_path, "--snapshot").returncode == 0
