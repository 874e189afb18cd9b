"""How figures follow from what vLLM answers, without a vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from backends.reference.measure import acceptance
from backends.reference.speed import CASES, Case, comparison, in_words, prompts, summary, table


def body(ms_per_token: float, *, tokens: int = 21, steps: int | None = None) -> dict[str, Any]:
    """An answer as vLLM 0.32 gives it, as far as it is read; with steps, four tokens were drafted in each."""
    metrics: dict[str, Any] = {
        "mean_itl_ms": ms_per_token,
        "generation_time_ms": ms_per_token * (tokens - 1),
        "speculative_decoding": None,
    }
    if steps is not None:
        metrics["speculative_decoding"] = {
            "num_spec_steps": steps,
            "num_draft_tokens": 4 * steps,
            "num_accepted_draft_tokens": tokens - 1 - steps,
        }
    return {"usage": {"completion_tokens": tokens}, "metrics": metrics}


def test_without_a_draft_a_step_is_a_token() -> None:
    found = summary([[body(4.0), body(5.0), body(9.0)], [body(7.0)]])
    assert found == {
        "ms_per_token": 6.0,
        "ms_per_token_least": 5.0,
        "ms_per_token_greatest": 7.0,
        "ms_per_token_rounds": [5.0, 7.0],
        "output_tokens_mean": 21.0,
        "ms_per_step": 6.0,
        "tokens_per_step_mean": 1.0,
    }


def test_with_a_draft_a_step_is_timed_by_itself() -> None:
    found = summary([[body(2.0, steps=5)], [body(2.0, steps=5)]])
    assert (found["ms_per_token"], found["ms_per_step"]) == (2.0, 8.0)
    assert (found["acceptance_ratio"], found["tokens_per_step_mean"]) == (0.75, 4.0)


def test_an_answer_of_one_token_has_no_time_between_tokens() -> None:
    single = body(0.0, tokens=1)
    single["metrics"]["mean_itl_ms"] = None
    assert summary([[single, body(3.0)]])["ms_per_token"] == 3.0


def test_nothing_drafted_is_not_an_acceptance_of_zero() -> None:
    assert acceptance([body(1.0)]) == {}


@pytest.mark.parametrize(
    ("plain", "speculative", "verdict"),
    [
        ([4.0, 6.0, 5.0], [2.0, 5.0, 4.0], "pays"),
        ([2.0, 5.0, 4.0], [4.0, 6.0, 5.0], "loses"),
        ([4.0, 6.0, 5.0], [2.0, 7.0, 4.0], "unclear"),
        ([4.0, 6.0, 5.0], [4.0, 5.0, 4.0], "unclear"),
    ],
)
def test_rounds_are_compared_in_pairs_and_have_to_agree(
    plain: list[float], speculative: list[float], verdict: str
) -> None:
    found = comparison(
        summary([[body(ms)] for ms in plain]), summary([[body(ms, steps=5)] for ms in speculative])
    )
    assert found["verdict"] == verdict


def row_of(case: Case, plain: float, speculative: float) -> dict[str, Any]:
    pools = {"plain": summary([[body(plain)]]), "speculative": summary([[body(speculative, steps=5)]])}
    return {
        "kind": case.kind,
        "temperature": case.temperature,
        "batch": case.batch,
        **pools,
        **comparison(pools["plain"], pools["speculative"]),
    }


def test_the_table_says_in_words_where_speculation_pays() -> None:
    text = table([row_of(CASES[0], 6.0, 2.0), row_of(CASES[3], 2.0, 4.0)])
    assert "6.00 (6.00 to 6.00)" in text
    assert (
        "Structured answers, one at a time: speculation pays. Tokens come 3.00 times as fast (3.00 to 3.00): "
        "a step yields 4.00 and takes 1.33 times as long." in text
    )
    assert "Stories, 8 at a time: speculation loses. Tokens come 0.50 times as fast" in text
    assert "no clear difference" in in_words(row_of(CASES[0], 2.0, 2.0))


def test_rounds_ask_different_prompts_and_the_same_of_both_pools() -> None:
    first, second = prompts(CASES[0], 0), prompts(CASES[0], 1)
    assert len(first) == len(second) == 8
    assert not [item for item in first if item in second]
    assert prompts(CASES[0], 0) == first
