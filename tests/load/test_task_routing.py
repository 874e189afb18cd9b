"""Is the arithmetic of the comparison of routing rules right, and are its rules what their names say?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final, cast

import pytest
import yaml

from backends.bench.workload import TaskName
from backends.profile import GridPoint, load_profile
from gateway.routing.policy import load_policy
from tests.load.engine_counters import Ledger, Tokens, as_table, comparison
from tests.load.measured import ROOT
from tests.load.task_fleet import write_policy
from tests.load.task_routing import LOADS, errors_of, gates_by_profile
from tests.load.task_routing_report import crossover, draw, figures_of, run_sums, table
from tests.load.task_traffic import (
    ALIAS,
    POOLS,
    RULES,
    Load,
    Seen,
    arrivals,
    by_turns,
    least_loaded,
    prompts_of,
)

USD: Final = {"plain": 0.36, "speculative": 0.72}


def seen(task: str, pool: str, *, at_s: float, tokens: int = 11, found_task: str | None = None) -> Seen:
    """Sent at a moment; its first token comes after 0.1 s, each further one after 0.02 s."""
    return Seen(
        task=cast("TaskName", task),
        found_task=found_task or task,
        pool=pool,
        start_s=at_s,
        first_s=at_s + 0.1,
        last_s=at_s + 0.1 + 0.02 * (tokens - 1),
        input_tokens=30,
        output_tokens=tokens,
        charge_usd=tokens * 5e-7,
        request_id="req_1",
    )


def sums(*answers: Seen, worked: dict[str, tuple[float, float]] | None = None) -> dict[str, Any]:
    return run_sums(answers, worked or {"plain": (2.0, 0.5), "speculative": (1.0, 0.5)}, USD)


def test_a_runs_sums_are_of_all_its_answers() -> None:
    found = sums(seen("extraction", "speculative", at_s=5.0), seen("creative", "plain", at_s=5.7))
    assert found["duration_s"] == pytest.approx(1.0)
    assert found["output_tokens_per_s"] == pytest.approx(22)
    assert (found["ttft_p50_ms"], found["tpot_p50_ms"]) == (pytest.approx(100), pytest.approx(20))
    # One second of both pools is 0.0003 USD; the engines worked for 2 s and 1 s of it in sum 0.0004.
    assert found["cost_wall_usd"] == pytest.approx(0.0003 / 22 * 1e6)
    assert found["cost_engine_usd"] == pytest.approx(0.0004 / 22 * 1e6)
    assert found["charge_usd"] == pytest.approx(0.5)
    assert found["engine_waited_ratio"] == 0.25
    assert found["to_speculative"] == {"extraction": 1, "creative": 0}


def test_a_task_is_found_when_its_nature_is() -> None:
    found = sums(
        seen("extraction", "plain", at_s=0, found_task="code"),
        seen("creative", "plain", at_s=0, found_task="chat"),
        seen("extraction", "plain", at_s=0, found_task="chat"),
    )
    assert found["nature_found"] == pytest.approx(2 / 3, abs=0.001)


def runs() -> list[dict[str, Any]]:
    found = []
    for run, speeds in enumerate(({"round_robin": 10, "tollgate": 30}, {"round_robin": 20, "tollgate": 40})):
        for rule, tokens in speeds.items():
            one = sums(seen("creative", "plain", at_s=0, tokens=tokens))
            found.append({"run": run, "load": "two", "rule": rule, **one})
    return found


def test_ratios_are_to_round_robin_of_the_same_repetition() -> None:
    found = figures_of(runs())["two"]
    assert found["round_robin"]["output_tokens_per_s"]["ratio"] == {"median": 1, "min": 1, "max": 1}
    first, second = 30 / 0.68 / (10 / 0.28), 40 / 0.88 / (20 / 0.48)
    ratio = found["tollgate"]["output_tokens_per_s"]["ratio"]
    assert (ratio["min"], ratio["max"]) == (
        pytest.approx(min(first, second), abs=0.001),
        pytest.approx(max(first, second), abs=0.001),
    )
    assert "plain" not in found


def test_a_result_becomes_a_table_and_a_picture() -> None:
    predicted = {"requests": 2, "total_ms": {"median": 1.0, "p10": 0.5, "p90": 2.0}}
    result = {
        "date": "2026-11-28T00:00:00+00:00",
        "commit": "abc",
        "command": "python -m tests.load.task_routing",
        "hardware": {"cpu": "a processor", "cores": 2, "load_average": [0.1, 0.1, 0.1]},
        "figures": {
            "summary": figures_of(runs()),
            "gates": {"learned": [], **gates_by_profile()},
            "predicted_over_actual": predicted,
            "tokens": {},
        },
    }
    text = table(result)
    assert "| Tollgate with economics |" in text
    assert "whole answer 1.00 (0.50-2.00)" in text
    picture = draw(result)
    assert picture == draw(result)
    assert picture.count("<rect") >= 2 * 3


def points(task: str, speeds: dict[int, float]) -> list[GridPoint]:
    known = load_profile(ROOT / "backends" / "profiles" / "plain.json").grid[-1]
    return [
        known.model_copy(
            update={"task": task, "concurrency": load, "output_tokens_per_s": speed, "is_output_fixed": False}
        )
        for load, speed in speeds.items()
    ]


def test_speculation_pays_up_to_where_the_measured_lines_cross() -> None:
    plain = points("creative", {1: 100, 4: 400, 16: 800})
    found = crossover(points("creative", {1: 200, 4: 800, 16: 400}), plain, "creative")
    assert found["speculative_over_plain"] == {1: 2, 4: 2, 16: 0.5}
    assert found["crosses_at"] == 8  # halfway between 4 and 16 as loads multiply
    never = crossover(points("creative", {1: 50, 4: 50, 16: 50}), plain, "creative")
    assert (never["crosses_at"], never["pays_at_first"]) == (None, False)
    always = crossover(points("creative", {1: 150, 4: 500, 16: 900}), plain, "creative")
    assert (always["crosses_at"], always["pays_at_first"]) == (None, True)


def test_rules_choose_as_they_are_called() -> None:
    turns, idle = by_turns(), Counter[str]()
    assert Counter(turns(idle) for _ in range(10)) == {
        ALIAS.format("plain"): 5,
        ALIAS.format("speculative"): 5,
    }
    least = least_loaded()
    assert {least(Counter(plain=3, speculative=1)) for _ in range(4)} == {ALIAS.format("speculative")}
    assert Counter(least(idle) for _ in range(10)).most_common()[0][1] == 5
    assert [rule.gateway for rule in RULES].count("economics") == 1


def test_loads_are_the_same_for_the_same_seed_and_half_of_each_task() -> None:
    load = Load("some", 20, per_s=2.0)
    assert prompts_of(load, 3) == prompts_of(load, 3) != prompts_of(load, 4)
    assert Counter(prompt.task for prompt in prompts_of(load, 3)) == {"extraction": 10, "creative": 10}
    moments = arrivals(load, 3)
    assert moments == sorted(moments)
    assert 20 / 2 / 3 < moments[-1] < 20 / 2 * 3
    assert set(arrivals(Load("closed", 5, concurrency=2), 3)) == {0.0}
    assert all(bool(one.concurrency) != bool(one.per_s) for one in LOADS)


@pytest.mark.parametrize("is_economic", [True, False])
def test_the_policies_are_the_shipped_one_but_for_economics_and_the_answer_cache(
    tmp_path: Path, *, is_economic: bool
) -> None:
    path = write_policy(tmp_path, is_economic=is_economic)
    policy = load_policy(path, pools=POOLS)
    shipped = yaml.safe_load((ROOT / "policies" / "default.yaml").read_text())
    assert yaml.safe_load(path.read_text())["routes"] == shipped["routes"]
    assert policy.economics.is_enabled is is_economic
    assert not policy.cache.is_enabled


def test_predictions_are_compared_with_what_their_attempt_took() -> None:
    times = {"first_token_ms": 10.0, "token_ms": None, "total_ms": 50.0}
    attempt = {"predicted": {"first_token_ms": 5.0, "token_ms": 1.0, "total_ms": 100.0}, "actual": times}
    assert errors_of([{"attempts": [attempt]}]) == [{"first_token_ms": 0.5, "total_ms": 2.0}]


def test_the_ledger_is_compared_with_what_engines_counted_since() -> None:
    before, after = {"plain": Tokens(100, 50)}, {"plain": Tokens(160, 90)}
    books = {"plain": Ledger(4, Tokens(50, 38), 1, Tokens(20, 2), 1)}
    (row,) = comparison(before, after, books).values()
    assert (row["difference_read"], row["difference_written"]) == (10, 2)
    assert (row["estimated_attempts"], row["of_the_platform"]) == (1, 1)
    assert "| plain | 4 (1) | 60, 50 | 40, 38 | 10, 2 | 1: 20, 2 |" in as_table(
        comparison(before, after, books)
    )
