"""Folders of pool files: what is read, and how a mistake is told."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from backends.files import PoolFileError, load_pools
from tests.integration.backends.conftest import REPOSITORY

POOL = """\
name: mine
driver: process
model:
  path: weights
  served_name: reference
  max_model_len: 1024
batching:
  max_num_seqs: 32
  max_num_batched_tokens: 2048
hardware:
  gpu: cpu
  usd_per_hour: 0.12
rates:
  input: 0.10
  cached_input: 0.01
  output: 0.60
"""


def mistakes_in(folder: Path) -> list[str]:
    with pytest.raises(PoolFileError) as caught:
        load_pools(folder)
    return str(caught.value).splitlines()


def test_the_bundled_pools_are_right() -> None:
    pools = load_pools(REPOSITORY / "backends" / "pools")
    assert list(pools) == ["plain", "speculative"]
    plain, speculative = pools.values()
    weights = REPOSITORY / "backends" / "reference" / "weights"
    assert plain.model.path == speculative.model.path == str(weights / "target-awq")
    assert plain.speculation is None
    assert speculative.speculation is not None
    assert speculative.speculation.model == str(weights / "draft")
    assert speculative.rates is not None
    assert plain.rates is not None
    assert speculative.rates.output < plain.rates.output


def test_decimals_are_exact(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(POOL, encoding="utf-8")
    rates = load_pools(tmp_path)["mine"].rates
    assert rates is not None
    assert rates.cached_input == Decimal("0.01")


def test_only_yaml_files_of_this_very_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(POOL, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not a pool", encoding="utf-8")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "bad.yaml").write_text("not a pool", encoding="utf-8")
    assert list(load_pools(tmp_path)) == ["mine"]


@pytest.mark.parametrize(
    ("written", "located"),
    [
        ("weights", "{folder}/pools/weights"),  # there is such a folder
        ("../other", "{folder}/other"),  # begins like a path, there or not
        ("/srv/weights", "/srv/weights"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_paths_are_relative_to_the_file_and_repositories_stay(
    tmp_path: Path, written: str, located: str
) -> None:
    folder = tmp_path / "pools"
    (folder / "weights").mkdir(parents=True)
    (folder / "mine.yaml").write_text(POOL.replace("path: weights", f"path: {written}"), encoding="utf-8")
    assert load_pools(folder)["mine"].model.path == located.format(folder=tmp_path)


def test_no_folder_and_no_file_in_it(tmp_path: Path) -> None:
    assert mistakes_in(tmp_path / "none") == [
        f"{tmp_path}/none: no such folder; expected a folder with one YAML file per pool"
    ]
    assert mistakes_in(tmp_path) == [f"{tmp_path}: holds no *.yaml file; expected one file per pool"]


def test_two_files_with_one_pool(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POOL, encoding="utf-8")
    (tmp_path / "b.yaml").write_text(f"# again\n{POOL}", encoding="utf-8")
    assert mistakes_in(tmp_path) == [
        f"{tmp_path}/b.yaml:2: name: pool 'mine' is already defined at {tmp_path}/a.yaml:1"
    ]


def test_all_mistakes_of_all_files_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        POOL.replace("max_model_len", "max_model_length").replace("driver: process", "driver: proces"),
        encoding="utf-8",
    )
    (tmp_path / "b.yaml").write_text(f"{POOL}name: twice\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("- a list\n", encoding="utf-8")
    (tmp_path / "d.yaml").write_bytes(b"name: \xff\n")
    (tmp_path / "e.yaml").write_text(f"{POOL}engine_args:\n  max_num_seqs: 3\n", encoding="utf-8")
    set_twice = "--max-num-seqs follows from another key of the pool file and cannot be set twice"
    assert [line.removeprefix(f"{tmp_path}/") for line in mistakes_in(tmp_path)] == [
        "a.yaml:2: driver: expected 'process' or 'external', got 'proces'; did you mean 'process'?",
        "a.yaml:3: model: missing key 'max_model_len'",
        "a.yaml:6: model.max_model_length: unknown key; did you mean 'max_model_len'?",
        "b.yaml:17: duplicate key 'name': on line 1 and on line 17",
        "c.yaml:1: expected a mapping of keys such as 'name', 'driver' and 'model'",
        "d.yaml: cannot be read: 'utf-8' codec can't decode byte 0xff in position 6: invalid start byte",
        f"e.yaml:18: engine_args.max_num_seqs: {set_twice}, got 'max_num_seqs'",
    ]
