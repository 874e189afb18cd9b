"""Is what older guides say found wherever people put it, told with its line, and translated?"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.check.corrected import corrected
from backends.check.findings import Severity
from backends.check.obsolete import PLACES, REMOVED_FLAGS
from backends.check.pool_check import Verdict, check_files
from backends.check.snapshot import read_snapshot
from backends.pool import PLAIN_NAMES, PoolSpec
from backends.yaml_source import known_keys, load_yaml_with_lines
from tests.integration.backends.check.conftest import POOL, Checker, said

OLD_GUIDE = """\
# what the guide says
speculative_model: hub/Meta-Llama-3.1-8B-Instruct-AWQ-INT4  # the draft
num_speculative_tokens: 5
engine_args:
  quantization: awq
  tensor_parallel_size: 1
  max_num_batched_tokens: 32768
  # until here
  gpu_memory_utilization: 0.9
"""


def test_an_old_guide_is_told_line_by_line(check: Checker) -> None:
    pool = check(("  max_num_batched_tokens: 2048\n", ""), more=OLD_GUIDE)
    assert pool.verdict is Verdict.INVALID
    lines = said(pool)
    assert len(lines) == 5
    draft = "hub/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"
    assert lines[0] == (
        "mine.yaml:15: speculative_model: not in vLLM since before 0.32: write speculation: "
        f"{{method: draft_model, model: {draft}, num_speculative_tokens: …}}"
    )
    assert lines[1] == (
        "mine.yaml:16: num_speculative_tokens: a key of speculation now: write "
        "speculation.num_speculative_tokens: 5"
    )
    assert lines[2].startswith("mine.yaml:18: engine_args.quantization: leave it out: vLLM reads")
    assert lines[3] == (
        "mine.yaml:19: engine_args.tensor_parallel_size: belongs elsewhere: write "
        "hardware.tensor_parallel_size: 1"
    )
    assert lines[4].startswith("mine.yaml:20: engine_args.max_num_batched_tokens: 32768 tokens in one step")
    assert lines[4].endswith("Write batching.max_num_batched_tokens: 2048")


def test_its_correction_is_valid_and_keeps_every_comment(check: Checker) -> None:
    pool = check(("  max_num_batched_tokens: 2048\n", ""), more=OLD_GUIDE)
    new = corrected(pool.source.read_text(), pool.edits)
    assert new.has_comments
    assert "# what the guide says" in new.text
    assert "  # until here\n" in new.text
    pool.source.write_text(new.text)
    (again,) = check_files([pool.source], engine=None).pools
    assert again.verdict is Verdict.VALID, said(again)
    assert again.spec is not None
    assert again.spec.speculation is not None
    assert again.spec.speculation.num_speculative_tokens == 5
    assert again.spec.batching.max_num_batched_tokens == 2048
    assert again.edits == ()
    assert corrected(new.text, again.edits).text == new.text


@pytest.mark.parametrize("key", sorted(REMOVED_FLAGS))
@pytest.mark.parametrize("place", ["top", "engine_args"])
def test_every_removed_flag_is_found_and_named_with_what_to_do(check: Checker, key: str, place: str) -> None:
    more = f"{key}: 3\n" if place == "top" else f"engine_args:\n  {key.replace('_', '-')}: 3\n"
    pool = check(more=more)
    assert pool.verdict is Verdict.INVALID
    (line,) = [line for line in said(pool) if key in line.replace("-", "_").split(": ")[1]]
    assert line.startswith(f"mine.yaml:{15 if place == 'top' else 16}: ")
    assert "unknown key" not in line


@pytest.mark.parametrize(
    ("key", "value", "target"),
    [
        ("max_num_seqs", 16, "batching.max_num_seqs: 16"),
        ("max-model-len", 4096, "model.max_model_len: 4096"),
        ("kv_cache_dtype", "fp8", "kv_cache.dtype: fp8"),
        ("gpu", "H100", "hardware.gpu: H100"),
        ("quantization", "fp8", "model.quantization: fp8"),
        ("scheduling_policy", "priority", "scheduling: priority"),
        ("seed", 7, "under engine_args: seed: 7"),
        ("worker_use_ray", "true", "engine_args: distributed_executor_backend: ray"),
        ("guided_decoding_backend", "xgrammar", "structured_outputs_config.backend: xgrammar"),
        ("ngram_prompt_lookup_max", 4, "speculation.prompt_lookup_max: 4"),
        ("speculative_model", "'[ngram]'", "speculation: {method: ngram,"),
        ("speculative_disable_by_batch_size", 8, "batching.max_num_seqs: 8"),
    ],
)
def test_a_flag_at_the_top_is_told_its_place(check: Checker, key: str, value: object, target: str) -> None:
    (line, *_) = said(check(more=f"{key}: {value}\n"))
    assert line.startswith("mine.yaml:15: ")
    assert target in line


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        (
            "{method: ngram, num_speculative_tokens: 3, disable_by_batch_size: 16}",
            "batching.max_num_seqs: 16",
        ),
        ("{method: ngram, num_speculative_tokens: 3, tensor_parallel_size: 1}", "as many GPUs as its target"),
        (
            "{method: ngram, num_speculative_tokens: 3, rejection_sample_method: synthetic}",
            "answers would be wrong",
        ),
        (
            "{method: ngram, num_speculative_tokens: 3, disable_padded_drafter_batch: true}",
            "write it under speculation.engine_args: disable_padded_drafter_batch: True",
        ),
        ("{method: mlp_speculator, num_speculative_tokens: 3}", "its runner knows no such method"),
    ],
)
def test_a_key_of_speculation_that_is_no_more(check: Checker, speculation: str, message: str) -> None:
    lines = said(check(more=f"speculation: {speculation}\n"))
    assert any(message in line and line.startswith("mine.yaml:15: speculation") for line in lines), lines


def test_vllms_own_json_is_a_section_here(check: Checker) -> None:
    config = """'{"method": "ngram", "num_speculative_tokens": 3}'"""
    pool = check(more=f"engine_args:\n  speculative_config: {config}\n")
    (line,) = said(pool)
    assert line == (
        "mine.yaml:16: engine_args.speculative_config: a section here: write its keys under speculation:"
    )
    assert pool.spec is not None
    assert pool.spec.speculation is not None
    assert pool.spec.speculation.method == "ngram"


def test_a_flat_file_of_engine_arguments_becomes_sections(tmp_path: Path) -> None:
    file = tmp_path / "flat.yaml"
    file.write_text(
        "name: flat\ndriver: process\nmodel: hub/Meta-Llama-3.1-70B-AWQ\nquantization: awq\n"
        "tensor_parallel_size: 2\nmax_model_len: 8192\nmax_num_seqs: 32\nmax_num_batched_tokens: 32768\n"
        "gpu_memory_utilization: 0.9\nswap_space: 4\ngpu: A100-80GB\nusd_per_hour: 5.58\n"
        "rates: {input: 1, cached_input: 0.1, output: 2}\n"
    )
    (pool,) = check_files([file], engine=None).pools
    new = corrected(file.read_text(), pool.edits)
    file.write_text(new.text)
    (again,) = check_files([file], engine=None).pools
    assert again.verdict is Verdict.VALID, (new.text, said(again))
    assert again.spec is not None
    assert (again.spec.hardware.gpus_per_replica, again.spec.batching.max_num_batched_tokens) == (2, 2048)


def test_at_its_right_place_old_advice_is_a_warning(check: Checker) -> None:
    pool = check(
        ("max_num_batched_tokens: 2048", "max_num_batched_tokens: 32768"),
        ("  served_name", "  quantization: awq\n  served_name"),
    )
    assert pool.verdict is Verdict.VALID
    warnings = said(pool, Severity.WARNING)
    assert warnings[0].startswith("mine.yaml:5: model.quantization: harmless, and better left out")
    assert warnings[1].startswith("mine.yaml:10: batching.max_num_batched_tokens: 32768 tokens")
    assert [edit.value for edit in pool.edits] == [None, 2048]


@pytest.mark.parametrize(("gpu", "tokens"), [("H100", 32_768), ("A100-80GB", 8192)])
def test_a_batch_that_suits_the_gpu_is_left_alone(check: Checker, gpu: str, tokens: int) -> None:
    pool = check(("A100-80GB", gpu), ("max_num_batched_tokens: 2048", f"max_num_batched_tokens: {tokens}"))
    assert [line for line in said(pool, Severity.WARNING) if "max_num_batched_tokens" in line] == []


@pytest.mark.parametrize(("value", "reason"), [("bitsandbytes", "plug-in"), ("gguf", "plug-in")])
def test_quantizations_that_left_vllm(check: Checker, value: str, reason: str) -> None:
    pool = check(("  served_name", f"  quantization: {value}\n  served_name"))
    assert pool.verdict is Verdict.INVALID
    assert reason in said(pool)[0]


def test_the_tables_agree_with_the_pool_file_and_with_vllm() -> None:
    snapshot = read_snapshot()
    assert [key for key in REMOVED_FLAGS if snapshot.flag(f"--{key.replace('_', '-')}")] == []
    for path in PLACES.values():
        assert str(path[-1]) in known_keys(PoolSpec, path[:-1]), path
    for flag, plain in PLAIN_NAMES.items():
        assert snapshot.flag(f"--{flag}") is not None
        assert PLACES[flag.replace("-", "_")] == tuple(plain.split("."))


# ----------------------------------------------------------------------------------------- corrected text
KEYS = [
    *sorted(REMOVED_FLAGS),
    *sorted(set(PLACES) - {"speculative_config"}),
    "seed",
    "speculation",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    top=st.lists(st.sampled_from(sorted(REMOVED_FLAGS)), unique=True, max_size=3),
    nested=st.lists(st.sampled_from(KEYS), unique=True, max_size=4),
    is_flow=st.booleans(),
)
def test_whatever_is_corrected_reads_as_the_edits_say(
    tmp_path: Path, top: list[str], nested: list[str], *, is_flow: bool
) -> None:
    text = POOL + "".join(f"{key}: 3  # why\n" for key in top)
    if nested and is_flow:
        text += "engine_args: {" + ", ".join(f"{key}: 3" for key in nested) + "}\n"
    elif nested:
        text += "engine_args:\n" + "".join(f"  # {key}\n  {key}: 3\n" for key in nested)
    text += "# the end\n"
    file = tmp_path / "any.yaml"
    file.write_text(text)
    (pool,) = check_files([file], engine=None).pools
    new = corrected(text, pool.edits)
    assert new.has_comments, new.text
    assert new.text.endswith("# the end\n") or "# the end\n" in new.text
    document, _ = load_yaml_with_lines(new.text)
    assert not set(document) & set(REMOVED_FLAGS)
