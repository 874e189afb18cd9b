"""What does a GPU of this name offer: memory, bandwidth, arithmetic?

Peaks are the vendors' dense figures (NVIDIA's data sheets of A100, H100, H200, L40S, L4; AMD's of MI300X),
decimal units. `usable_gib` is what the driver reports as total, on which vLLM's gpu_memory_utilization
counts: 79.25 GiB for the 80 GB cards; the others are chosen so that the arithmetic of the same source gives
their rows, and are good to about 1 %. A machine's own figure goes into hardware.gpu_memory_gib.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory_gb: int
    """As sold: 10^9 bytes."""
    usable_gib: float
    bandwidth_tb_per_s: float
    bf16_tflops: int
    fp8_tflops: int | None
    """None: no FP8 arithmetic; FP8 weights save memory there and no time."""
    has_large_batch_defaults: bool = False
    """vLLM itself would take 8,192 tokens a step here (engine/arg_utils.py:2894 get_batch_defaults)."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40GB", 40, 39.56, 1.555, 312, None),
        Gpu("A100-80GB", 80, 79.25, 2.039, 312, None),
        Gpu("H100", 80, 79.25, 3.35, 989, 1979, has_large_batch_defaults=True),
        Gpu("H200", 141, 139.8, 4.8, 989, 1979, has_large_batch_defaults=True),
        Gpu("L40S", 48, 44.5, 0.864, 362, 733),
        Gpu("L4", 24, 22.0, 0.30, 121, 242),
        Gpu("MI300X", 192, 191.5, 5.3, 1307, 2615, has_large_batch_defaults=True),
    )
}

_OTHER_NAMES = {
    "a100": "A100-80GB",
    "a10080": "A100-80GB",
    "a10040": "A100-40GB",
    "h10080": "H100",
    "h200141": "H200",
    "l40s48": "L40S",
    "l424": "L4",
    "mi300x192": "MI300X",
}


def gpu_of(name: str) -> Gpu | None:
    """The GPU that a pool file names, in any of the usual spellings; None for one that is not in the table.

    `A100` alone is the one with 80 GB.
    """
    plain = re.sub(r"nvidia|amd|sxm\d?|pcie|gb|[^a-z0-9]", "", name.lower())
    for known in GPUS.values():
        if plain == re.sub(r"gb|[^a-z0-9]", "", known.name.lower()):
            return known
    other = _OTHER_NAMES.get(plain)
    return GPUS[other] if other else None
