"""Why is sampled speculation wrong on vLLM's CPU build, and what is the right expansion?

vLLM 0.31 and 0.32, `utils/cpu_triton_utils.py:_expand_kernel_impl` hands the C++ kernel
`_ensure_int64(output)`. For a float32 or int32 output that is a copy, which nobody copies back:
temperatures (float32), top-k (int32) and top-p stay uninitialised memory. The meaning to restore is the
Triton kernel's, `v1/sample/rejection_sampler.py:expand_kernel`.
"""

import logging
from typing import Any

import torch

logger = logging.getLogger("vllm.tollgate_vllm_plugin")


def expand(
    output: torch.Tensor,
    input_val: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # noqa: ARG001, N803  # the launch passes it, under this name
) -> None:
    """Write each request's value once per token of the request, in place.

    Args:
        output: `(tokens,)`, any dtype; filled up to the last cumulative count.
        input_val: `(requests,)`.
        cu_num_tokens: `(requests,)` integers, tokens up to and including each request.
        replace_from: an input equal to this is written as `replace_to`.
        replace_to: see `replace_from`.
        MAX_NUM_TOKENS: a compile-time bound of the Triton kernel, not needed here.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = input_val.masked_fill(input_val == replace_from, replace_to)
    expanded = torch.repeat_interleave(values, counts.to(torch.int64))
    output[: expanded.shape[0]].copy_(expanded)


def repair() -> None:
    """Put `expand` in the place of vLLM's function.

    The worker loads plugins before it registers the CPU kernels (vLLM 0.32,
    `v1/worker/worker_base.py:276-282`), so the module attribute is the only place to change.
    """
    from vllm.utils import cpu_triton_utils

    kernels: Any = cpu_triton_utils
    if kernels._expand_kernel_impl is expand:  # noqa: SLF001  # the fault is in a private function
        return
    kernels._expand_kernel_impl = expand  # noqa: SLF001
    logger.info(
        "Repaired sampling under speculation on CPU (vllm.utils.cpu_triton_utils._expand_kernel_impl)."
    )
