"""Does the fit find the coefficients that made the times, and say so when it cannot?"""

import random

import pytest

from backends.bench.fit import Observation, Underdetermined, fit

TRUE = {"fixed_s": 7e-3, "batched_token_s": 2e-5, "kv_token_s": 4e-8, "request_s": 3e-3, "sequence_s": 1e-4}


def observations(count: int, *, noise: float = 0.0, seed: int = 1) -> list[Observation]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        steps = draw.randint(1, 400)
        sequences = steps * draw.randint(1, 32)
        amounts = {
            "fixed_s": float(steps),
            "batched_token_s": float(sequences + draw.randint(0, 20_000)),
            "kv_token_s": float(sequences * draw.randint(20, 4_000)),
            "request_s": float(draw.randint(1, 20)),
            "sequence_s": float(sequences),
        }
        seconds = sum(TRUE[name] * amount for name, amount in amounts.items())
        found.append(Observation(seconds * (1 + noise * draw.uniform(-1, 1)), amounts))
    return found


def test_exact_times_give_back_their_coefficients() -> None:
    found = fit(observations(12), list(TRUE))
    assert found.coefficients == pytest.approx(TRUE, rel=1e-6)
    assert found.error_max_ratio < 1e-6


def test_times_that_err_by_a_few_percent_give_coefficients_near_them() -> None:
    found = fit(observations(60, noise=0.03), list(TRUE))
    assert found.coefficients["fixed_s"] == pytest.approx(TRUE["fixed_s"], rel=0.05)
    assert found.coefficients["kv_token_s"] == pytest.approx(TRUE["kv_token_s"], rel=0.2)
    assert 0 < found.error_median_ratio <= 0.03


def test_what_others_slowed_down_hardly_counts() -> None:
    calm = observations(30)
    disturbed = [
        Observation(one.seconds * (2.0 if index % 6 == 0 else 1.0), one.amounts)
        for index, one in enumerate(calm)
    ]
    found = fit(disturbed, list(TRUE))
    assert found.coefficients["fixed_s"] == pytest.approx(TRUE["fixed_s"], rel=0.05)
    assert found.error_max_ratio == pytest.approx(0.5, abs=0.05)  # of the disturbed ones


def test_no_coefficient_is_negative() -> None:
    rising = [Observation(1.0 + 0.1 * n, {"fixed_s": 1.0, "kv_token_s": float(10 - n)}) for n in range(8)]
    found = fit(rising, ["fixed_s", "kv_token_s"])
    assert found.coefficients["kv_token_s"] == 0
    assert found.coefficients["fixed_s"] > 0


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(
        Underdetermined, match=r"4 measurements cannot determine 5 coefficients .*measure more"
    ):
        fit(observations(4), list(TRUE))


def test_amounts_that_always_rise_together_are_named() -> None:
    together = [
        Observation(float(n), {"fixed_s": float(n), "batched_token_s": 3.0 * n, "kv_token_s": float(n * n)})
        for n in range(1, 9)
    ]
    with pytest.raises(Underdetermined, match=r"cannot tell .*vary concurrency"):
        fit(together, ["fixed_s", "batched_token_s", "kv_token_s"])


def test_what_was_never_measured_is_named() -> None:
    with pytest.raises(Underdetermined, match="depends on request_s"):
        fit([Observation(1.0, {"fixed_s": 1.0})] * 3, ["fixed_s", "request_s"])


def test_a_contradiction_is_no_coefficient() -> None:
    with pytest.raises(Underdetermined, match="contradict"):
        fit([Observation(1.0, {"fixed_s": -1.0})] * 3, ["fixed_s"])


def test_a_time_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        fit([Observation(0.0, {"fixed_s": 1.0})], ["fixed_s"])
