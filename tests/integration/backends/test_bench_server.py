"""Which server is benched, and what does vLLM's own benchmark say about the same load?

A program stands for vLLM's interpreter: it serves by the mock vLLM, or writes the benchmark's result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.bench.load import BenchError
from backends.bench.target import Target, target_of
from backends.bench.vllm_bench import cross_check
from backends.files import load_pools
from backends.launch.process import ReplicaProgress
from backends.pool import PoolSpec
from tests.support.mock_process import MockVllm

ROOT = Path(__file__).resolve().parents[3]
SERVES = f"""
import os, sys
asked = sys.argv[1:]
port = next(asked[at + 1] for at, one in enumerate(asked) if one == "--port")
os.chdir({str(ROOT)!r})
os.execv({sys.executable!r}, [{sys.executable!r}, "-m", "tests.support.mock_vllm", "--port", port])
"""
MEASURES = """
import json, sys
asked = sys.argv[3:]
options = dict(zip(asked, asked[1:]))
prompts = json.load(open(options["--dataset-path"]))
result = {"output_throughput": 10.0 * len(prompts), "median_ttft_ms": 12.5, "median_tpot_ms": 3.25}
json.dump(result, open(f"{options['--result-dir']}/{options['--result-filename']}", "w"))
"""


@pytest.fixture
def mock() -> Iterator[MockVllm]:
    with MockVllm("--ttft-ms", "2", "--tpot-ms", "0.2", "--max-model-len", "4096") as one:
        yield one


@pytest.fixture
def pools() -> dict[str, PoolSpec]:
    return load_pools(ROOT / "backends" / "pools")


def interpreter(folder: Path, program: str) -> Path:
    """A file that stands for vLLM's Python."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\n{program}")
    file.chmod(0o700)
    return file


async def found(pools: dict[str, PoolSpec], folder: Path, python: Path, url: str | None = None) -> Target:
    told: list[ReplicaProgress] = []
    chosen = target_of("plain", pools, url=url, state_dir=folder, python=python, on_progress=told.append)
    async with chosen as target:
        return target


async def test_a_pool_that_does_not_run_is_started_for_the_bench(
    pools: dict[str, PoolSpec], tmp_path: Path
) -> None:
    target = await found(pools, tmp_path, interpreter(tmp_path, SERVES))
    assert target.url.startswith("http://127.0.0.1:")
    assert target.how.startswith("started for the bench, OMP_NUM_THREADS=")


async def test_other_servers_are_taken_as_they_are(pools: dict[str, PoolSpec], tmp_path: Path) -> None:
    nowhere = tmp_path / "python"
    assert (await found(pools, tmp_path, nowhere, "http://there:8000/")).url == "http://there:8000"
    plain = pools["plain"].model_copy(update={"driver": "external", "urls": ("http://here:8000",)})
    assert (await found({"plain": plain}, tmp_path, nowhere)).url == "http://here:8000"
    with pytest.raises(BenchError, match="vLLM is not installed"):
        await found(pools, tmp_path, nowhere)


async def test_vllms_own_benchmark_stands_beside_ours(
    mock: MockVllm, pools: dict[str, PoolSpec], tmp_path: Path
) -> None:
    check = await cross_check(pools["plain"], mock.url, python=interpreter(tmp_path, MEASURES))
    assert (check.vllms.output_tokens_per_s, check.vllms.ttft_ms, check.vllms.tpot_ms) == (320.0, 12.5, 3.25)
    assert check.ours.output_tokens_per_s > 0
    assert "against 320 tokens/s" in check.in_words()


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("import sys\nsys.exit('no such dataset')", "ended with status 1:\nno such dataset"),
        ("", "left no result that can be read"),
    ],
)
async def test_a_benchmark_that_fails_is_told(
    mock: MockVllm, pools: dict[str, PoolSpec], tmp_path: Path, *, program: str, complaint: str
) -> None:
    with pytest.raises(BenchError, match=complaint):
        await cross_check(pools["plain"], mock.url, python=interpreter(tmp_path, program))


async def test_a_benchmark_needs_a_tokenizer_and_vllm(pools: dict[str, PoolSpec], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="run `make engine`"):
        await cross_check(pools["plain"], "http://x", python=tmp_path / "python")
    hub = pools["plain"].model.model_copy(update={"path": "org/model"})
    with pytest.raises(BenchError, match="needs the tokenizer"):
        await cross_check(pools["plain"].model_copy(update={"model": hub}), "http://x", python=tmp_path)
