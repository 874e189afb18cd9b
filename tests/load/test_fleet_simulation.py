"""Does the fleet's simulation do what it says? Small runs; nothing is timed."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from gateway.inference import TaskType
from tests.load import fleet_simulation
from tests.load.fleet.blind import least_loaded, round_robin
from tests.load.fleet.gateways import policy_text, tollgate, under_policy
from tests.load.fleet.oracle import oracle
from tests.load.fleet.physics import bound
from tests.load.fleet.play import MakeRule, Played, play
from tests.load.fleet.pools import EAGLE_H100, FLEETS, NGRAM_A100, PLAIN_A100, Fleet, acceptance, published
from tests.load.fleet.sustain import BLIND, ORACLE, TARGETS, TOLLGATE, Cell, Runs, compared, tpot_s
from tests.load.fleet.traffic import TRAFFICS, draw, means_of, rows_of, shares
from tests.load.fleet_simulation import Unit

SMALL = Fleet("small", ((NGRAM_A100, 2), (PLAIN_A100, 2)))
TINY = Fleet("tiny", ((NGRAM_A100, 1), (PLAIN_A100, 1)))
TRAFFIC = "burstgpt"
MEANS = means_of(rows_of(TRAFFIC))
AIMS = (1.0, 0.0125)


def played(make: MakeRule, *, rate: float = 12.0, requests: int = 400, fleet: Fleet = SMALL) -> Played:
    return play(draw(TRAFFIC, requests, rate=rate, seed=1), fleet, make, seed=1, rate=rate)


@pytest.mark.parametrize("traffic", TRAFFICS)
def test_the_same_seed_draws_the_same_requests_at_any_rate(traffic: str) -> None:
    slow, fast = (draw(traffic, 300, rate=rate, seed=3) for rate in (1.0, 10.0))
    assert [(one.task, one.input_tokens, one.output_tokens) for one in slow] == [
        (one.task, one.input_tokens, one.output_tokens) for one in fast
    ]
    assert slow[-1].at_s == pytest.approx(10 * fast[-1].at_s)
    assert 299 / slow[-1].at_s == pytest.approx(1.0)
    assert [one.at_s for one in slow] == sorted(one.at_s for one in slow)


def test_tasks_have_the_shares_of_the_labels_and_are_confused_as_the_classifier_does() -> None:
    drawn = draw(TRAFFIC, 6_000, rate=1.0, seed=1)
    assert sum(one.task is TaskType.CODE for one in drawn) / 6_000 == pytest.approx(470 / 4557, abs=0.03)
    assert 0.78 < sum(one.task is one.seen_as for one in drawn) / 6_000 < 0.88
    assert all(one.task is one.seen_as for one in draw(TRAFFIC, 100, rate=1.0, seed=1, is_confused=False))
    assert sum(shares(drawn).values()) == pytest.approx(1.0)


def test_long_inputs_are_documents_and_short_ones_questions() -> None:
    drawn = sorted(draw(TRAFFIC, 4_000, rate=1.0, seed=1), key=lambda one: one.input_tokens)
    short, long = drawn[:400], drawn[-400:]
    for task, part in ((TaskType.QA, short), (TaskType.EXTRACTION, long)):
        assert sum(one.task is task for one in part) > 60


def test_an_unknown_traffic_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no traffic 'rush'"):
        rows_of("rush")


@pytest.mark.parametrize("method", ["ngram", "eagle3", "draft_model"])
def test_acceptance_falls_by_position_and_companies_differ(method: str) -> None:
    for curve in published(method).values():
        assert all(0 <= later <= earlier <= 0.98 for earlier, later in itertools.pairwise(curve))
    assert acceptance(method, 1) == acceptance(method, 1) != acceptance(method, 2)


def test_prompt_lookup_splits_tasks_and_trained_drafts_do_not() -> None:
    spread = {
        method: max(map(sum, published(method).values())) / min(map(sum, published(method).values()))
        for method in ("ngram", "eagle3")
    }
    assert spread["ngram"] > 10
    assert spread["eagle3"] < 1.5


def test_rules_that_name_a_pool_use_no_other() -> None:
    for only, pool in (("plain", "plain-a100"), ("speculative", "ngram-a100")):
        assert played(under_policy(SMALL, MEANS, only=only)).to_pool == {pool: 1.0}
    static = played(under_policy(SMALL, MEANS))
    assert static.to_first_by_task["code"] > 0.8
    assert static.to_first_by_task["creative"] < 0.3
    assert "economics" not in policy_text(SMALL)


def test_a_run_is_the_same_again() -> None:
    makers = (round_robin, least_loaded, tollgate(SMALL, MEANS, targets=AIMS), oracle(0.0))
    for make in makers:
        assert played(make, requests=200) == played(make, requests=200)


def test_tollgate_learns_where_a_task_belongs_and_leaves_a_crowd() -> None:
    make = tollgate(SMALL, MEANS, targets=AIMS)
    found = played(make, rate=30.0, requests=1_200)
    static = played(under_policy(SMALL, MEANS), rate=30.0, requests=1_200)
    assert found.to_first_by_task["structured"] > found.to_first_by_task["qa"] + 0.2
    assert found.tpot_p95_s < 0.7 * static.tpot_p95_s


def test_the_oracle_is_not_beaten_by_the_blind_rules() -> None:
    best = min(played(make, rate=24.0).tpot_p95_s for make in (round_robin, least_loaded))
    assert played(oracle(0.0), rate=24.0).tpot_p95_s < best


def test_more_replicas_carry_more_and_tighter_targets_less() -> None:
    rates = []
    for fleet in (SMALL, Fleet("large", ((NGRAM_A100, 4), (PLAIN_A100, 4)))):
        runs = Runs(Cell(fleet, TRAFFIC), seed=1, requests=250, on_run=lambda: None)
        rates.append([runs.sustained("least loaded", target, near=4)[0] for target in TARGETS])
    small, large = rates
    assert 0 < small[0] < small[1] < small[2]
    assert large[1] > 1.5 * small[1]
    assert tpot_s(SMALL, TARGETS[1]) == pytest.approx(3 * 0.00429, rel=0.02)


def test_costs_are_hours_over_tokens_and_ratios_those_of_the_loads() -> None:
    cell = Cell(FLEETS[0], TRAFFIC)
    loads = {rule: [2.0, 2.0] for rule in ("round robin", "all to plain", "all to speculative")}
    loads |= {"least loaded": [10.0, 10.0], "static order": [5.0, 5.0], TOLLGATE: [16.0, 16.0]}
    loads |= {ORACLE: [20.0, 20.0], "converted to plain": [8.0, 8.0], "converted to speculative": [0.0, 0.0]}
    found = compared(cell, loads)
    tokens = 10 * MEANS.output_tokens * 3600
    cost = found["usd_per_million_tokens"]
    assert cost["least loaded"] == pytest.approx(8 * 2.79 / tokens * 1e6, rel=1e-3)
    assert cost["converted to speculative"] is None
    assert found["best_blind"] == "least loaded"
    assert found["Tollgate / best task-blind"] == [0.625, 0.625, 0.625]
    assert found["gap closed"][0] == pytest.approx((1 / 10 - 1 / 16) / (1 / 10 - 1 / 20), abs=1e-3)
    assert found["Tollgate / best converted"][0] == 0.5


def test_arithmetic_says_that_routing_by_task_saves_little_where_all_tasks_gain_alike() -> None:
    eagle = bound(Cell(Fleet("h100", ((EAGLE_H100, 1), FLEETS[3].pools[1])), TRAFFIC))
    assert all(one["routed_saves"] < 0.001 for one in eagle)
    ngram = bound(Cell(SMALL, TRAFFIC))
    assert max(one["routed_saves"] for one in ngram) > 0.01
    assert all(math.isfinite(one["prompts_ratio"]) for one in ngram)


def test_all_figures_are_written(tmp_path: Path) -> None:
    found = fleet_simulation.study([Cell(TINY, TRAFFIC)], seeds=(1,), requests=100, jobs=1)
    fleet_simulation.write_all("fleet", {"seeds": [1], "requests": 100, "cells": found}, folder=tmp_path)
    result: Any = json.loads((tmp_path / "fleet.json").read_text())
    assert result["figures"]["cells"][0]["traffic"] == TRAFFIC
    report = (tmp_path / "fleet.md").read_text()
    assert "## Moderate load" in report
    assert "### Where engines are nearly full" in report
    by_pool = result["figures"]["cells"][0]["at_loads"]["high"][TOLLGATE]["prompt_tokens_by_pool"]
    assert min(by_pool.values()) > 0
    assert set(by_pool) == {NGRAM_A100.name, PLAIN_A100.name}
    assert (tmp_path / "fleet.svg").read_text().startswith("<svg")


def test_the_short_study_compares_with_the_best_task_blind_rule(tmp_path: Path) -> None:
    arguments = ["--short", "--seeds", "1", "--requests", "100", "--only", "A100: EAGLE", "--jobs", "1"]
    assert fleet_simulation.main([*arguments, "--results", str(tmp_path)]) == 0
    (name,) = (each.name for each in tmp_path.iterdir())
    assert name == "fleet_simulation-short.json"
    (cell,) = json.loads((tmp_path / name).read_text())["figures"]["cells"]
    for target in TARGETS:
        costs = cell[target.load]["usd_per_million_tokens"]
        assert set(costs) == {*BLIND, TOLLGATE}
        best = min(costs[rule] for rule in BLIND)
        assert costs[cell[target.load]["best_blind"]] == best > 0
        assert cell[target.load]["tollgate_over_best"] == pytest.approx(costs[TOLLGATE] / best, rel=2e-3)


def test_figures_do_not_depend_on_the_number_of_processes() -> None:
    cell, seeds = Cell(TINY, "azure-conversation"), (1, 2)
    apart = fleet_simulation.study([cell], seeds=seeds, requests=100, jobs=2, is_short=True)
    found = {seed: fleet_simulation.simulated(Unit(cell, seed, 100, is_short=True)) for seed in (2, 1)}
    assert apart == [fleet_simulation.shortly(cell, [found[1], found[2]])]
    assert found[1].carried != found[2].carried


@pytest.mark.parametrize(
    "wrong", [["--only", "no such fleet"], ["--jobs", "0"], ["--seeds", "0"], ["--requests", "99"]]
)
def test_a_wrong_call_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fleet_simulation.main(wrong)
    assert ended.value.code == 2
    assert "no such fleet, or fewer than 1 seed, 1 process or 100 requests" in capsys.readouterr().err
