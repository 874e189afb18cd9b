"""Is the first rule that matches found, whatever is remembered, and are its parts drawn fairly?"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BudgetExceeded, ConfigurationError
from gateway.inference import Endpoint, RouteTerms, TaskType
from gateway.protocols.affinity import conversation_key
from gateway.routing.decide import match_of
from gateway.routing.policy import parse_policy
from gateway.routing.rule_compile import hours_of
from gateway.routing.rule_file import TimeSection
from gateway.routing.rules import (
    NOBODY,
    BudgetLevel,
    Limits,
    Match,
    Situation,
    cheapest_first,
    drawn,
    facts_of,
    hour_of_week,
    is_measured,
    refuse_low,
    usd_per_million,
)
from tests.support.factories import POLICY_TEXT, POOLS, make_call, make_policy, make_price, make_task


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def matched(
    rules: str, *, task: TaskType = TaskType.CODE, tier: str = "default", **more: Any
) -> Match | None:
    situation = msgspec.structs.replace(
        NOBODY, **{name: more.pop(name) for name in list(more) if hasattr(NOBODY, name)}
    )
    policy = make_policy(f"{POLICY_TEXT}rules:\n{rules}")
    found = match_of(make_call(**more), make_task(task), policy, latency_class=tier, situation=situation)
    refuse_low(found, situation)
    return found


def name_of(rules: str, **more: Any) -> str | None:
    found = matched(rules, **more)
    return None if found is None else found.rule.name


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ("{task: code}", {}, {"task": TaskType.QA}),
        ("{task: [code, qa]}", {"task": TaskType.QA}, {"task": TaskType.CHAT}),
        ("{nature: creative}", {"task": TaskType.CHAT}, {}),
        ("{tenant: acme}", {"tenant": "acme"}, {"tenant": "other"}),
        ("{project: [a, b]}", {"project": "b"}, {}),
        ("{tag: {t: [x, y]}}", {"tags": (("s", "x"), ("t", "y"))}, {"tags": (("t", "z"),)}),
        ("{tag: {t: x}}", {"tags": (("t", "x"),)}, {}),
        ("{model: [fast, careful]}", {"model_alias": "fast"}, {}),
        ("{latency_class: flex}", {"tier": "flex"}, {}),
        ("{input_tokens: {min: 25}}", {}, {"body_bytes": 99}),
        ("{input_tokens: {max: 25}}", {}, {"body_bytes": 104}),
        ("{input_tokens: {max: 25}}", {"prompts": 4, "body_bytes": 400}, {"facts": {"has_media": True}}),
        (
            "{time: {from_hour: 9, to_hour: 17}}",
            {"at_ms": ms("2026-06-03T09:00")},
            {"at_ms": ms("2026-06-03T17:00")},
        ),
        ("{tools: true}", {"facts": {"has_tools": True}}, {}),
        ("{tools: false}", {}, {"facts": {"has_tools": True}}),
        ("{format: json_schema}", {"facts": {"has_schema": True}}, {"facts": {"has_json_mode": True}}),
        (
            "{format: [text, json_object]}",
            {"facts": {"has_json_mode": True}},
            {"facts": {"has_schema": True}},
        ),
        ("{media: true}", {"facts": {"has_media": True}}, {}),
        ("{task: code, tenant: acme}", {"tenant": "acme"}, {"tenant": "acme", "task": TaskType.QA}),
    ],
)
def test_a_condition_holds_or_says_why_not(when: str, yes: dict[str, Any], no: dict[str, Any]) -> None:
    rules = f"  - {{name: r, when: {when}}}\n"
    assert name_of(rules, **yes) == "r"
    assert name_of(rules, **no) is None


def test_the_first_that_matches_decides() -> None:
    rules = (
        "  - {name: a, when: {task: qa}}\n  - {name: b, when: {tools: false}}\n  - {name: c}\n  - {name: d}\n"
    )
    assert name_of(rules, task=TaskType.QA) == "a"
    assert name_of(rules) == "b"
    assert name_of(rules, facts={"has_tools": True}) == "c"


def test_a_rule_without_a_target_for_the_model_is_passed_over() -> None:
    rules = "  - {name: a, use: [speculative]}\n"
    assert name_of(rules, model_alias="fast") == "a"
    assert name_of(rules, model_alias="careful") is None


def test_why_a_rule_is_not_a_calls_is_told_in_words() -> None:
    when = (
        "{task: [qa, code], tenant: acme, tag: {team: [a, b]}, input_tokens: {min: 30, max: 40},"
        " time: {from_hour: 22, to_hour: 6, days: [fri, sat]}, tools: true, media: false}"
    )
    text = f"{POLICY_TEXT}rules:\n  - name: r\n    when: {when}\n    use: [speculative]\n"
    (rule,) = make_policy(text).rules.entries
    call = make_call(model_alias="careful", facts={"has_media": True})
    situation = Situation(tags=(("team", "c"),), at_ms=ms("2026-06-03T22:05"))
    facts = facts_of(
        call, make_task(TaskType.MATH), "predictable", latency_class="default", situation=situation
    )
    assert rule.failures(facts) == [
        "task is math, not code or qa",
        "tenant is not known, not acme",
        "tag team must be a or b: it is c",
        "none of its targets may serve model 'careful'",
        "the input must have 30 to 40 tokens, and nobody knows how many images or sound come to",
        "it is wed 22:05 UTC, not fri or sat 22:00 to 06:00 UTC",
        "the call has no tools",
        "the call has images, sound or files",
    ]
    short = msgspec.structs.replace(facts, input_tokens=20, tags=())
    assert "the input has about 20 tokens, not 30 to 40" in rule.failures(short)
    assert "tag team must be a or b: there is no such fixed tag" in rule.failures(short)


# ------------------------------------------------------------------------------------------------------ time
def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    hours = hours_of(TimeSection(from_hour=22, to_hour=6, days=("fri",)))

    def holds(text: str) -> bool:
        return bool(hours >> hour_of_week(ms(text)) & 1)

    assert [holds(f"2026-06-05T{hour}:00") for hour in ("21", "22", "23")] == [False, True, True]
    assert [holds(f"2026-06-06T0{hour}:00") for hour in range(7)] == [True] * 6 + [False]
    assert not holds("2026-06-05T02:00"), "Friday morning is Thursday's night"
    sunday = hours_of(TimeSection(from_hour=23, to_hour=1, days=("sun",)))
    assert sunday == 1 << 167 | 1


@given(st.integers(0, 2**42))
def test_the_hour_of_the_week_is_the_calendars(at_ms: int) -> None:
    found = datetime.fromtimestamp(at_ms / 1000, UTC)
    assert hour_of_week(at_ms) == found.weekday() * 24 + found.hour


# ---------------------------------------------------------------------------------------------- what is kept
WHEN = st.fixed_dictionaries(
    {},
    optional={
        "task": st.lists(st.sampled_from(["code", "qa"]), min_size=1, unique=True),
        "tenant": st.sampled_from(["a", "b"]),
        "model": st.sampled_from(["auto", "fast"]),
        "latency_class": st.sampled_from(["flex", "default"]),
        "tools": st.booleans(),
        "input_tokens": st.sampled_from([{"min": 20}, {"max": 30}]),
        "tag": st.just({"t": "x"}),
    },
)


@given(st.lists(WHEN, min_size=1, max_size=6), st.data())
def test_what_is_remembered_changes_nothing(whens: list[dict[str, Any]], data: st.DataObject) -> None:
    """The index finds what asking every condition of every rule in turn would find."""
    rules = [{"name": f"r{number}", "when": when} for number, when in enumerate(whens)]
    policy = parse_policy(f"{POLICY_TEXT}rules: {json.dumps(rules)}\n", source="p", pools=POOLS)
    for _ in range(4):
        call = make_call(
            model_alias=data.draw(st.sampled_from(["auto", "fast", "careful"])),
            body_bytes=data.draw(st.sampled_from([40, 100, 400])),
            facts={"has_tools": data.draw(st.booleans())},
        )
        task = make_task(data.draw(st.sampled_from([TaskType.CODE, TaskType.QA, TaskType.CHAT])))
        situation = Situation(
            tenant=data.draw(st.sampled_from(["a", "b"])),
            tags=data.draw(st.sampled_from([(), (("t", "x"),)])),
        )
        tier = data.draw(st.sampled_from(["flex", "default"]))
        facts = facts_of(call, task, policy.natures[task.type].value, latency_class=tier, situation=situation)
        slow = next((rule for rule in policy.rules.entries if not rule.failures(facts)), None)
        found = match_of(call, task, policy, latency_class=tier, situation=situation)
        assert (None if found is None else found.rule) is slow


def test_what_is_remembered_is_bounded() -> None:
    policy = make_policy(f"{POLICY_TEXT}rules: [{{name: r}}]\n")
    for number in range(10_001):
        situation = Situation(tenant=str(number))
        match_of(make_call(), make_task(), policy, latency_class="default", situation=situation)
    assert len(policy.rules._known) == 1


# ------------------------------------------------------------------------------------------------------ parts
CANARY = """\
  - name: r
    use: [speculative]
    canary: {by: BY, shares: [{percent: 10, use: [plain]}, {percent: 30, use: [plain, speculative]}]}
"""


def test_shares_are_kept_over_many_conversations() -> None:
    policy = make_policy(f"{POLICY_TEXT}rules:\n{CANARY.replace('BY', 'conversation')}")
    counts = {"": 0, "canary 1": 0, "canary 2": 0}
    for number in range(4_000):
        call = make_call(affinity_key=f"conversation {number}")
        found = match_of(call, make_task(), policy, latency_class="default", situation=NOBODY)
        assert found is not None
        counts[found.branch] += 1
    # Four standard deviations of a share of 4,000.
    assert counts["canary 1"] == pytest.approx(400, abs=76)
    assert counts["canary 2"] == pytest.approx(1_200, abs=116)


def test_a_key_stays_where_it_is_whatever_it_asks() -> None:
    rules = CANARY.replace("BY", "key")
    branches = {
        key: {
            found.branch
            for number in range(5)
            if (found := matched(rules, key=key, affinity_key=str(number))) is not None
        }
        for key in map(str, range(40))
    }
    assert all(len(each) == 1 for each in branches.values())
    assert len(set.union(*branches.values())) == 3


def test_a_model_that_the_canary_cannot_serve_stays_with_the_rule() -> None:
    rules = "  - {name: r, canary: {shares: [{percent: 100, use: [plain]}]}}\n"
    found = matched(rules, model_alias="fast")
    assert found is not None
    assert (found.branch, found.orders) == ("", None)
    other = matched(rules)
    assert other is not None
    assert other.branch == "canary"


def test_a_conversation_is_its_opening_in_every_turn() -> None:
    first = make_call(fields={"messages": msgspec.Raw(b'[{"role":"user","content":"Hi"}]')})
    later = (
        b'[{"role":"user","content":"Hi"},{"role":"assistant","content":"?"},{"role":"user","content":"x"}]'
    )
    second = make_call(fields={"messages": msgspec.Raw(later)})
    assert conversation_key(first, "acme") == conversation_key(second, "acme")
    assert conversation_key(first, "acme") != conversation_key(first, "other")
    prompt = make_call(endpoint=Endpoint.COMPLETIONS, fields={"prompt": msgspec.Raw(b'"Once"')})
    assert conversation_key(prompt, "acme") == b'acme\0"Once"'
    assert conversation_key(make_call(), "acme") == b"acme"
    named = make_call(affinity_key="c1")
    assert b"c1" in conversation_key(named, "acme")
    (rule,) = make_policy(f"{POLICY_TEXT}rules: [{{name: r}}]\n").rules.entries
    assert 0 <= drawn(rule, named, NOBODY) < 1


@pytest.mark.parametrize(
    ("then", "use", "model", "branch", "orders"),
    [
        ("cheaper", "", "auto", "budget_low", None),
        ("cheaper", ", use: [plain]", "auto", "budget_low", {"auto": ("plain",), "careful": ("plain",)}),
        ("cheaper", ", use: [plain]", "fast", "", None),
        ("alert", "", "auto", "", None),
    ],
)
def test_a_low_budget_leads_elsewhere(then: str, use: str, model: str, *, branch: str, orders: Any) -> None:
    rules = f"  - {{name: r, budget_low: {{at_percent: 90, then: {then}{use}}}}}\n"
    low = matched(rules, model_alias=model, budget=BudgetLevel("b", 90.0))
    assert low is not None
    assert (low.branch, low.orders, low.low) == (branch, orders, then)
    for budget in (BudgetLevel("b", 89.9), None):
        enough = matched(rules, model_alias=model, budget=budget)
        assert enough is not None
        assert (enough.branch, enough.low) == ("", None)


def test_a_low_budget_is_refused_with_its_name_and_its_end() -> None:
    rules = "  - {name: r, budget_low: {at_percent: 90, then: refuse}}\n"
    with pytest.raises(
        BudgetExceeded, match=r"95\.5 % of the budget 'month' are used, and rule 'r'"
    ) as caught:
        matched(rules, budget=BudgetLevel("month", 95.5, ms("2026-07-01T00:00")))
    assert caught.value.resets_at == "2026-07-01T00:00:00Z"
    with pytest.raises(BudgetExceeded) as caught:
        matched(rules, budget=BudgetLevel("total", 95.5))
    assert "begins anew" not in caught.value.caller_detail


# ------------------------------------------------------------------------------------------------------ money
def test_limits_are_rates_as_they_are_charged() -> None:
    limits = Limits(output=600_000_000, input=50_000_000)
    assert limits.exceeded_by(make_price(input=50_000_000)) is None
    assert "input costs 0.10" in str(limits.exceeded_by(make_price()))
    assert "output costs 0.600000001" in str(limits.exceeded_by(make_price(output=600_000_001)))
    assert "no price" in str(limits.exceeded_by(None))
    assert Limits().exceeded_by(None) is None
    assert usd_per_million(1_500_000_000) == "1.50"
    with pytest.raises(ConfigurationError, match="finer"):
        make_policy(f"{POLICY_TEXT}rules: [{{name: r, limits: {{input_usd_per_million: '0.0000000001'}}}}]\n")


def test_the_cheapest_stand_first_and_what_has_no_price_last() -> None:
    prices = {
        "a": make_price(output=3),
        "b": make_price(output=2, input=9),
        "c": make_price(output=2, input=1),
    }
    assert cheapest_first(("x", "a", "b", "c"), prices) == ("c", "b", "a", "x")


@pytest.mark.parametrize(
    ("terms", "usually", "expected"),
    [
        (RouteTerms(), True, True),
        (RouteTerms(), False, False),
        (RouteTerms(objective="cost"), False, True),
        (RouteTerms(objective="order"), True, False),
        (RouteTerms(ttft_p95_s=1.0), False, True),
        (RouteTerms(tpot_p95_s=1.0), False, True),
    ],
)
def test_a_rule_says_whether_measurements_count(terms: RouteTerms, *, usually: bool, expected: bool) -> None:
    assert is_measured(terms, usually=usually) is expected


# --------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            "[{name: r, use: [plian]}]",
            "rules[0].use: there is no pool and no external target 'plian'; did you mean 'plain'?",
        ),
        ("[{name: r, use: plian}]", "rules[0].use: there is no pool"),
        ("[{name: r}, {name: r}]", "rules[1].name: 'r' is the name of the rule on line 10 too"),
        ("[{name: r, use: []}]", "rules[0].use: the list is empty"),
        ("[{name: r, when: {task: cod}}]", "did you mean 'code'?"),
        ("[{name: r, when: {input_tokens: {}}}]", "say min, max or both"),
        ("[{name: r, when: {input_tokens: {min: 5, max: 4}}}]", "no input has at least 5 and at most 4"),
        ("[{name: r, when: {time: {from_hour: 6, to_hour: 6}}}]", "are the same"),
        ("[{name: r, when: {tag: {}}}]", "rules[0].when.tag"),
        ("[{name: r, limits: {}}]", "it limits nothing"),
        ("[{name: r, objective: order, limits: {ttft_p95_ms: 5}}]", "P95 limits would have no effect"),
        ("[{name: r, hedging: true, attempts_max: 1}]", "hedging needs a second attempt"),
        (
            "[{name: r, budget_low: {at_percent: 9, then: alert, use: [plain]}}]",
            "use belongs to `then: cheaper`",
        ),
        ("[{name: 'a b'}]", "rules[0].name"),
        (
            "[{name: r, canary: {shares: [{percent: 60, use: plain}, {percent: 41, use: plain}]}}]",
            "add up to 101 %",
        ),
    ],
)
def test_a_mistake_in_a_rule_is_told_with_its_key(rules: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_policy(f"{POLICY_TEXT}rules: {rules}\n")
    assert str(caught.value).startswith("test.yaml:10: ")
    assert message in str(caught.value)
