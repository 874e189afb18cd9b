"""Is a GPU recognised as people write it?"""

from __future__ import annotations

import pytest

from backends.gpus import GPUS, gpu_of


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("A100-80GB", "A100-80GB"),
        ("a100", "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100 40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("H100 SXM", "H100"),
        ("NVIDIA H100 80GB", "H100"),
        ("H200", "H200"),
        ("l40s", "L40S"),
        ("NVIDIA L4", "L4"),
        ("AMD MI300X", "MI300X"),
    ],
)
def test_usual_spellings(written: str, name: str) -> None:
    gpu = gpu_of(written)
    assert gpu is not None
    assert gpu.name == name


@pytest.mark.parametrize("written", ["cpu", "", "B300", "L40", "A10"])
def test_others_are_not_guessed(written: str) -> None:
    assert gpu_of(written) is None


def test_less_is_usable_than_is_sold() -> None:
    for gpu in GPUS.values():
        assert gpu.memory_gb * 0.85 < gpu.usable_gib * 2**30 / 1e9 <= gpu.memory_gb * 1.075, gpu.name
    assert GPUS["A100-80GB"].fp8_tflops is None
