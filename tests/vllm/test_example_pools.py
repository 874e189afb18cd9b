"""Does vLLM 0.32 itself accept the pools that we show as examples for real hardware?

Its own code is asked, in its own environment, in three steps: its argument parser (unknown flags, wrong
types, abbreviations), its rules for a server, and the whole engine configuration (`create_engine_config`),
for which the models' repositories are replaced by folders that hold a configuration of the same shapes and no
weights. The same program must refuse the obsolete configuration that the examples replace, flag by flag.

Not checked here, because it takes the cards or the weights: that the weights of these repositories load, that
they and the cache fit in memory (recalculated in tests/unit/backends/test_example_pools.py), which kernel is
chosen for AWQ on CUDA, the defaults that depend on the GPU, that the cards of `device_ids` exist, and any
speed. Without GPUs vLLM also picks another executor for tensor parallelism.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.files import load_pools
from backends.launch.command import vllm_argv
from backends.pool import PoolSpec
from tests.vllm.conftest import REPOSITORY, VLLM_PYTHON

pytestmark = pytest.mark.vllm

EXAMPLES = REPOSITORY / "backends" / "pools" / "examples"
TOKENIZER = REPOSITORY / "backends" / "reference" / "weights" / "target"

# Reads command lines from stdin and writes what vLLM makes of each.
JUDGE = """
import contextlib, io, json, sys
from types import SimpleNamespace

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.spec_decode.draft_model import DraftModelProposer
from vllm.v1.spec_decode.dynamic.utils import validate_and_normalize_dynamic_sd_schedule

parser = make_arg_parser(FlexibleArgumentParser())
known = {option for action in parser._actions for option in action.option_strings}

def shape(model, parallel):
    heads, size = model.get_num_kv_heads(parallel), model.get_head_size()
    return {
        "model": model.model,
        "quantization": model.quantization,
        "dtype": str(model.dtype),
        "max_model_len": model.max_model_len,
        "cache_bytes_per_token_and_gpu": model.get_num_layers(parallel) * heads * size * 2 * 2,
    }

def judge(argv):
    abbreviated = [word for word in argv if word.startswith("--") and word not in known]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            arguments = parser.parse_args(argv)
    except SystemExit:
        return {"step": "parser", "error": output.getvalue()[-600:]}
    except Exception as error:
        return {"step": "parser", "error": f"{type(error).__name__}: {error}"}
    if abbreviated:
        return {"step": "parser", "error": f"abbreviated or in another spelling: {abbreviated}"}
    try:
        validate_parsed_serve_args(arguments)
        engine = AsyncEngineArgs.from_cli_args(arguments)
        config = engine.create_engine_config(UsageContext.OPENAI_API_SERVER)
        found = {"step": "accepted", "target": shape(config.model_config, config.parallel_config)}
        found["tensor_parallel_size"] = config.parallel_config.tensor_parallel_size
        found["max_num_seqs"] = config.scheduler_config.max_num_seqs
        found["max_num_batched_tokens"] = config.scheduler_config.max_num_batched_tokens
        speculative = config.speculative_config
        if speculative is not None:
            found["method"] = speculative.method
            found["tokens"] = speculative.num_speculative_tokens
            if speculative.draft_model_config is not None:
                found["draft"] = shape(speculative.draft_model_config, speculative.draft_parallel_config)
            if speculative.uses_draft_model():
                # The two checks that vLLM makes only when the engine is built.
                DraftModelProposer._raise_if_draft_tp_mismatch(SimpleNamespace(speculative_config=speculative))
            schedule = speculative.num_speculative_tokens_per_batch_size
            if schedule is not None:
                validate_and_normalize_dynamic_sd_schedule(schedule)
        return found
    except Exception as error:
        return {"step": "engine", "error": f"{type(error).__name__}: {error}"}

verdicts = {name: judge(argv) for name, argv in json.load(sys.stdin).items()}
print("VERDICTS " + json.dumps(verdicts))
"""

# vLLM's environment: no attempt to reach the Hub, and the platform without an accelerator.
ENVIRONMENT = [
    "HF_HUB_OFFLINE=1",
    "VLLM_NO_USAGE_STATS=1",
    "VLLM_LOGGING_LEVEL=ERROR",
    "VLLM_TARGET_DEVICE=cpu",
]
SHAPES = {
    "70B": {
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_attention_heads": 64,
    },
    "8B": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
    },
}


def stand_in(folder: Path, size: str) -> Path:
    """A folder with the configuration of such a Llama 3.1 in AWQ, our tokenizer, and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": None,
        },
    }
    (folder / "config.json").write_text(json.dumps(config | SHAPES[size]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


def size_of(repository: str) -> str:
    (size,) = [size for size in SHAPES if f"-{size}-" in repository]
    return size


@dataclass(frozen=True)
class Lines:
    """Command lines by name, and the folder of the stand-in models."""

    folder: Path
    argv: dict[str, list[str]]


def on_stand_ins(argv: list[str], folder: Path) -> list[str]:
    """The same line with each repository replaced by a folder of the same shapes."""
    line = list(argv)
    for position, word in enumerate(argv):
        if word.startswith("hugging-quants/"):
            line[position] = str(folder / size_of(word))
        elif word.startswith("{"):
            config = json.loads(word)
            if "model" in config:
                config["model"] = str(folder / size_of(config["model"]))
            line[position] = json.dumps(config)
    return line


OBSOLETE = {
    "--speculative-model": ["hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"],
    "--num-speculative-tokens": ["5"],
    "--speculative-draft-tensor-parallel-size": ["1"],
    "--speculative-disable-by-batch-size": ["32"],
    "--speculative-max-model-len": ["4096"],
    "--use-v2-block-manager": [],
    "--num-scheduler-steps": ["8"],
    "--swap-space": ["4"],
    "--disable-log-requests": [],
    "--guided-decoding-backend": ["outlines"],
}
"""Flags of the old configuration and of its time, each added alone to a line that is right."""

WRONG_DRAFTS: dict[str, dict[str, Any]] = {
    "disable_by_batch_size": {"disable_by_batch_size": 32},
    "tensor_parallel_size": {"tensor_parallel_size": 1},
    "a draft on one of two cards": {"draft_tensor_parallel_size": 1},
    "no number of tokens": {"num_speculative_tokens": None},
    "a schedule that begins at 2": {"num_speculative_tokens_per_batch_size": [[2, 8, 5]]},
}
"""Keys of --speculative-config, each added to one that is right (None: taken away)."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    folder = tmp_path_factory.mktemp("llama")
    for size in SHAPES:
        stand_in(folder / size, size)
    pools: dict[str, PoolSpec] = {
        name: spec for name, spec in load_pools(EXAMPLES).items() if spec.driver == "process"
    }
    argv = {
        name: on_stand_ins(vllm_argv(spec, python=VLLM_PYTHON, port=1)[3:], folder)
        for name, spec in pools.items()
    }
    plain, speculative = argv["llama-70b-plain"], argv["llama-70b-speculative"]
    for flag, values in OBSOLETE.items():
        argv[flag] = [*plain, flag, *values]
    place = speculative.index("--speculative-config") + 1
    right = json.loads(speculative[place])
    scheduled = right | {"num_speculative_tokens_per_batch_size": [[1, 8, 5], [9, 16, 3]]}
    argv["a schedule"] = [*speculative[:place], json.dumps(scheduled), *speculative[place + 1 :]]
    for name, change in WRONG_DRAFTS.items():
        wrong = {key: value for key, value in (right | change).items() if value is not None}
        argv[name] = [*speculative[:place], json.dumps(wrong), *speculative[place + 1 :]]
    argv["an abbreviation"] = [("--max-model" if word == "--max-model-len" else word) for word in plain]
    argv["a word for a number"] = [("many" if word == "64" else word) for word in plain]
    argv["too long a context"] = [("262144" if word == "16384" else word) for word in plain]
    return Lines(folder, argv)


@pytest.fixture(scope="module")
def verdicts(lines: Lines) -> dict[str, dict[str, Any]]:
    """What vLLM says of each line. It is imported once: that takes longer than all the rest."""
    judged = subprocess.run(
        ["/usr/bin/env", *ENVIRONMENT, str(VLLM_PYTHON), "-c", JUDGE],
        input=json.dumps(lines.argv),
        cwd=lines.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert judged.returncode == 0, judged.stderr[-3000:]
    (line,) = [line for line in judged.stdout.splitlines() if line.startswith("VERDICTS ")]
    found: dict[str, dict[str, Any]] = json.loads(line.removeprefix("VERDICTS "))
    return found


def test_vllm_accepts_the_plain_example(verdicts: dict[str, dict[str, Any]], lines: Lines) -> None:
    assert verdicts["llama-70b-plain"] == {
        "step": "accepted",
        "target": {
            "model": str(lines.folder / "70B"),
            "quantization": "awq",  # on CUDA it would read auto_awq, which takes Marlin by itself
            "dtype": "torch.float16",
            "max_model_len": 16_384,
            "cache_bytes_per_token_and_gpu": 327_680,
        },
        "tensor_parallel_size": 1,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
    }


def test_vllm_accepts_the_speculative_example(verdicts: dict[str, dict[str, Any]], lines: Lines) -> None:
    verdict = verdicts["llama-70b-speculative"]
    assert verdict["step"] == "accepted", verdict
    assert (verdict["method"], verdict["tokens"], verdict["tensor_parallel_size"]) == ("draft_model", 5, 2)
    assert (verdict["max_num_seqs"], verdict["max_num_batched_tokens"]) == (16, 2048)
    assert verdict["draft"] == {
        "model": str(lines.folder / "8B"),
        "quantization": "awq",
        "dtype": "torch.float16",
        "max_model_len": 16_384,
        "cache_bytes_per_token_and_gpu": 65_536,
    }
    both = (verdict["target"], verdict["draft"])
    assert sum(model["cache_bytes_per_token_and_gpu"] for model in both) == 229_376


def test_vllm_accepts_the_schedule_that_the_comment_shows(verdicts: dict[str, dict[str, Any]]) -> None:
    assert verdicts["a schedule"]["step"] == "accepted", verdicts["a schedule"]


@pytest.mark.parametrize("flag", OBSOLETE)
def test_an_obsolete_flag_is_noticed(verdicts: dict[str, dict[str, Any]], flag: str) -> None:
    assert verdicts[flag]["step"] == "parser", verdicts[flag]
    assert flag in verdicts[flag]["error"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("disable_by_batch_size", "disable_by_batch_size"),
        ("tensor_parallel_size", "draft_tensor_parallel_size"),
        ("a draft on one of two cards", "must be the same"),
        ("no number of tokens", "num_speculative_tokens"),
        ("a schedule that begins at 2", "must start at 1"),
        ("too long a context", "max_model_len"),
    ],
)
def test_a_wrong_engine_configuration_is_noticed(
    verdicts: dict[str, dict[str, Any]], name: str, reason: str
) -> None:
    assert verdicts[name]["step"] == "engine", verdicts[name]
    assert reason in verdicts[name]["error"]


@pytest.mark.parametrize("name", ["an abbreviation", "a word for a number"])
def test_flags_are_written_out_and_typed(verdicts: dict[str, dict[str, Any]], name: str) -> None:
    assert verdicts[name]["step"] == "parser", verdicts[name]
