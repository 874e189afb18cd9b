"""Are a model's measures read as its configuration means them?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.check.shapes import bits_of, cache_bits_of, named_quantization, shape_of
from backends.pool_sections import ShapeSpec

LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


def test_a_stated_shape_counts_as_the_known_one_does() -> None:
    stated = shape_of("hub/something", ShapeSpec.model_validate(LLAMA_8B), None)
    known = shape_of("hub/Llama-3.1-8B", None, None)
    assert stated is not None
    assert known is not None
    assert stated.parameters == known.parameters == 8_030_261_248
    assert stated.weight_bytes == 2 * 8_030_261_248
    assert stated.kv_bytes_per_token(16) == 131_072


def test_what_is_stated_wins_over_the_name() -> None:
    spec = ShapeSpec.model_validate(LLAMA_8B | {"parameters": 9_000_000_000, "weight_bits": 8})
    shape = shape_of("hub/Llama-3.1-70B-AWQ", spec, None)
    assert shape is not None
    assert (shape.layers, shape.parameters, shape.weight_bits) == (32, 9_000_000_000, 8)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("x-AWQ-INT4", "awq"),
        ("x-GPTQ", "gptq"),
        ("x.w4a16", "gptq"),
        ("x-FP8-dynamic", "fp8"),
        ("x-Instruct", None),
    ],
)
def test_a_name_may_say_how_it_is_quantized(name: str, method: str | None) -> None:
    assert named_quantization(name) == method


def test_bits() -> None:
    assert bits_of("awq") == pytest.approx(4.15625)
    assert (bits_of(None), bits_of("fp8"), bits_of("quark")) == (16, 8, None)
    assert (cache_bits_of("auto", "auto"), cache_bits_of("auto", "float32")) == (16, 32)
    assert (cache_bits_of("fp8_e5m2", "auto"), cache_bits_of("float16", "auto")) == (8, 16)
    assert cache_bits_of("turboquant_4bit_nc", "auto") is None


def test_weights_of_unknown_bits_are_not_calculated() -> None:
    shape = shape_of("org/Meta-Llama-3-8B-Instruct-quark", None, "quark")
    assert shape is not None
    assert shape.parameters is None
    assert shape.weight_bytes is None


def test_the_name_says_the_bits_that_a_method_leaves_open() -> None:
    shape = shape_of("org/Meta-Llama-3-8B-Instruct-FP8", None, "compressed-tensors")
    assert shape is not None
    assert shape.weight_bits == 8
    assert shape.parameters


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, 32_768),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 16_384),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, 8_192),
        ({"rope_scaling": None, "model_max_length": 16_000}, 16_000),
    ],
)
def test_contexts_that_a_scaled_position_allows(tmp_path: Path, config: dict[str, Any], context: int) -> None:
    measures = {"num_attention_heads": 32, "hidden_size": 4096, "num_hidden_layers": 2, "vocab_size": 1000}
    measures |= {"intermediate_size": 11008, "max_position_embeddings": 8192}
    (tmp_path / "config.json").write_text(json.dumps(measures | config))
    shape = shape_of(str(tmp_path), None, None)
    assert shape is not None
    assert shape.context_tokens == context
