"""How is the 16-bit target made into a 4-bit AWQ checkpoint?

Asymmetric 4-bit integers in groups of 64 input channels, rounded plainly: no activation-aware scaling,
which at this size changes nothing measurable. Packing is AutoAWQ's `version: gemm`, as vLLM 0.32 reads it
(`model_executor/layers/quantization/auto_awq.py`): eight nibbles per int32 along the output channels, in
the order 0 2 4 6 1 3 5 7. Embeddings and norms stay 16-bit.
"""

from typing import Any, Final

import torch
from torch import Tensor

BITS: Final = 4
GROUP_SIZE: Final = 64
_LEVELS: Final = 2**BITS - 1
_NIBBLES: Final = 32 // BITS
_GEMM_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)

QUANTIZATION_CONFIG: Final[dict[str, Any]] = {
    "quant_method": "awq",
    "bits": BITS,
    "group_size": GROUP_SIZE,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}


def pack(values: Tensor) -> Tensor:
    """Pack `(rows, columns)` integers 0-15 into `(rows, columns / 8) int32`."""
    rows, columns = values.shape
    grouped = values.to(torch.int64).view(rows, columns // _NIBBLES, _NIBBLES)
    packed = torch.zeros(rows, columns // _NIBBLES, dtype=torch.int64)
    for place, source in enumerate(_GEMM_ORDER):
        packed |= grouped[:, :, source] << (BITS * place)
    # The highest nibble sets int32's sign bit: bring 0..2^32-1 into -2^31..2^31-1 before the cast.
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def quantize_matrix(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize a linear layer's `(outputs, inputs)` weight.

    Returns:
        qweight `(inputs, outputs / 8) int32`, qzeros `(inputs / 64, outputs / 8) int32` and scales
        `(inputs / 64, outputs) bfloat16` (the type vLLM computes in: it would round float16 to it with a
        warning), so that `weight.T = (q - zero) * scale`.
    """
    columns = weight.to(torch.float32).t().contiguous()
    inputs, outputs = columns.shape
    groups = columns.view(inputs // GROUP_SIZE, GROUP_SIZE, outputs)
    low = groups.amin(dim=1).clamp(max=0)
    high = groups.amax(dim=1).clamp(min=0)
    scales = ((high - low) / _LEVELS).clamp(min=1e-6).to(torch.bfloat16)
    wide = scales.to(torch.float32)
    zeros = (-low / wide).round().clamp(0, _LEVELS)
    levels = (groups / wide[:, None] + zeros[:, None]).round().clamp(0, _LEVELS).view(inputs, outputs)
    return pack(levels), pack(zeros), scales


def quantize_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Quantize every projection of a Llama state dict and keep the rest."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.endswith("_proj.weight"):
            out[name] = value
            continue
        stem = name.removesuffix("weight")
        out[stem + "qweight"], out[stem + "qzeros"], out[stem + "scales"] = quantize_matrix(value)
    return out
