"""Does a rule's call go where the rule says, and is every target that it leaves out explained?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.errors import NoEligibleTarget, Unpriced
from gateway.inference import NO_TERMS, CacheRule, Drop, RouteDecision, TaskType
from gateway.routing.decide import decide
from gateway.routing.rules import NOBODY, BudgetLevel
from tests.support.factories import (
    OVERFLOW_TEXT,
    POLICY_TEXT,
    make_call,
    make_policy,
    make_pool,
    make_price,
    make_rates,
    make_task,
)

PRICES = {
    "plain": make_price("plain@0", output=600_000_000),
    "speculative": make_price("speculative@0", output=400_000_000),
    "outside": make_price("outside@0", output=900_000_000),
}


def decided(rules: str, *, text: str = OVERFLOW_TEXT, **more: Any) -> RouteDecision:
    pools = {
        "plain": make_pool("plain", ready=more.pop("plain", 1)),
        "speculative": make_pool("speculative", ready=more.pop("speculative", 1)),
    }
    situation = msgspec.structs.replace(NOBODY, prices=PRICES, budget=more.pop("budget", None))
    deciding = {name: more.pop(name) for name in ("may_leave", "unpriced") if name in more}
    task = make_task(more.pop("task", TaskType.EXTRACTION))
    policy = make_policy(f"{text}rules:\n{rules}")
    return decide(make_call(**more), task, policy, pools=pools, situation=situation, **deciding)


def order(found: RouteDecision) -> list[str]:
    return [target.pool for target in found.targets]


def test_without_a_match_it_is_as_without_rules() -> None:
    found = decided("  - {name: r, when: {task: chat}, use: [plain]}\n")
    assert (order(found), found.terms is NO_TERMS) == (["speculative", "plain"], True)
    assert found.reason == "extraction is predictable: speculative then plain"


def test_a_rules_targets_in_its_order_and_no_others() -> None:
    found = decided("  - {name: r, use: [plain]}\n")
    assert order(found) == ["plain"]
    assert found.reason == "rule 'r': plain"
    assert found.drops == (
        Drop("speculative", "rule 'r' does not use it"),
        Drop("outside", "rule 'r' does not use it"),
        Drop("compatible", "rule 'r' does not use it"),
    )
    assert found.terms.rule == "r"


def test_a_rule_without_targets_leaves_the_routes_and_the_overflow() -> None:
    found = decided("  - {name: r, attempts_max: 2, hedging: false}\n", may_leave=True)
    assert order(found) == ["speculative", "plain", "outside", "compatible"]
    assert (found.terms.attempts_max, found.terms.hedging) == (2, False)


def test_outside_may_stand_first_for_whom_it_may_at_all() -> None:
    rules = "  - {name: r, use: [outside, plain]}\n"
    found = decided(rules, may_leave=True)
    assert order(found) == ["outside", "plain"]
    assert found.targets[0].is_external
    assert order(decided(rules)) == ["plain"]
    held = decided(rules, may_leave=True, fields={"guided": msgspec.Raw(b"1")})
    assert order(held) == ["plain"]
    assert held.drops[0].reason.startswith("`guided` means something")


def test_what_is_outside_needs_the_models_word_or_the_rules() -> None:
    by_all = "  - {name: r, use: [outside, plain]}\n"
    assert order(decided(by_all, may_leave=True, model_alias="careful")) == ["plain"]
    by_name = "  - {name: r, when: {model: careful}, use: [outside, plain]}\n"
    assert order(decided(by_name, may_leave=True, model_alias="careful")) == ["outside", "plain"]


def test_what_is_too_dear_is_left_out_inside_and_outside() -> None:
    rules = "  - {name: r, limits: {output_usd_per_million: 0.5}}\n"
    found = decided(rules, may_leave=True)
    assert order(found) == ["speculative"]
    told = {drop.pool: drop.reason for drop in found.drops}
    assert told["plain"] == "its output costs 0.60 USD per million tokens, the rule allows 0.50"
    assert told["outside"] == "its output costs 0.90 USD per million tokens, the rule allows 0.50"
    assert told["compatible"] == "it has no price, and the rule limits prices"


def test_where_nothing_is_left_the_rule_is_named() -> None:
    with pytest.raises(NoEligibleTarget) as caught:
        decided("  - {name: r, limits: {output_usd_per_million: 0.1}}\n", text=POLICY_TEXT)
    assert caught.value.status_code == 403
    assert "by rule 'r': speculative: its output costs 0.40" in caught.value.caller_detail
    with pytest.raises(NoEligibleTarget) as caught:
        decided("  - {name: r, use: [plain]}\n", plain=0)
    assert caught.value.status_code == 503, "it may come back"
    with pytest.raises(Unpriced):
        decided("  - {name: r, use: [plain]}\n", unpriced={"plain"})


def test_a_canary_and_a_low_budget_keep_their_order_whatever_is_measured() -> None:
    canary = "  - {name: r, use: [speculative], canary: {shares: [{percent: 100, use: [plain]}]}}\n"
    found = decided(canary)
    assert (order(found), found.terms.branch, found.terms.objective) == (["plain"], "canary", "order")
    assert found.reason == "rule 'r', canary: plain"
    asked = decided(canary.replace("name: r,", "name: r, objective: cost,"))
    assert asked.terms.objective == "cost"


@pytest.mark.parametrize("use", ["", "use: [plain, speculative], "])
def test_a_low_budget_takes_the_cheapest_first(use: str) -> None:
    rules = f"  - {{name: r, {use}budget_low: {{at_percent: 90, then: cheaper}}}}\n"
    enough = decided(rules, task=TaskType.CHAT)
    low = decided(rules, task=TaskType.CHAT, budget=BudgetLevel("b", 99.0))
    assert (order(enough), order(low)) == (["plain", "speculative"], ["speculative", "plain"])
    assert (low.terms.branch, low.terms.budget_low) == ("budget_low", "cheaper")
    assert low.reason == "rule 'r', a budget runs low: speculative then plain"


def test_a_low_budgets_own_targets_are_taken_as_they_stand() -> None:
    low = "{at_percent: 9, then: cheaper, use: [plain, speculative]}"
    rules = f"  - {{name: r, use: [speculative], budget_low: {low}}}\n"
    assert order(decided(rules, budget=BudgetLevel("b", 10.0))) == ["plain", "speculative"]


def test_what_a_rule_says_beside_its_targets() -> None:
    rules = (
        "  - name: r\n    objective: latency\n    limits: {ttft_p95_ms: 300, tpot_p95_ms: 40}\n"
        "    cache: {ttl_s: 60}\n"
    )
    terms = decided(rules).terms
    assert (terms.objective, terms.ttft_p95_s, terms.tpot_p95_s) == ("latency", 0.3, 0.04)
    assert terms.cache == CacheRule(is_enabled=True, temperature_max=0.0, ttl_s=60)
    assert (
        decided("  - {name: r, limits: {output_usd_per_million: 5}}\n", text=POLICY_TEXT).terms.cache is None
    )
    assert make_rates().output == 600_000_000
