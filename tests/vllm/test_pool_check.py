"""Does the pool check say what the real vLLM says: the snapshot, the removed flags, the levels, the memory?

vLLM is loaded twice (once to list its flags, once to judge every line of this file), some ten seconds each;
the size of the cache is read from the bundled fleet, which the other tests here use too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from backends.check.engine import EngineAnswer, EngineUnavailable, Line, ask_engine, ask_for_snapshot
from backends.check.fit import Fit, fit_of
from backends.check.obsolete import REMOVED_FLAGS
from backends.check.snapshot import FILE, read_snapshot
from backends.check.stand_in import line_of_pool
from backends.files import load_pools
from backends.pool import PoolSpec
from tests.vllm.conftest import REPOSITORY, VLLM_PYTHON, RunningFleet

pytestmark = pytest.mark.vllm

POOLS = REPOSITORY / "backends" / "pools"
TARGET = REPOSITORY / "backends" / "reference" / "weights" / "target"
SNAPSHOT = read_snapshot()


def spec(path: str = str(TARGET), **changes: object) -> PoolSpec:
    document: dict[str, object] = {
        "name": "mine",
        "driver": "process",
        "model": {"path": path, "served_name": "x", "max_model_len": 1024},
        "batching": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
        "hardware": {"gpu": "H100", "gpus_per_replica": 1, "usd_per_hour": 3},
        "rates": {"input": 1, "cached_input": 1, "output": 1},
    }
    return PoolSpec.model_validate(document | changes)


NGRAM = {"method": "ngram", "num_speculative_tokens": 3}
MODEL = {"served_name": "x", "max_model_len": 1024}
SPECS: dict[str, tuple[PoolSpec, str, str]] = {
    # name: pool, the last level that holds, what is said against the next
    "plain": (spec(), "C", ""),
    "every plain name": (
        spec(
            kv_cache={"dtype": "fp8", "block_size": 32, "gpu_memory_utilization": 0.5},
            scheduling="priority",
            batching={
                "max_num_seqs": 32,
                "max_num_batched_tokens": 2048,
                "max_num_queued_reqs": 64,
                "max_num_queued_tokens": 9000,
            },
            hardware={
                "gpu": "H100",
                "gpus_per_replica": 4,
                "tensor_parallel_size": 2,
                "pipeline_parallel_size": 2,
                "usd_per_hour": 9,
            },
        ),
        "C",
        "",
    ),
    "a cache in bytes": (spec(kv_cache={"memory_bytes": 2**30}), "C", ""),
    "ngram": (spec(speculation=NGRAM), "C", ""),
    "a key of speculation passed through": (
        spec(speculation=NGRAM | {"engine_args": {"disable_padded_drafter_batch": True}}),
        "C",
        "",
    ),
    "a key of speculation that vLLM does not have": (
        spec(speculation=NGRAM | {"engine_args": {"disable_by_batch_siz": 3}}),
        "B",
        "disable_by_batch_siz",
    ),
    "ngram on a GPU": (spec(speculation=NGRAM | {"method": "ngram_gpu"}), "C", ""),
    "a model by name": (spec("hub/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"), "C", ""),
    "an FP8 model by name": (spec("hub/Llama-3.1-70B-FP8"), "C", ""),
    "a 4-bit kernel by name": (
        spec(model=MODEL | {"path": "hub/Llama-3.1-70B-AWQ", "quantization": "awq_marlin"}),
        "C",
        "",
    ),
    "quantized while loading": (
        spec(model=MODEL | {"path": "hub/Llama-3.1-8B", "quantization": "fp8"}),
        "C",
        "",
    ),
    "a model that nobody knows": (spec("hub/nobody-knows"), "B", ""),
    "three GPUs for eight heads": (
        spec(hardware={"gpu": "H100", "gpus_per_replica": 3, "tensor_parallel_size": 3, "usd_per_hour": 9}),
        "B",
        "attention heads",
    ),
    "too long": (spec(model=MODEL | {"path": str(TARGET), "max_model_len": 4096}), "B", "max_model_len"),
    "an external balancer for a dense model": (
        spec(engine_args={"data_parallel_rank": 0, "data_parallel_size_local": 1}, hardware={
            "gpu": "H100", "gpus_per_replica": 2, "data_parallel_size": 2, "usd_per_hour": 9,
        }),
        "B",
        "MoE|dense",
    ),
    "a parser that does not exist": (
        spec(engine_args={"enable_auto_tool_choice": True, "tool_call_parser": "nobody"}),
        "A",
        "tool",
    ),
    "reasoning that does not exist": (spec(engine_args={"reasoning_parser": "nobody"}), "A", "reasoning"),
}  # fmt: skip

GOOD = [str(TARGET), "--max-num-seqs", "16"]
WRONG_VALUES = {"int": "many", "float": "much", "json": "{", "size": "long", "switch": "yes", "flag": "yes"}


def wrong_lines() -> dict[str, list[str]]:
    """For each flag whose kind or choices the snapshot knows, a value that it holds to be wrong."""
    lines = {}
    for option, entry in SNAPSHOT.flags.items():
        known = SNAPSHOT.flag(option) or entry
        value = "no-such-choice" if "choices" in known else WRONG_VALUES.get(known["kind"])
        if value is not None and option not in {"--help", "--headless"}:
            lines[f"wrong {option}"] = ["--model", str(TARGET), f"{option}={value}"]
    return lines


def bundled() -> dict[str, PoolSpec]:
    pools = load_pools(POOLS) | load_pools(POOLS / "examples")
    return {name: pool for name, pool in pools.items() if pool.driver == "process"}


@dataclass(frozen=True)
class Judged:
    answer: EngineAnswer
    lines: dict[str, Line] = field(default_factory=dict)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    folder = tmp_path_factory.mktemp("stand-ins")
    lines = {
        name: line_of_pool(pool, VLLM_PYTHON, folder / str(number))
        for number, (name, (pool, _, _)) in enumerate(SPECS.items())
    }
    for key in REMOVED_FLAGS:
        option = f"--{key.replace('_', '-')}"
        lines[option] = Line((*GOOD, f"{option}=3"), has_model=False)
    for name, argv in wrong_lines().items():
        lines[name] = Line(tuple(argv), has_model=False)
    for name, pool in bundled().items():
        lines[f"file {name}"] = line_of_pool(pool, VLLM_PYTHON, folder / name)
    for name, is_for_gpu in (("sleep on a GPU", True), ("sleep on a CPU", False)):
        asleep = (*lines["plain"].argv, "--enable-sleep-mode")
        lines[name] = Line(asleep, has_model=True, is_for_gpu=is_for_gpu)
    lines["good"] = Line(tuple(GOOD), has_model=False)
    lines["abbreviated"] = Line((*GOOD, "--max-model", "512"), has_model=False)
    return Judged(ask_engine(VLLM_PYTHON, lines), lines)


def test_the_snapshot_is_of_the_vllm_that_is_installed() -> None:
    """When this fails after an upgrade: `python -m backends.check.snapshot .venv-vllm/bin/python`."""
    assert ask_for_snapshot(VLLM_PYTHON) == json.loads(FILE.read_text())


@pytest.mark.parametrize("key", sorted(REMOVED_FLAGS))
def test_vllm_refuses_every_flag_that_is_called_removed(judged: Judged, key: str) -> None:
    verdict = judged.answer.verdicts[f"--{key.replace('_', '-')}"]
    assert verdict.level == ""
    assert verdict.error is not None
    assert re.search("unrecognized arguments|ambiguous option", verdict.error), verdict


def test_vllm_refuses_every_value_that_the_snapshot_calls_wrong(judged: Judged) -> None:
    accepted = [
        name
        for name in judged.lines
        if name.startswith("wrong ") and judged.answer.verdicts[name].error is None
    ]
    assert accepted == []
    assert sum(name.startswith("wrong ") for name in judged.lines) > 200


@pytest.mark.parametrize("name", SPECS)
def test_how_far_a_pool_gets(judged: Judged, name: str) -> None:
    _, level, said = SPECS[name]
    verdict = judged.answer.verdicts[name]
    assert verdict.level == level, verdict
    if said:
        assert verdict.error is not None
        assert re.search(said, verdict.error), verdict
    else:
        assert verdict.error is None
        assert SNAPSHOT.mistakes(list(judged.lines[name].argv)) == []


@pytest.mark.parametrize("name", ["plain", "speculative", "llama-70b-plain", "llama-70b-speculative"])
def test_the_bundled_pools_and_the_examples_hold_at_every_level(judged: Judged, name: str) -> None:
    verdict = judged.answer.verdicts[f"file {name}"]
    assert (verdict.level, verdict.error) == ("C", None)


def test_what_only_this_machine_cannot_do_is_no_mistake_of_a_gpu_pool(judged: Judged) -> None:
    here, there = judged.answer.verdicts["sleep on a CPU"], judged.answer.verdicts["sleep on a GPU"]
    assert (there.level, there.error) == ("C", None)
    assert here.level == "B"
    assert "leep" in (here.error or "")


def test_a_line_is_judged_as_it_is_written(judged: Judged) -> None:
    assert judged.answer.verdicts["good"].error is None
    error = judged.answer.verdicts["abbreviated"].error
    assert error == "abbreviated, or in another spelling: --max-model"
    assert judged.answer.version == SNAPSHOT.version
    assert judged.answer.is_cpu


def test_a_build_for_gpus_on_a_machine_without_one_is_unavailable(tmp_path: Path) -> None:
    """Simulated: the same vLLM, under the metadata of the CUDA distribution."""
    metadata = tmp_path / "site" / "vllm-0.32.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    python = tmp_path / "engine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {VLLM_PYTHON} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(EngineUnavailable, match="Failed to infer device type"):
        ask_engine(python, {"good": Line(tuple(GOOD), has_model=False)})


def test_the_cache_of_the_running_fleet_is_as_large_as_calculated(fleet: RunningFleet) -> None:
    for name, pool in load_pools(POOLS).items():
        text = httpx.get(f"{fleet.urls[name]}/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith("vllm:cache_config_info{")]
        found = re.search(r'kv_cache_size_tokens="(\d+)"', line)
        assert found is not None
        fit = fit_of(pool)
        assert isinstance(fit, Fit)
        # A cache of a fixed size: nothing is estimated but the rest of the last block.
        assert fit.cache_tokens == pytest.approx(int(found[1]), rel=0.001), name
