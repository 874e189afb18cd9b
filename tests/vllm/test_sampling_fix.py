"""Is the repair of vLLM's CPU build still needed, and right?

Runs small programs in vLLM's own environment: the gateway's has no torch.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backends.reference.measure import ask_all, held_out, judge, served_name

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"

# Both implementations against the meaning of the Triton kernel (vLLM 0.32, `expand_kernel` in
# v1/sample/rejection_sampler.py), written as plain loops. Outputs are filled with 77 before, so that memory
# which nobody writes is recognised.
COMPARE = """
import json, torch, vllm
import vllm._custom_ops  # loads the C++ operators
from vllm.utils import cpu_triton_utils as kernels
import tollgate_vllm_plugin as plugin
from tollgate_vllm_plugin import sampling

def wanted(values, ends, replace_from, replace_to):
    out, start = [], 0
    for value, end in zip(values, ends):
        out += [replace_to if value == replace_from else value] * (end - start)
        start = end
    return out

def run(function, dtype, values, ends, replace_from, replace_to):
    output = torch.full((ends[-1] + 2,), 77, dtype=dtype)
    function(output, torch.tensor(values, dtype=dtype), torch.tensor(ends, dtype=torch.int32),
             replace_from, replace_to, 128)
    return output[: ends[-1]].tolist() == wanted(values, ends, replace_from, replace_to) \\
        and output[ends[-1]:].tolist() == [77, 77]

cases = [
    ([1.0, 0.5, 0.25], [2, 5, 6], 0, 0),       # three requests, 2 + 3 + 1 tokens
    ([0.0, 0.75], [3, 5], 0, 1),               # a greedy request's temperature 0 becomes 1
    ([4.0, 2.0, 8.0], [4, 4, 8], 2, 9),        # a request without draft tokens
    ([3.0], [5], 3, 7),
]
dtypes = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64}
def verdicts(function):
    return {
        name: [run(function, dtype, [v if dtype.is_floating_point else int(v * 4) for v in values], ends,
                   f if dtype.is_floating_point else f * 4, t if dtype.is_floating_point else t * 4)
               for values, ends, f, t in cases]
        for name, dtype in dtypes.items()
    }

original = kernels._expand_kernel_impl
before = verdicts(original)
vllm_version, vllm.__version__ = vllm.__version__, "0.99.0"
plugin.register()
untouched_on_unknown = kernels._expand_kernel_impl is original
vllm.__version__ = vllm_version
plugin.register()
plugin.register()
print(json.dumps({
    "before": before,
    "after": verdicts(kernels._expand_kernel_impl),
    "replaced": kernels._expand_kernel_impl is sampling.expand,
    "untouched_on_unknown": untouched_on_unknown,
}))
"""

# The 4-bit expansion, against the numbers that were packed.
EXPAND_WEIGHTS = """
import json, torch
import vllm._custom_ops
from types import SimpleNamespace
from vllm.scalar_type import scalar_types
from vllm.model_executor.layers.quantization.utils.quant_utils import pack_quantized_values_into_int32 as pack
from tollgate_vllm_plugin import awq

torch.manual_seed(0)
inputs, outputs, groups = 128, 64, 2
levels, zeros = torch.randint(0, 16, (inputs, outputs)), torch.randint(0, 16, (groups, outputs))
scales = torch.rand(groups, outputs).bfloat16()
wide = lambda x: x.float().repeat_interleave(inputs // groups, dim=0)
right = ((levels - wide(zeros)) * wide(scales)).t()

def parameter(data, **layout):
    made = torch.nn.Parameter(data, requires_grad=False)
    for name, value in layout.items():
        setattr(made, name, value)
    return made

weight_type = scalar_types.uint4
layer = SimpleNamespace(
    q=parameter(pack(levels.int(), weight_type, 0), input_dim=0, output_dim=1, packed_dim=0),
    s=parameter(scales, input_dim=0, output_dim=1),
    z=parameter(pack(zeros.int(), weight_type, 1).t().contiguous(), input_dim=1, output_dim=0, packed_dim=0),
)
kernel = SimpleNamespace(config=SimpleNamespace(weight_type=weight_type, zero_points=True),
                         w_q_name="q", w_s_name="s", w_zp_name="z")
print(json.dumps({"difference": float((awq._expanded(kernel, layer) - right).abs().max())}))
"""


def run_in_vllm(script: str, tmp_path: Path) -> dict[str, Any]:
    # -I keeps the repository off the module path: the installed plugin is tested, not the source beside it.
    done = subprocess.run(
        [
            "/usr/bin/env",
            "VLLM_TARGET_DEVICE=cpu",
            "VLLM_NO_USAGE_STATS=1",
            str(PYTHON),
            "-I",
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_in_vllm(COMPARE, tmp_path_factory.mktemp("compare"))


def test_vllm_still_needs_the_repair(comparison: dict[str, Any]) -> None:
    # When this fails, the installed vLLM is right by itself: take its release out of REPAIRED_RELEASES.
    assert not any(comparison["before"]["float32"])
    assert not any(comparison["before"]["int32"])


def test_the_broken_function_is_right_where_it_needs_no_copy(comparison: dict[str, Any]) -> None:
    # The same cases pass for int64: what is wrong is the lost copy, and our reading of the meaning is theirs.
    assert all(comparison["before"]["int64"])


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_the_repaired_function_is_right(comparison: dict[str, Any], dtype: str) -> None:
    assert comparison["replaced"]
    assert comparison["after"][dtype] == [True] * 4


def test_an_unknown_release_is_left_alone(comparison: dict[str, Any]) -> None:
    assert comparison["untouched_on_unknown"]


def test_four_bit_weights_expand_to_the_packed_numbers(tmp_path: Path) -> None:
    assert run_in_vllm(EXPAND_WEIGHTS, tmp_path)["difference"] == 0


SAMPLED = 120
"""Enough that chance stays far from the verdict: 24 were not."""


def count_right_keys(url: str) -> int:
    model = served_name(url)
    items = held_out("structured", SAMPLED, seed=5)
    bodies = ask_all(url, items, 1.0, model=model, parallel=8)
    answers = [body["choices"][0]["message"]["content"] or "" for body in bodies]
    return sum(judge(item, answer)[0] for item, answer in zip(items, answers, strict=True))


def test_sampled_answers_are_as_good_with_speculation_as_without(
    speculative_url: str, plain_url: str
) -> None:
    # Without the repair 5 of 60 had the asked keys, with it 59, without speculation 59 (vLLM 0.32). Measured
    # against the plain server, so that the test judges vLLM and not the weights.
    plain = count_right_keys(plain_url)
    assert plain >= SAMPLED // 6
    assert count_right_keys(speculative_url) >= plain * 0.4
