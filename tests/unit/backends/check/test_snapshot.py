"""What does the snapshot of vLLM's flags accept, and what does it say against the rest?"""

from __future__ import annotations

from typing import get_args

import pytest

from backends.check.snapshot import FILE, read_snapshot
from backends.pool_sections import SpeculationSpec

SNAPSHOT = read_snapshot()
SNAPSHOT_BYTES_MAX = 60_000


def test_it_is_stamped_and_small() -> None:
    assert SNAPSHOT.version == "0.32.0"
    assert len(SNAPSHOT.flags) > 300
    assert {"ngram", "eagle3", "draft_model", "suffix"} <= set(SNAPSHOT.speculation_methods)
    assert "num_speculative_tokens_per_batch_size" in SNAPSHOT.speculation_keys
    assert {"awq", "fp8", "compressed-tensors"} <= set(SNAPSHOT.quantizations)
    assert FILE.stat().st_size < SNAPSHOT_BYTES_MAX


def test_what_a_pool_file_may_say_of_speculation_is_known_to_vllm() -> None:
    fields = SpeculationSpec.model_fields
    told = {name for name, each in fields.items() if not each.exclude}
    assert told <= set(SNAPSHOT.speculation_keys)
    assert set(get_args(fields["method"].annotation)) <= set(SNAPSHOT.speculation_methods)


@pytest.mark.parametrize(
    "line",
    [
        "--max-num-seqs 16",
        "--max-model-len 32k",
        "--max-model-len auto",
        "--max-model-len -1",
        "--kv-cache-dtype fp8",
        "--enable-sleep-mode",
        "--no-enable-prefix-caching",
        "--lora-modules a=/a b=/b",
        '--speculative-config {"method":"ngram"}',
        "--structured-outputs-config.backend xgrammar",
        "--device-memory-utilization 0.5",
        "--tool-call-parser hermes",
        "--quantization awq",
        "--tool-call-parser ours --tool-parser-plugin ours.py",
        "--reasoning-parser ours --reasoning-parser-plugin ours.py",
    ],
)
def test_what_vllm_takes(line: str) -> None:
    assert SNAPSHOT.mistakes(line.split()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--max-num-seq 16", "--max-num-seq is no flag of vLLM 0.32.0; did you mean --max-num-seqs?"),
        ("--qqq 1", "--qqq is no flag of vLLM 0.32.0"),
        ("--swap-space 4", "--swap-space is not in vLLM 0.32.0: leave it out: preempted requests are"),
        ("--max-num-seqs many", "--max-num-seqs many: expected a whole number"),
        ("--gpu-memory-utilization much", "--gpu-memory-utilization much: expected a number"),
        ("--max-model-len long", "--max-model-len long: expected a whole number such as 8192"),
        ("--kv-cache-dtype fp9", "--kv-cache-dtype fp9: no such choice; did you mean fp8?"),
        (
            "--scheduling-policy lifo",
            "--scheduling-policy lifo: no such choice; expected one of fcfs, priority",
        ),
        ("--tool-call-parser hermest", "--tool-call-parser hermest: no such choice; did you mean hermes?"),
        ("--quantization bitsandbytes", "--quantization bitsandbytes: no such choice"),
        ("--enable-sleep-mode yes", "--enable-sleep-mode takes no value, got 'yes'"),
        ("--max-num-seqs", "--max-num-seqs takes one value, got 0"),
        ("--max-num-seqs 1 2", "--max-num-seqs takes one value, got 2"),
        ("--lora-modules", "--lora-modules takes values, got 0"),
        ("--no-max-num-seqs", "--no-max-num-seqs: max-num-seqs has no form with --no-"),
        ("--max-num-seqs.x 1", "--max-num-seqs.x: --max-num-seqs takes no keys"),
        ("--speculative-config {", "--speculative-config {: expected JSON"),
        (
            '--speculative-config {"disable_by_batch_size":3}',
            "--speculative-config: vLLM 0.32.0 knows no key disable_by_batch_size",
        ),
    ],
)
def test_what_vllm_refuses(line: str, said: str) -> None:
    (sentence,) = SNAPSHOT.mistakes(line.split())
    assert sentence.startswith(said)
