"""How large are a model's weights, and how much cache does a token take?

Read from the folder of the weights where there is one (config.json, and the tensors' sizes from the headers
of the safetensors files), else from what the pool file states (`shape`), else, for the models that a name
gives away, from the table below. Parameters are counted for dense decoders with gated MLPs (Llama, Qwen,
Mistral) and for mixtures of experts by their usual keys; anything else needs `parameters`. Bytes; bits where
the name says so. Sources: vLLM 0.32 v1/kv_cache_interface.py:545-556 (bytes of a token), AWQ and GPTQ with
groups of 128: 4 + 16/128 (scale) + 4/128 (zero) bits.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.pool_sections import ShapeSpec

DENSE_BITS = 16.0
_HEADER_BYTES_MAX = 200_000_000


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One model's measures."""

    layers: int
    hidden: int
    intermediate: int
    """Of the MLP that a token passes; the widest where layers differ."""
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool
    """The output uses the input's embedding."""
    context_tokens: int | None
    """The longest that it was trained for; None: not stated."""
    parameters: int | None
    """None: its architecture is none that is counted here."""
    weight_bits: float
    """Of a weight in a linear layer; embeddings, norms and the output layer have 16."""
    source: str
    """Where the figures come from, for people."""
    window_tokens: int | None = None
    """Of the layers with a sliding window."""
    windowed_layers: int = 0
    mla_width: int | None = None
    """Multi-head latent attention: one vector of this width per layer and token, not split over GPUs."""
    stored_bytes: int | None = None
    """What the files hold; None where they are not here."""
    quantization: str | None = None
    """The method that the checkpoint names."""
    is_moe: bool = False
    stateful_layers: int = 0
    """Layers of linear attention or state spaces: a fixed state per request, no cache per token."""
    architecture: str = "LlamaForCausalLM"

    @property
    def embedding_parameters(self) -> int:
        """The input's embedding, and the output layer where it is another."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    @property
    def weight_bytes(self) -> int | None:
        """Of all weights; None if they cannot be told."""
        if self.stored_bytes is not None:
            return self.stored_bytes
        if self.parameters is None:
            return None
        kept = self.embedding_parameters + (2 * self.layers + 1) * self.hidden
        linear = max(0, self.parameters - kept)
        return round(linear * self.weight_bits / 8 + kept * DENSE_BITS / 8)

    def kv_bytes_per_token(
        self, cache_bits: float, *, tensor_parallel: int = 1, layers: int | None = None
    ) -> float:
        """What one token takes of the cache of each GPU, if `layers` of them keep it (None: all that can)."""
        kept = self.layers - self.stateful_layers if layers is None else layers
        if self.mla_width is not None:
            return kept * self.mla_width * cache_bits / 8
        heads = self.kv_heads / min(tensor_parallel, self.kv_heads)
        return kept * heads * 2 * self.head_dim * cache_bits / 8


def bits_of(quantization: str | None) -> float | None:
    """Bits of a linear layer's weight under a quantization that vLLM 0.32 knows; None: it does not say."""
    if quantization is None:
        return DENSE_BITS
    for pattern, bits in _BITS:
        if re.fullmatch(pattern, quantization):
            return bits
    return None


_FOUR_BITS = 4 + 16 / 128 + 4 / 128
_BITS = (
    (r"awq|awq_marlin|auto_awq|gptq|gptq_marlin|auto_gptq|moe_wna16", _FOUR_BITS),
    (r"fp8|fp8_per_tensor|fp8_per_block|fp8_per_channel|fbgemm_fp8|modelopt|deepseek_v4_fp8|ptpc_fp8", 8.0),
    (r"experts_int8|int8_per_channel_weight_only|mxfp8|modelopt_mxfp8", 8.0),
    (r"modelopt_fp4|nvfp4_per_token", 4.5),
    (r"mxfp4|gpt_oss_mxfp4", 4.25),
)


def cache_bits_of(cache_dtype: str, model_dtype: str) -> float | None:
    """Bits of one number in the cache; None for a kind that is not counted here."""
    if cache_dtype == "auto":
        return 32.0 if model_dtype in {"float", "float32"} else DENSE_BITS
    for prefix, bits in (("fp8", 8.0), ("int8", 8.0), ("int4", 4.0), ("nvfp4", 4.5), ("bfloat16", 16.0)):
        if cache_dtype.startswith(prefix):
            return bits
    return DENSE_BITS if cache_dtype == "float16" else None


# ------------------------------------------------------------------------------------------------ finding
def shape_of(path: str | None, stated: ShapeSpec | None, quantization: str | None) -> ModelShape | None:
    """The measures of a model that a pool file names; None if nothing here knows them.

    Args:
        path: a folder, or a repository's name.
        stated: what the pool file says; it wins over a name, and the folder wins over it.
        quantization: what the pool file asks vLLM for; None: whatever the checkpoint has.

    Raises:
        ValueError: there is a config.json and it cannot be understood.
    """
    folder = Path(path) if path is not None else None
    if folder is not None and (folder / "config.json").is_file():
        return _with_quantization(_from_folder(folder), quantization)
    named = named_quantization(path or "") if quantization is None else quantization
    if stated is not None:
        shape = _from_config(stated.model_dump(exclude_none=True), "as the pool file states")
    else:
        known = next((config for pattern, config in KNOWN.items() if re.search(pattern, path or "")), None)
        if known is None:
            return None
        shape = _from_config(known, "by the repository's name")
    bits = bits_of(named) or bits_of(named_quantization(path or "") or "?")
    if stated is not None and stated.weight_bits is not None:
        bits = stated.weight_bits
    parameters = (stated.parameters if stated else None) or shape.parameters
    return replace(
        shape,
        weight_bits=bits or DENSE_BITS,
        # Of weights whose bits nobody says nothing is calculated: any guess could refuse what fits.
        parameters=parameters if bits is not None else None,
        quantization=named,
    )


def named_quantization(name: str) -> str | None:
    """What a repository's name says of its weights, as those of the Hub usually do."""
    for pattern, method in ((r"AWQ", "awq"), (r"GPTQ|[wW]4[aA]16", "gptq"), (r"FP8|[wW]8[aA]8", "fp8")):
        if re.search(pattern, name):
            return method
    return None


def _with_quantization(shape: ModelShape, wanted: str | None) -> ModelShape:
    """The same weights quantized while they are loaded, where the checkpoint itself is not."""
    bits = bits_of(wanted)
    if wanted is None or shape.quantization is not None or bits is None or shape.stored_bytes is None:
        return shape
    kept = shape.embedding_parameters * DENSE_BITS / 8
    linear = max(0.0, shape.stored_bytes - kept) * bits / DENSE_BITS
    return replace(shape, stored_bytes=round(linear + kept), weight_bits=bits)


def _from_folder(folder: Path) -> ModelShape:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        text = config.get("text_config")
        shape = _from_config(config | text if isinstance(text, dict) else config, f"from {folder.name}")
        return replace(shape, stored_bytes=stored_bytes(folder))
    except KeyError as error:
        raise ValueError(f"{file}: no {error} in it") from None
    except (ValueError, TypeError, AttributeError, OSError, struct.error) as error:
        raise ValueError(f"{folder}: its files cannot be understood: {error}") from None


def _from_config(config: Mapping[str, Any], source: str) -> ModelShape:
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    kv_rank, rope = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    method, bits = _checkpoint_quantization(config.get("quantization_config"))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    layers = int(config["num_hidden_layers"])
    kinds = config.get("layer_types") or []
    windowed = sum("sliding" in str(kind) for kind in kinds) if kinds else layers
    stateful = sum("linear" in str(kind) or "mamba" in str(kind) for kind in kinds)
    architectures = config.get("architectures") or ["LlamaForCausalLM"]
    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=int(config.get("intermediate_size") or config["moe_intermediate_size"]),
        attention_heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        context_tokens=_context_tokens(config),
        parameters=None,
        weight_bits=bits,
        source=source,
        window_tokens=int(window) if window else None,
        windowed_layers=windowed if window else 0,
        mla_width=int(kv_rank) + int(rope or 0) if kv_rank else None,
        quantization=method,
        is_moe=_experts(config) > 1,
        stateful_layers=stateful,
        architecture=str(architectures[0]),
    )
    return replace(shape, parameters=_parameters(shape, config))


def _context_tokens(config: Mapping[str, Any]) -> int | None:
    """The longest context that vLLM takes without being told to (0.32, `vllm/config/model.py`)."""
    stated = config.get("max_position_embeddings")
    if stated is None:
        return None
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor = 1.0
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) in {"linear", "dynamic"}:
        factor = float(rope.get("factor") or 1)
    return max(int(stated * factor), int(config.get("model_max_length") or 0))


def _checkpoint_quantization(config: Any) -> tuple[str | None, float]:
    if not isinstance(config, Mapping):
        return None, DENSE_BITS
    method = str(config.get("quant_method") or "")
    if "bits" in config and "group_size" in config:
        bits, group = float(config["bits"]), int(config["group_size"])
        zeros = bits / group if group > 0 and config.get("zero_point", True) else 0.0
        return method, bits + (16 / group + zeros if group > 0 else 0.0)
    return method, bits_of(method) or DENSE_BITS


def _experts(config: Mapping[str, Any]) -> int:
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    return max((int(config.get(key) or 1) for key in keys), default=1)


def _parameters(shape: ModelShape, config: Mapping[str, Any]) -> int | None:
    if shape.mla_width is not None or shape.stateful_layers:
        return None
    attention = shape.hidden * shape.head_dim * (2 * shape.attention_heads + 2 * shape.kv_heads)
    experts = _experts(config)
    width = (
        int(config.get("moe_intermediate_size") or shape.intermediate) if experts > 1 else shape.intermediate
    )
    router = experts * shape.hidden if experts > 1 else 0
    layer = attention + experts * 3 * shape.hidden * width + router + 2 * shape.hidden
    return shape.layers * layer + shape.embedding_parameters + shape.hidden


def stored_bytes(folder: Path) -> int | None:
    """What the tensors in a folder's safetensors files take; None if there are none.

    The index of a split checkpoint states it; else the headers do. The tensors themselves are not read.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        total = json.loads(index.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        if isinstance(total, int):
            return total
    sizes = [_tensor_bytes(file) for file in sorted(folder.glob("*.safetensors"))]
    return sum(sizes) if sizes else None


def _tensor_bytes(file: Path) -> int:
    """safetensors: eight bytes of the header's length, the header in JSON, the tensors."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > _HEADER_BYTES_MAX:
            raise ValueError(f"{file}: no safetensors file")
        header = json.loads(opened.read(length))
    offsets = (tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__")
    return sum(end - start for start, end in offsets)


def _llama(
    layers: int, hidden: int, intermediate: int, *, heads: int, context: int = 131_072
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": context,
    }


KNOWN: dict[str, dict[str, Any]] = {
    r"(?i)llama-?3(\.[13])-70b": _llama(80, 8192, 28_672, heads=64),
    r"(?i)llama-?3(\.1)-8b": _llama(32, 4096, 14_336, heads=32),
    r"(?i)llama-?3-70b": _llama(80, 8192, 28_672, heads=64, context=8192),
    r"(?i)llama-?3-8b": _llama(32, 4096, 14_336, heads=32, context=8192),
}
"""Models by a pattern in their repository's name: Meta's Llama 3, 3.1 and 3.3 configurations."""
