"""How can vLLM judge a pool whose model is not on this machine?

By a folder that holds a configuration of the same measures and no weights: `create_engine_config` reads
no more. Where the measures are unknown it is of any measures (a name alone would be looked up on the Hub
before a flag is looked at), and the verdict stays at level B.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backends.check.engine import Line
from backends.check.shapes import ModelShape, named_quantization, shape_of
from backends.launch.command import vllm_argv
from backends.pool import PoolSpec

ANY_PORT = 8000
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_CONFIGS: dict[str, dict[str, Any]] = {"awq": _AWQ, "gptq": _GPTQ, "fp8": _FP8}


def line_of_pool(spec: PoolSpec, python: Path, folder: Path) -> Line:
    """The command line of a replica as it is to be judged, its models replaced where they are not here.

    Args:
        spec: a pool with driver `process`.
        python: the interpreter of vLLM's environment.
        folder: where stand-ins may be written.

    Raises:
        ValueError: the config.json in the folder of the weights cannot be understood.
    """
    argv = vllm_argv(spec, python=python, port=ANY_PORT)[3:]
    model, speculation = spec.model, spec.speculation
    is_for_gpu = spec.hardware.gpu != "cpu"
    if is_for_gpu and _family(model.quantization) in {"awq", "gptq"}:
        # Only CUDA makes `awq_marlin` and the like the same as what the checkpoint says.
        place = argv.index("--quantization")
        del argv[place : place + 2]
    shape = shape_of(model.path, model.shape, model.quantization)
    target = _stand_in(model.path, shape, folder / "target")
    is_whole = target is not None
    argv[argv.index("--model") + 1] = target or _written(_ANY, None, folder / "any")
    if speculation is not None and speculation.model is not None:
        shape = shape_of(speculation.model, speculation.shape, speculation.quantization)
        draft = _stand_in(speculation.model, shape, folder / "draft")
        # Heads such as EAGLE's have configurations of their own kind, which measures do not give.
        is_known = speculation.method == "draft_model" or draft == speculation.model
        is_whole = is_whole and draft is not None and is_known
        if draft is not None:
            place = argv.index("--speculative-config") + 1
            argv[place] = json.dumps(json.loads(argv[place]) | {"model": draft})
    return Line(
        _without_tokenizer_by_name(argv),
        has_model=is_whole,
        is_for_gpu=is_for_gpu,
        is_stand_in=target != model.path,
    )


def _without_tokenizer_by_name(argv: list[str]) -> tuple[str, ...]:
    """A repository's name would be looked up on the Hub, which is never asked."""
    if "--tokenizer" not in argv or Path(argv[argv.index("--tokenizer") + 1]).exists():
        return tuple(argv)
    place = argv.index("--tokenizer")
    return (*argv[:place], *argv[place + 2 :])


def _family(quantization: str | None) -> str | None:
    for family in _CONFIGS:
        if quantization is not None and family in quantization:
            return family
    return None


def _stand_in(path: str | None, shape: ModelShape | None, folder: Path) -> str | None:
    """The folder to judge with: the model's own where it is here, else one of its measures; None: neither."""
    if path is not None and (Path(path) / "config.json").is_file():
        return path
    if shape is None or shape.mla_width is not None:
        return None
    measures = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.attention_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.is_tied,
        "max_position_embeddings": shape.context_tokens or _ANY["max_position_embeddings"],
    }
    family = _family(shape.quantization)
    is_in_checkpoint = family in {"awq", "gptq"} or (named_quantization(path or "") == family == "fp8")
    return _written(measures, _CONFIGS[family] if family and is_in_checkpoint else None, folder)


_ANY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 32,
    "vocab_size": 2048,
    "max_position_embeddings": 1_048_576,
}


def _written(measures: dict[str, Any], quantization: dict[str, Any] | None, folder: Path) -> str:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **measures,
    }
    if quantization is not None:
        config["quantization_config"] = quantization
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)
