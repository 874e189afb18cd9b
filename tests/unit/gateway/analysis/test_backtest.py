"""Does a backtest say what it knows, foot to the ledger, and keep quiet about the rest?"""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import msgspec
import pytest

from gateway.analysis.backtest import Backtest, run_backtest, units
from gateway.analysis.figures import COST, EVERYTHING, MEASURES, TIMES
from gateway.analysis.history import History
from gateway.analysis.plots import draw
from gateway.analysis.replay import Scenario
from gateway.analysis.report import as_html, as_markdown, claim_text, headline
from gateway.analysis.view import as_json, verdict
from gateway.errors import InvalidRequest
from gateway.inference import Task, TaskSource, TaskType
from gateway.money import usd_text
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import cards_of
from gateway.routing.policy import parse_policy
from tests.load.backtest_truth import ALL_PLAIN, ALL_SPECULATIVE, BY_NATURE, policy_of, policy_text
from tests.load.backtest_world import Happened, World, run_world


def scenario(world: World, routes: str, name: str = "candidate") -> Scenario:
    return Scenario(name, policy_of(routes), world.specs, PriceBook(cards_of(world.specs)))


@pytest.fixture(scope="module")
def found(happened: Happened, world: World, by_nature: Scenario) -> Backtest:
    return run_backtest(
        happened.history, candidate=scenario(world, ALL_PLAIN), baseline=by_nature, seed=3, draws=2
    )


def test_the_same_seed_says_the_same_and_another_one_nearly(
    found: Backtest, happened: Happened, world: World, by_nature: Scenario
) -> None:
    other = {"candidate": scenario(world, ALL_PLAIN), "baseline": by_nature, "draws": 2}
    same = run_backtest(happened.history, seed=3, **other)  # type: ignore[arg-type] # draws is a number
    assert as_json(same) == as_json(found)
    another = run_backtest(happened.history, seed=4, **other)  # type: ignore[arg-type]
    assert as_json(another) != as_json(found)
    first, second = (each.candidate.claims[EVERYTHING][COST].interval for each in (found, another))
    assert first is not None
    assert second is not None
    assert second.estimate == pytest.approx(first.estimate, rel=0.05)


def test_money_foots(found: Backtest, happened: Happened) -> None:
    charged = sum(each.charge_usd_nanos for each in happened.history.requests)
    assert found.recorded.charge_usd_nanos == charged
    for by in ("class", "tenant", "task"):
        of_groups = [counts for group, counts in found.recorded.counts.items() if group[0] == by]
        assert sum(each.charge_usd_nanos for each in of_groups) == charged
        assert sum(each.requests for each in of_groups) == len(happened.history.requests)
    for side in (found.baseline, found.candidate):
        whole = side.counts[EVERYTHING].charge_usd_nanos
        tenants = [counts for group, counts in side.counts.items() if group[0] == "tenant"]
        assert sum(each.charge_usd_nanos for each in tenants) == whole
        costs = [claims[COST].interval for group, claims in side.claims.items() if group[0] == "tenant"]
        busy = sum(load.cost_usd_nanos for load in side.pools)
        assert sum(each.estimate for each in costs if each is not None) == pytest.approx(busy, rel=0.01)


def test_the_record_is_reproduced(found: Backtest, happened: Happened) -> None:
    assert found.decided_alike == 1.0
    for check in found.checks:
        assert check.ratios[COST] == pytest.approx(1.0, abs=0.03)
        assert check.ratios["total_p50_s"] == pytest.approx(1.0, abs=0.05)
    recorded = sum(load.cost_usd_nanos for load in found.recorded.pools)
    assert recorded == pytest.approx(happened.cost_usd_nanos, rel=0.02)


def test_nothing_changes_where_nothing_is_changed(happened: Happened, by_nature: Scenario) -> None:
    same = run_backtest(happened.history, candidate=by_nature, baseline=by_nature, draws=2)
    for group, claims in same.differences.items():
        for name in MEASURES:
            interval = claims[name].interval
            if interval is not None:
                assert (interval.estimate, interval.low, interval.high) == (0.0, 0.0, 0.0), (group, name)
        charged = same.charge_differences[group].interval
        assert charged is not None
        assert (charged.low, charged.high) == (0.0, 0.0)


def test_estimates_lie_in_their_intervals(found: Backtest) -> None:
    for side in (found.baseline, found.candidate):
        for claims in side.claims.values():
            for claim in claims.values():
                assert (claim.interval is None) != (claim.refused is None)
                if claim.interval is not None:
                    assert claim.interval.low <= claim.interval.estimate <= claim.interval.high


def test_what_the_record_has_never_seen_is_not_claimed(world: World) -> None:
    # Nobody names a pool, so nothing is known of the speculative one.
    asked = [each for each in world.asked if each.alias == "auto" and each.same_as is None]
    narrow = World(world.specs, world.pools, asked, world.seed)
    recorded = run_world(narrow, policy_of(ALL_PLAIN), run="recorded")
    result = run_backtest(
        recorded.history,
        candidate=scenario(world, ALL_SPECULATIVE),
        baseline=scenario(world, ALL_PLAIN, "baseline"),
        draws=2,
    )
    refused = result.candidate.claims["task", "code"]
    assert all("code on speculative" in (refused[name].refused or "") for name in MEASURES)
    assert result.differences[EVERYTHING][COST].refused is not None
    assert ("speculative", "code") in result.unsupported
    # The pool's own bench was made with this task: that is a basis, and is named.
    benched = result.candidate.claims["task", "extraction"][COST]
    assert benched.interval is not None
    assert benched.rests_on == "profiled"
    view = as_json(result)
    assert "never seen" in " ".join(view["not_claimed"])
    assert "is not claimed" in headline(view)
    assert "not claimed" in as_html(view)


def test_times_outside_the_company_are_not_claimed(world: World, by_nature: Scenario) -> None:
    text = (
        policy_text(BY_NATURE)
        .replace(
            "models:\n",
            "external:\n  away: {model: openai/gpt-4o-mini, max_model_len: 9000,"
            " rates: {input: '1', cached_input: '1', output: '2'}}\nmodels:\n",
            1,
        )
        .replace("    pools: [speculative, plain]\n", "    pools: [plain]\n    overflow: [away]\n", 1)
    )
    policy = parse_policy(text, source="policy", pools=world.specs)
    rates = {name: target.rates for name, target in policy.external.items()}
    away = Scenario("away", policy, world.specs, PriceBook(cards_of(world.specs, rates)))
    requests = run_world(world, by_nature.policy, run="recorded").history.requests[:200]
    for number, each in enumerate(requests):
        each.task = Task(TaskType.EXTRACTION, TaskSource.DECLARED, 1.0)
        # So that the length of their answers is known.
        pool = "away" if number % 2 else "speculative"
        each.attempts = [msgspec.structs.replace(each.attempts[0], pool=pool, replica=pool)]
        each.asked = msgspec.structs.replace(each.asked, shows=each.asked.shows | 64)
        each.drops = (("plain", "no replica is up"),)
    result = run_backtest(History(0, 2**60, requests), candidate=away, baseline=by_nature, draws=2)
    reasons = {result.candidate.claims[EVERYTHING][name].refused for name in TIMES}
    assert [reason for reason in reasons if reason is None or "go outside" not in reason] == []


def test_too_few_requests_are_refused(happened: Happened, by_nature: Scenario) -> None:
    few = History(0, 1, happened.history.requests[:49])
    with pytest.raises(InvalidRequest, match="a backtest needs 50"):
        run_backtest(few, candidate=by_nature, baseline=by_nature)


def test_progress_counts_what_it_said_it_would(happened: Happened, world: World, by_nature: Scenario) -> None:
    done: list[int] = []
    run_backtest(
        happened.history,
        candidate=scenario(world, ALL_PLAIN),
        baseline=by_nature,
        draws=2,
        tell=done.append,
    )
    expected = units(len(happened.history.requests), draws=2)
    assert 0.8 * expected < sum(done) <= expected


def test_a_report_in_three_forms(found: Backtest) -> None:
    view = as_json(found, {"acme": "ACME <Corp>"})
    assert json.loads(json.dumps(view))["record"]["charge_usd"] == usd_text(found.recorded.charge_usd_nanos)
    page = as_html(view)
    assert "ACME &lt;Corp&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    drawing = ET.fromstring(draw(view))  # noqa: S314 - our own
    bars = [each for each in drawing.iter() if each.tag.endswith("rect")]
    assert len(bars) > 12
    text = as_markdown(view)
    assert text.startswith("# Backtest: ")
    assert "| speculative |" in text


@pytest.mark.parametrize(
    ("low", "high", "word"), [("0.1", "0.2", "more"), ("-2", "-1", "less"), ("-1", "1", "no clear change")]
)
def test_a_verdict_is_only_what_chance_does_not_explain(low: str, high: str, word: str) -> None:
    claim = {"estimate": "0", "low": low, "high": high}
    assert verdict(claim, less="less", more="more") == word
    assert verdict({"refused": "why"}, less="less", more="more") == "not claimed"


def test_a_claim_says_what_it_rests_on() -> None:
    claim = {"estimate": 1.5, "low": 1.0, "high": 2.0, "rests_on": "profiled"}
    assert claim_text(claim) == "1.5 (1 to 2) *"
    assert claim_text({"refused": "x"}) == "not claimed"
