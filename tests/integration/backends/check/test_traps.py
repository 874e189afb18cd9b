"""Is each known trap named, with its line and what to do, and is a good pool left in peace?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from backends.check.findings import Severity
from backends.check.pool_check import Checked, Verdict, check_files
from backends.check.traps import shared_gpus
from backends.files import load_pools
from tests.integration.backends.check.conftest import POOL, Checker, said
from tests.integration.backends.conftest import REPOSITORY

WEIGHTS = REPOSITORY / "backends" / "reference" / "weights"
NGRAM = "speculation: {method: ngram, num_speculative_tokens: 3}\n"
EAGLE = "speculation: {method: eagle3, model: hub/head, num_speculative_tokens: 3"


def args(line: str) -> str:
    return f"engine_args:\n  {line}\n"


@pytest.mark.parametrize(
    ("more", "severity", "place", "message"),
    [
        (args("enable_force_include_usage: true"), "warning", "16: engine_args", "usage into every chunk"),
        (args("api_key: secret"), "warning", "16: engine_args.api_key", "guards only /v1"),
        (
            args("disable_log_stats: true"),
            "error",
            "16: engine_args.disable_log_stats",
            "takes /metrics away",
        ),
        (args("disable_cascade_attn: true"), "warning", "16: engine_args", "vLLM 0.33 removes it"),
        (args("prefix_caching_hash_algo: xxhash"), "warning", "16: engine_args", "keep sha256"),
        (args("block_size: 16"), "note", "16: engine_args.block_size", "plain name: kv_cache.block_size"),
        (args("data_parallel_rank: 1"), "error", "16: engine_args.data_parallel_rank", "write replicas"),
        ("env: {VLLM_SERVER_DEV_MODE: '1'}\n", "warning", "15: env.VLLM_SERVER_DEV_MODE", "/collective_rpc"),
        ("env: {VLLM_HTTP_TIMEOUT_KEEP_ALIVE: '2'}\n", "warning", "15: env.VLLM_HTTP", "Write 5 or more"),
        (NGRAM, "note", "15: speculation.method", "asynchronous scheduling off: use ngram_gpu"),
        (NGRAM, "note", "15: speculation", "min_p, logit_bias"),
        (NGRAM.replace("ngram", "suffix"), "note", "15: speculation.method", "arctic-inference"),
        (NGRAM.replace("ngram", "ngram_gpu"), "note", "15: speculation.method", "issue 52620"),
        (
            f"{NGRAM}{args('structured_outputs_config.backend: lm-format-enforcer')}",
            "error",
            "17: engine_args",
            "xgrammar or guidance",
        ),
        (
            f"{NGRAM[:-2]}, num_speculative_tokens_per_batch_size: [[1, 8, 3]]}}\n",
            "warning",
            "15: speculation.num_speculative_tokens_per_batch_size",
            "issue 51510",
        ),
        (
            "latency_targets: {ttft_p95_ms: 500}\n",
            "note",
            "15: latency_targets",
            "ignores a request's priority",
        ),
        ("latency_targets: {ttft_p95_ms: 500}\n", "note", "15: latency_targets", "queue is unbounded"),
    ],
)
def test_a_trap_is_named(check: Checker, more: str, severity: str, place: str, message: str) -> None:
    lines = said(check(more=more), Severity(severity))
    assert [line for line in lines if line.startswith(f"mine.yaml:{place}") and message in line], lines


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "gpus_per_replica: 1",
            "gpus_per_replica: 3\n  tensor_parallel_size: 3",
            "cannot share 64 attention heads",
        ),
        ("max_model_len: 8192", "max_model_len: 262144", "made for 131,072 tokens"),
        ("Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "Llama-3.1-70B", "does not fit on 1 x A100-80GB"),
        ("max_model_len: 8192", "max_model_len: 131072", "the cache holds 111,"),
    ],
)
def test_what_vllm_would_refuse_is_an_error(check: Checker, old: str, new: str, message: str) -> None:
    pool = check((old, new))
    assert pool.verdict is Verdict.INVALID
    assert [line for line in said(pool) if message in line], said(pool)


def test_long_contexts_can_be_asked_for(check: Checker) -> None:
    pool = check(("max_model_len: 8192", "max_model_len: 140000"), ("AWQ-INT4", "AWQ"))
    assert any("made for" in line for line in said(pool))
    allowed = check(
        ("max_model_len: 8192", "max_model_len: 140000"), more="env: {VLLM_ALLOW_LONG_MAX_MODEL_LEN: '1'}\n"
    )
    assert not any("made for" in line for line in said(allowed))


def test_a_batch_that_the_cache_cannot_hold(check: Checker) -> None:
    lengths = "expected_lengths: {input_tokens: 6000, output_tokens: 2000}\n"
    (line,) = said(check(more=lengths), Severity.WARNING)
    assert line.startswith("mine.yaml:8: batching.max_num_seqs: 32 is a wish: the cache holds 111,")
    assert "Write 15, or" in line


def test_a_large_batch_with_speculation(check: Checker) -> None:
    (line,) = said(check(("max_num_seqs: 32", "max_num_seqs: 256"), more=NGRAM), Severity.WARNING)
    assert "speculation costs more than it gains" in line


def test_data_parallel_copies_lose_the_schedule_and_fail_together(check: Checker) -> None:
    schedule = f"{EAGLE}, num_speculative_tokens_per_batch_size: [[1, 8, 3]]}}\n"
    pool = check(("gpus_per_replica: 1", "gpus_per_replica: 2\n  data_parallel_size: 2"), more=schedule)
    lines = said(pool, Severity.WARNING)
    assert any("vLLM drops the schedule" in line for line in lines)
    assert any(line.startswith("mine.yaml:13: hardware.data_parallel_size") for line in lines)


def test_fp8_on_an_a100_saves_memory_only(check: Checker) -> None:
    pool = check(("Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "Llama-3.1-8B-FP8"))
    assert any("no FP8 arithmetic" in line for line in said(pool, Severity.NOTE))
    hopper = check(("Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "Llama-3.1-8B-FP8"), ("A100-80GB", "H100"))
    assert not any("no FP8 arithmetic" in line for line in said(hopper, Severity.NOTE))


def test_a_repository_that_never_was(check: Checker) -> None:
    pool = check(("hub/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "TheBloke/Llama-3-70B-AWQ"))
    assert any("no such repository is known" in line for line in said(pool, Severity.WARNING))


# ---------------------------------------------------------------------------------------- with real folders
def on_cpu(folder: Path, target: Path, more: str = "") -> Checked:
    text = POOL.replace("hub/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", str(target))
    text = text.replace("A100-80GB", "cpu").replace("  gpus_per_replica: 1\n", "").replace("8192", "1024")
    file = folder / "mine.yaml"
    file.write_text(text + more)
    return check_files([file], engine=None)


def changed_copy(folder: Path, **changes: object) -> Path:
    copy = folder / "copy"
    shutil.copytree(WEIGHTS / "draft", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def test_a_draft_with_another_vocabulary(tmp_path: Path) -> None:
    draft = changed_copy(tmp_path, vocab_size=4096)
    speculation = f"speculation: {{method: draft_model, model: {draft}, num_speculative_tokens: 3}}\n"
    (pool,) = on_cpu(tmp_path, WEIGHTS / "target", speculation).pools
    assert any("its vocabulary has 4,096 entries, the target's 2,048" in line for line in said(pool))


def test_a_draft_as_large_as_its_target(tmp_path: Path) -> None:
    speculation = (
        f"speculation: {{method: draft_model, model: {WEIGHTS / 'target'}, num_speculative_tokens: 3}}\n"
    )
    (pool,) = on_cpu(tmp_path, WEIGHTS / "target", speculation).pools
    assert any("100% of the target's parameters" in line for line in said(pool, Severity.WARNING))


def test_heads_that_a_cpu_cannot_attend_with(tmp_path: Path) -> None:
    (pool,) = on_cpu(tmp_path, changed_copy(tmp_path, head_dim=24)).pools
    assert any("its attention heads have 24 dimensions" in line for line in said(pool))


def test_a_config_that_cannot_be_understood(tmp_path: Path) -> None:
    copy = changed_copy(tmp_path)
    (copy / "config.json").write_text("{}")
    (pool,) = on_cpu(tmp_path, copy).pools
    assert pool.verdict is Verdict.INVALID
    assert "config.json: no 'num_attention_heads' in it" in said(pool)[0]
    (copy / "config.json").write_text("{")
    (pool,) = on_cpu(tmp_path, copy).pools
    assert pool.verdict is Verdict.INVALID


def test_a_second_quantization(tmp_path: Path) -> None:
    checked = on_cpu(tmp_path, WEIGHTS / "target-awq")
    assert said(checked.pools[0]) == []
    file = checked.pools[0].source
    file.write_text(file.read_text().replace("  served_name", "  quantization: fp8\n  served_name"))
    (pool,) = check_files([file], engine=None).pools
    assert any("quantized already, by awq" in line for line in said(pool))


def test_speculation_on_a_cpu_without_the_repair(tmp_path: Path) -> None:
    engine = tmp_path / "engine" / "bin" / "python"
    engine.parent.mkdir(parents=True)
    engine.write_text("#!/bin/sh\nexit 1\n")
    engine.chmod(0o755)
    checked = on_cpu(tmp_path, WEIGHTS / "target", NGRAM)
    (pool,) = check_files([checked.pools[0].source], engine=engine).pools
    assert any("returns wrong text on vLLM's CPU build" in line for line in said(pool, Severity.WARNING))
    (engine.parent.parent / "lib/python3.11/site-packages/tollgate_vllm_plugin-0.1.0.dist-info").mkdir(
        parents=True
    )
    (pool,) = check_files([pool.source], engine=engine).pools
    assert said(pool, Severity.WARNING) == []


# ------------------------------------------------------------------------------------------- one machine
def test_pools_that_share_a_gpu_ask_for_less_than_all_of_it(tmp_path: Path) -> None:
    pools = load_pools(REPOSITORY / "backends" / "pools" / "examples")
    assert shared_gpus(pools) == []
    together = POOL + "kv_cache: {gpu_memory_utilization: 0.6}\n"
    (tmp_path / "a.yaml").write_text(together)
    (tmp_path / "b.yaml").write_text(together.replace("name: mine", "name: other"))
    checked = check_files(sorted(tmp_path.glob("*.yaml")), engine=None)
    (sentence,) = checked.machine
    assert sentence.startswith("GPU 0: mine and other ask for 1.20 of its memory")
    (tmp_path / "b.yaml").write_text(together.replace("name: mine", "name: other") + args("device_ids: '1'"))
    assert check_files(sorted(tmp_path.glob("*.yaml")), engine=None).machine == ()


def test_a_good_pool_is_left_in_peace(check: Checker) -> None:
    pool = check(more="scheduling: priority\n")
    assert pool.verdict is Verdict.VALID
    assert [each for each in pool.findings if each.severity is not Severity.NOTE] == []


def test_the_bundled_pools_have_no_warnings() -> None:
    files = sorted((REPOSITORY / "backends" / "pools").rglob("*.yaml"))
    for pool in check_files(files, engine=None).pools:
        assert [each for each in pool.findings if each.severity is not Severity.NOTE] == [], pool.source
