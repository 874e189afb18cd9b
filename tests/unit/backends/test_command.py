"""Whole command lines, so that no change of a flag goes unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.launch.command import vllm_argv, vllm_environment
from tests.unit.backends.conftest import PoolMaker

PYTHON = Path("/opt/vllm/bin/python")


def test_a_plain_pool_on_a_cpu(make_pool: PoolMaker) -> None:
    assert vllm_argv(make_pool(), python=PYTHON, port=8001) == [
        "/opt/vllm/bin/python",
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", "/weights/target"),
        *("--served-model-name", "reference"),
        *("--host", "127.0.0.1"),
        *("--port", "8001"),
        *("--dtype", "auto"),
        *("--max-model-len", "1024"),
        *("--max-num-seqs", "32"),
        *("--max-num-batched-tokens", "2048"),
        "--enable-chunked-prefill",
        "--enable-prefix-caching",
        "--enable-per-request-metrics",
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
        "--enforce-eager",
    ]


def test_a_speculative_pool_on_gpus_with_flags_of_its_own(make_pool: PoolMaker) -> None:
    spec = make_pool(
        "speculative",
        model={
            "path": "/weights/target",
            "served_name": "reference",
            "max_model_len": 8192,
            "quantization": "awq",
            "dtype": "float16",
        },
        speculation={
            "method": "draft_model",
            "model": "/weights/draft",
            "num_speculative_tokens": 4,
            "num_speculative_tokens_per_batch_size": [[1, 16, 4], [17, 64, 0]],
            "draft_tensor_parallel_size": 2,
        },
        batching={
            "max_num_seqs": 64,
            "max_num_batched_tokens": 8192,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
        },
        hardware={
            "gpu": "H100",
            "gpus_per_replica": 2,
            "tensor_parallel_size": 2,
            "usd_per_hour": "7.5",
        },
        engine_args={
            "gpu-memory-utilization": 0.9,
            "enable_auto_tool_choice": True,
            "async_scheduling": False,
            "lora_modules": ["a=/a", "b=/b"],
        },
    )
    assert vllm_argv(spec, python=PYTHON, port=8002, host="10.0.0.7") == [
        "/opt/vllm/bin/python",
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", "/weights/target"),
        *("--served-model-name", "reference"),
        *("--host", "10.0.0.7"),
        *("--port", "8002"),
        *("--dtype", "float16"),
        *("--max-model-len", "8192"),
        *("--quantization", "awq"),
        *("--tensor-parallel-size", "2"),
        *("--max-num-seqs", "64"),
        *("--max-num-batched-tokens", "8192"),
        "--no-enable-chunked-prefill",
        "--no-enable-prefix-caching",
        "--enable-per-request-metrics",
        "--enable-prompt-tokens-details",
        "--speculative-config",
        (
            '{"method":"draft_model","model":"/weights/draft","num_speculative_tokens":4,'
            '"num_speculative_tokens_per_batch_size":[[1,16,4],[17,64,0]],"draft_tensor_parallel_size":2}'
        ),
        *("--per-request-spec-decode-metrics", "summary"),
        "--disable-uvicorn-access-log",
        *("--gpu-memory-utilization", "0.9"),
        "--enable-auto-tool-choice",
        "--no-async-scheduling",
        *("--lora-modules", "a=/a", "b=/b"),
    ]


def test_every_plain_name_is_one_flag(make_pool: PoolMaker) -> None:
    spec = make_pool(
        batching={
            "max_num_seqs": 32,
            "max_num_batched_tokens": 2048,
            "max_num_queued_reqs": 64,
            "max_num_queued_tokens": 9000,
        },
        kv_cache={"dtype": "fp8", "block_size": 32, "gpu_memory_utilization": 0.5},
        scheduling="priority",
        hardware={
            "gpu": "H100",
            "gpus_per_replica": 4,
            "pipeline_parallel_size": 2,
            "data_parallel_size": 2,
            "usd_per_hour": "9",
        },
    )
    argv = vllm_argv(spec, python=PYTHON, port=1)
    start = argv.index("--enable-prefix-caching") + 1
    assert argv[start : argv.index("--enable-per-request-metrics")] == [
        *("--kv-cache-dtype", "fp8"),
        *("--block-size", "32"),
        *("--gpu-memory-utilization", "0.5"),
        *("--scheduling-policy", "priority"),
        *("--pipeline-parallel-size", "2"),
        *("--data-parallel-size", "2"),
        *("--max-num-queued-reqs", "64"),
        *("--max-num-queued-tokens", "9000"),
    ]
    in_bytes = vllm_argv(make_pool(kv_cache={"memory_bytes": 2**30}), python=PYTHON, port=1)
    assert in_bytes[in_bytes.index("--kv-cache-memory-bytes") + 1] == "1073741824"


def test_what_only_the_check_reads_is_not_told_to_vllm(make_pool: PoolMaker) -> None:
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 100,
    }
    draft = {"method": "draft_model", "model": "/weights/draft", "num_speculative_tokens": 3}
    model = {"path": "/weights/target", "served_name": "reference", "max_model_len": 1024}
    told = make_pool(model=model | {"shape": shape}, speculation=draft | {"shape": shape})
    plain = make_pool(model=model, speculation=draft)
    assert vllm_argv(told, python=PYTHON, port=1) == vllm_argv(plain, python=PYTHON, port=1)


def test_ngram_lookup_bounds_are_passed_on(make_pool: PoolMaker) -> None:
    speculation = {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }
    argv = vllm_argv(make_pool(speculation=speculation), python=PYTHON, port=1)
    assert json.loads(argv[argv.index("--speculative-config") + 1]) == speculation


def test_compiling_on_a_cpu_can_be_asked_for(make_pool: PoolMaker) -> None:
    argv = vllm_argv(make_pool(engine_args={"enforce_eager": False}), python=PYTHON, port=1)
    assert "--enforce-eager" not in argv
    assert "--no-enforce-eager" in argv


def test_a_pool_without_weights_has_no_command(make_pool: PoolMaker) -> None:
    spec = make_pool(
        driver="external",
        urls=["http://10.0.0.1:8000"],
        model={"served_name": "reference", "max_model_len": 1024},
    )
    with pytest.raises(ValueError, match=r"names no model\.path"):
        vllm_argv(spec, python=PYTHON, port=1)


def test_the_environment_on_a_cpu(make_pool: PoolMaker) -> None:
    assert vllm_environment(make_pool(), is_cpu=True, threads=2) == {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
    }


def test_the_environment_on_a_gpu_with_a_model_from_the_hub(make_pool: PoolMaker) -> None:
    model = {"path": "meta-llama/Llama-3.1-8B", "served_name": "llama", "max_model_len": 8192}
    assert vllm_environment(make_pool(model=model), is_cpu=False) == {"VLLM_NO_USAGE_STATS": "1"}


def test_the_pool_file_has_the_last_word_on_the_environment(make_pool: PoolMaker) -> None:
    spec = make_pool(env={"OMP_NUM_THREADS": "7", "HF_HUB_OFFLINE": "0"})
    environment = vllm_environment(spec, is_cpu=True)
    assert (environment["OMP_NUM_THREADS"], environment["HF_HUB_OFFLINE"]) == ("7", "0")
