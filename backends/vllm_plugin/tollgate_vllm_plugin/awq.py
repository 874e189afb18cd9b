"""How can a 4-bit checkpoint run on a CPU without AVX-512?

vLLM 0.32 chooses `CPUWNA16LinearKernel` for AWQ and GPTQ on every CPU, but its AVX2 library (`_C_AVX2`) has
no `cpu_gemm_wna16`: the server starts, reports healthy, and dies of the first request. Where the operator
is missing, the weights are expanded to float32 when they are loaded, which a CPU without bf16 units also
multiplies fastest. This is for small models and machines to try things on: 4 bytes per weight, and no speed
from the 4 bits.
"""

import logging
from typing import Any

import torch
from torch.nn import functional

logger = logging.getLogger("vllm.tollgate_vllm_plugin")

_EXPANDED = "tollgate_expanded_weight"


def has_operator() -> bool:
    """Say whether this CPU's vLLM library has the 4-bit matrix product."""
    return hasattr(torch.ops._C, "cpu_gemm_wna16")  # noqa: SLF001  # vLLM registers its operators there


def _expanded(kernel: Any, layer: Any) -> torch.Tensor:
    """The layer's weight as `(outputs, inputs) float32`, from the tensors as vLLM has them after reading."""
    from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32

    weight_type = kernel.config.weight_type
    packed, scales = getattr(layer, kernel.w_q_name), getattr(layer, kernel.w_s_name)
    # Compressed-tensors checkpoints come as (outputs, inputs), AWQ as (inputs, outputs).
    weight = packed.data.t() if packed.input_dim == 1 else packed.data
    levels = unpack_quantized_values_into_int32(weight, weight_type, 0)
    steps = (scales.data.t() if scales.output_dim == 0 else scales.data).to(torch.float32)
    if kernel.config.zero_points:
        zeros_packed = getattr(layer, kernel.w_zp_name)
        zeros = zeros_packed.data.t() if zeros_packed.output_dim == 0 else zeros_packed.data
        offsets = unpack_quantized_values_into_int32(zeros, weight_type, 1).to(torch.float32)
    else:
        offsets = torch.full_like(steps, float(weight_type.bias))
    group = levels.shape[0] // steps.shape[0]
    rows = levels.to(torch.float32)
    rows = (rows - offsets.repeat_interleave(group, dim=0)) * steps.repeat_interleave(group, dim=0)
    return rows.t().contiguous()


def repair() -> None:
    """Teach vLLM's 4-bit CPU kernel to do without the missing operator; where it exists nothing changes."""
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel

    kernel_class: Any = CPUWNA16LinearKernel
    if getattr(kernel_class, "tollgate_repaired", False):
        return
    load, apply = kernel_class.process_weights_after_loading, kernel_class.apply_weights

    def process_weights_after_loading(self: Any, layer: Any) -> None:
        # Asked here and not at registration: the operator library is loaded later than the plugins.
        if has_operator():
            load(self, layer)
            return
        setattr(layer, _EXPANDED, _expanded(self, layer))
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
            if name is not None and getattr(layer, name, None) is not None:
                getattr(layer, name).data = torch.empty(0)

    def apply_weights(
        self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight = getattr(layer, _EXPANDED, None)
        if weight is None:
            return apply(self, layer, x, bias)
        wide_bias = None if bias is None else bias.to(torch.float32)
        return functional.linear(x.to(torch.float32), weight, wide_bias).to(x.dtype)

    kernel_class.process_weights_after_loading = process_weights_after_loading
    kernel_class.apply_weights = apply_weights
    kernel_class.tollgate_repaired = True
    logger.info(
        "4-bit weights are expanded to float32 at loading where this CPU's vLLM library has no 4-bit product."
    )
