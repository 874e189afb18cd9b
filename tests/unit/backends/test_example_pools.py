"""The examples for real hardware load, stay out of the way, and their comments calculate right."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from backends.check.fit import Fit, fit_of
from backends.files import load_pools
from backends.pool import PoolSpec

POOLS = Path(__file__).parents[3] / "backends" / "pools"
EXAMPLES = POOLS / "examples"

GIB = 2**30
VOCABULARY = 128_256
UTILISATION = 0.92
CARD_GIB = 79.25
OTHER_GIB = 1.5
AWQ_BYTES = (4 + 16 / 128 + 4 / 128) / 8
SUSTAINED_FLOPS = 312e12 * 0.70
BANDWIDTH = 2.039e12


@dataclass(frozen=True)
class Llama:
    """Llama 3.1's shapes, as its configurations state them."""

    layers: int
    hidden: int
    mlp: int

    @property
    def linear(self) -> int:
        attention = 2 * self.hidden**2 + 2 * self.hidden * 8 * 128
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def parameters(self) -> int:
        return self.linear + 2 * VOCABULARY * self.hidden + (2 * self.layers + 1) * self.hidden

    @property
    def awq_bytes(self) -> float:
        return self.linear * AWQ_BYTES + 2 * (self.parameters - self.linear)

    @property
    def bytes_read(self) -> float:
        return self.awq_bytes - 2 * VOCABULARY * self.hidden

    @property
    def cache_bytes(self) -> int:
        return self.layers * 8 * 128 * 2 * 2

    def step_s(self, tokens: int, *, gpus: int, efficiency: float, reduce_s: float = 0.0) -> float:
        reading = self.bytes_read / gpus / (BANDWIDTH * efficiency)
        computing = 2 * self.parameters * tokens / (gpus * SUSTAINED_FLOPS)
        return max(reading, computing) + 2 * self.layers * reduce_s


TARGET, DRAFT = Llama(80, 8192, 28_672), Llama(32, 4096, 14_336)


def activation_gib(tokens: int, *, gpus: int, rows: int) -> float:
    return (tokens * (6 * TARGET.mlp / gpus + 6 * TARGET.hidden) + rows * VOCABULARY * 8) / GIB


def cache_tokens(tokens: int, *, gpus: int, rows: int, models: tuple[Llama, ...]) -> float:
    weights = sum(model.awq_bytes for model in models) / gpus / GIB
    left = CARD_GIB * UTILISATION - weights - activation_gib(tokens, gpus=gpus, rows=rows) - OTHER_GIB
    return left * GIB * gpus / sum(model.cache_bytes for model in models)


def step_times_s(requests: int, *, reduce_s: float) -> tuple[float, float]:
    """Of the two cards without a draft, and with one that proposes five tokens."""
    plain = TARGET.step_s(requests, gpus=2, efficiency=0.79, reduce_s=reduce_s)
    check = TARGET.step_s(6 * requests, gpus=2, efficiency=0.79, reduce_s=reduce_s)
    draft = DRAFT.step_s(requests, gpus=2, efficiency=0.78, reduce_s=reduce_s)
    return plain, check + 5 * draft


def comments_of(name: str) -> str:
    return " ".join((EXAMPLES / name).read_text().replace("#", " ").split())


@pytest.fixture(scope="module")
def examples() -> dict[str, PoolSpec]:
    return load_pools(EXAMPLES)


def test_examples_are_valid_and_are_not_loaded_with_the_bundled_pools(examples: dict[str, PoolSpec]) -> None:
    assert set(examples) == {"llama-70b-plain", "llama-70b-speculative", "llama-70b-external"}
    assert set(load_pools(POOLS)) == {"plain", "speculative"}


def test_both_awq_pools_can_answer_for_each_other_on_one_machine(examples: dict[str, PoolSpec]) -> None:
    plain, speculative = examples["llama-70b-plain"], examples["llama-70b-speculative"]
    assert plain.model == speculative.model
    taken = f"{plain.engine_args['device_ids']},{speculative.engine_args['device_ids']}".split(",")
    assert len(taken) == len(set(taken)) == 3


def test_a_repository_on_the_hub_is_not_taken_for_a_folder(examples: dict[str, PoolSpec]) -> None:
    assert examples["llama-70b-plain"].model.path == "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"


def test_the_memory_that_the_comments_add_up() -> None:
    text = comments_of("llama-70b-speculative.yaml")
    assert (TARGET.parameters, round(TARGET.awq_bytes / GIB, 2)) == (70_553_706_496, 37.04)
    assert round(TARGET.parameters * 2 / GIB, 1) == 131.4
    assert round(DRAFT.awq_bytes / GIB, 2) == 5.33
    assert (TARGET.cache_bytes, DRAFT.cache_bytes) == (327_680, 131_072)
    both = (TARGET, DRAFT)
    assert round(cache_tokens(2048, gpus=2, rows=96, models=both), -3) == 233_000
    assert round(cache_tokens(32_768, gpus=2, rows=256 * 6, models=both), -3) == 209_000
    assert round(cache_tokens(2048, gpus=1, rows=96, models=both), -2) == 66_800
    assert round(activation_gib(2048, gpus=2, rows=96), 2) == 0.35
    assert int(cache_tokens(2048, gpus=2, rows=96, models=both) / 16_384) == 14
    for figure in ("233,000 tokens", "209,000 tokens", "66,800 tokens", "-21.19", "-0.35", "49.87", "14 fit"):
        assert figure in text
    text = comments_of("llama-70b-plain.yaml")
    assert round(cache_tokens(2048, gpus=1, rows=64, models=(TARGET,)), -2) == 111_100
    assert round(activation_gib(2048, gpus=1, rows=64), 2) == 0.48
    assert round(activation_gib(32_768, gpus=1, rows=256) - activation_gib(2048, gpus=1, rows=64), 1) == 6.5
    for figure in ("111,100 tokens", "-37.04", "-0.48", "33.89", "6.5 GiB", "434 tokens each"):
        assert figure in text


@pytest.mark.parametrize(
    ("name", "gpus", "rows", "models"),
    [("llama-70b-plain", 1, 64, (TARGET,)), ("llama-70b-speculative", 2, 96, (TARGET, DRAFT))],
)
def test_the_check_calculates_what_the_comments_say(
    examples: dict[str, PoolSpec], name: str, gpus: int, rows: int, models: tuple[Llama, ...]
) -> None:
    fit = fit_of(examples[name])
    assert isinstance(fit, Fit)
    assert fit.cache_tokens == pytest.approx(
        cache_tokens(2048, gpus=gpus, rows=rows, models=models), rel=1e-4
    )
    assert f"{fit.cache_bytes / GIB:.2f}" in comments_of(f"{name}.yaml")


def test_the_table_of_when_speculation_pays() -> None:
    text = comments_of("llama-70b-speculative.yaml")
    times = [step_times_s(requests, reduce_s=5e-5) for requests in (1, 8, 16, 32, 64)]
    rows = [
        " ".join(["plain", *(f"{plain * 1000:.1f}" for plain, _ in times)]),
        " ".join(["with draft", *(f"{drafted * 1000:.1f}" for _, drafted in times)]),
        " ".join(["needed", *(f"{drafted / plain:.2f}" for plain, drafted in times)]),
    ]
    quick = [step_times_s(requests, reduce_s=0.0) for requests in (1, 8, 16, 32, 64)]
    rows.append(", ".join(f"{drafted / plain:.2f}" for plain, drafted in quick))
    for row in rows:
        assert row in text
    ridge = TARGET.step_s(1, gpus=1, efficiency=0.78) * SUSTAINED_FLOPS / (2 * TARGET.parameters)
    assert round(ridge) == 37
    # One card for both models: 8 requests.
    one_card = TARGET.step_s(48, gpus=1, efficiency=0.78) + 5 * DRAFT.step_s(8, gpus=1, efficiency=0.78)
    assert f"8 x 3 / {one_card * 1000:.1f} ms" in text


@pytest.mark.parametrize(
    ("name", "input_per_s", "output_per_s"),
    [
        (
            "llama-70b-speculative",
            2 * SUSTAINED_FLOPS / (2 * TARGET.parameters + 2 * DRAFT.parameters),
            8 * 3 / step_times_s(8, reduce_s=5e-5)[1],
        ),
        (
            "llama-70b-plain",
            SUSTAINED_FLOPS / (2 * TARGET.parameters),
            16 / TARGET.step_s(16, gpus=1, efficiency=0.78),
        ),
        (
            "llama-70b-external",
            2 * 1979e12 * 0.70 / (2 * TARGET.parameters),
            32 / ((TARGET.linear + 2 * VOCABULARY * TARGET.hidden) / 2 / (3.35e12 * 0.87)),
        ),
    ],
)
def test_rates_follow_from_what_the_hardware_costs(
    examples: dict[str, PoolSpec], name: str, input_per_s: float, output_per_s: float
) -> None:
    spec = examples[name]
    text = comments_of(f"{name}.yaml")
    assert spec.rates is not None
    for rate, tokens_per_s in ((spec.rates.input, input_per_s), (spec.rates.output, output_per_s)):
        assert f"{tokens_per_s:,.0f} tokens/s" in text
        exact = float(spec.hardware.usd_per_hour) / (tokens_per_s * 3600) * 1_000_000 / 0.5
        assert abs(float(rate) - exact) < 0.012
    assert spec.rates.cached_input <= spec.rates.input * Decimal("0.1")
