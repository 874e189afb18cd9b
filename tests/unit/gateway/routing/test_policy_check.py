"""Is what a policy's author did not mean found, with its line and what to do, and nothing else?"""

from __future__ import annotations

from typing import Any

import pytest

from backends.pool_sections import ModelSpec
from gateway.routing.policy_check import Finding, Severity, check_policy
from tests.support.factories import OVERFLOW_TEXT, POLICY_TEXT, make_pool_spec, make_price

PRICES = {"plain": make_price(output=600_000_000), "speculative": make_price(output=400_000_000)}


def checked(rules: str, text: str = POLICY_TEXT, **plain: Any) -> list[Finding]:
    pools = {"plain": make_pool_spec("plain", **plain), "speculative": make_pool_spec("speculative")}
    body = f"{text}rules:\n{rules}" if rules else text
    return check_policy(body, source="p.yaml", pools=pools, prices=PRICES)[1]


def told(rules: str, text: str = POLICY_TEXT, **plain: Any) -> list[str]:
    return [each.told("p.yaml") for each in checked(rules, text, **plain)]


def test_nothing_is_said_of_a_sound_policy() -> None:
    assert told("") == []
    rules = (
        "  - {name: a, when: {task: code, tenant: acme}, use: [plain]}\n  - {name: b, when: {task: code}}\n"
    )
    assert told(rules) == []
    policy, _ = check_policy(
        POLICY_TEXT, source="p", pools={name: make_pool_spec(name) for name in PRICES}, prices=PRICES
    )
    assert policy is not None
    assert policy.name == "test"


def test_what_cannot_be_read_is_told_in_the_same_form() -> None:
    assert [(each.line, each.path) for each in checked("  - {name: a, usse: [plain]}\n")] == [
        (11, "rules[0].usse")
    ]
    assert told("", "name: [")[0].startswith("p.yaml:1: not valid YAML")
    fine = OVERFLOW_TEXT.replace('"0.15"', '"0.0000000001"')
    assert "finer than" in told("", fine)[0]


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ("  - {name: a}\n  - {name: b, when: {task: code}}\n", "rule 'a' (line 11) takes"),
        (
            "  - {name: a, when: {task: code}}\n  - {name: b, when: {task: code, tenant: x}}\n",
            "rule 'a' (line 11) takes",
        ),
        (
            "  - {name: a, when: {tools: true}}\n  - {name: c, when: {tools: false}}\n  - {name: b}\n",
            "rule 'a' (line 11) and rule 'c' (line 12) take",
        ),
        (
            (
                "  - {name: a, when: {nature: predictable}}\n  - {name: c, when: {nature: creative}}\n"
                "  - {name: b, when: {tenant: x}}\n"
            ),
            "rule 'a' (line 11) and rule 'c' (line 12) take",
        ),
        (
            (
                "  - {name: a, when: {input_tokens: {max: 99}, media: false}}\n"
                "  - {name: c, when: {input_tokens: {min: 100}, media: false}}\n"
                "  - {name: b, when: {media: false}}\n"
            ),
            "rule 'a' (line 11) and rule 'c' (line 12) take",
        ),
        (
            (
                "  - {name: a, when: {tenant: x}}\n  - {name: c, when: {tenant: y}}\n"
                "  - {name: b, when: {tenant: [x, y]}}\n"
            ),
            "rule 'a' (line 11) and rule 'c' (line 12) take",
        ),
        (
            (
                "  - {name: a, when: {time: {from_hour: 6, to_hour: 20}}}\n"
                "  - {name: c, when: {time: {from_hour: 20, to_hour: 6}}}\n  - {name: b}\n"
            ),
            "rule 'a' (line 11) and rule 'c' (line 12) take",
        ),
    ],
)
def test_a_rule_that_nothing_reaches_is_an_error(rules: str, names: str) -> None:
    errors = [each for each in checked(rules) if each.severity is Severity.ERROR]
    assert [each.path for each in errors] == [f"rules[{rules.count('name:') - 1}].name"]
    assert errors[0].message == f"no call reaches it: {names} them all"
    assert errors[0].suggestion == "move it up, or narrow what stands above it"


@pytest.mark.parametrize(
    "rules",
    [
        "  - {name: a, when: {tag: {t: x}}}\n  - {name: b}\n",
        "  - {name: a, when: {tag: {t: x}}}\n  - {name: b, when: {tag: {t: y}}}\n",
        "  - {name: a, when: {tenant: x}}\n  - {name: c, when: {tenant: y}}\n  - {name: b}\n",
        "  - {name: a, use: [speculative]}\n  - {name: b}\n",
        (
            "  - {name: a, when: {input_tokens: {max: 99}}}\n"
            "  - {name: c, when: {input_tokens: {min: 101}}}\n"
            "  - {name: b, when: {media: false}}\n"
        ),
    ],
)
def test_a_rule_that_something_reaches_is_none(rules: str) -> None:
    assert [each for each in checked(rules) if each.severity is Severity.ERROR] == []


def test_rules_that_share_calls_are_told_with_an_example() -> None:
    rules = (
        "  - {name: a, when: {tenant: x, latency_class: flex}}\n"
        "  - {name: b, when: {task: code, tools: true, input_tokens: {min: 9},"
        " time: {from_hour: 3, to_hour: 4, days: tue}}}\n"
    )
    (found,) = checked(rules)
    assert found.severity is Severity.OVERLAP
    assert found.message == (
        "rule 'a' (line 11) takes the calls that both are for, such as tenant x, task code, model auto,"
        " class flex, tue 03:00 UTC, 9 tokens of input, tools, no media"
    )


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("{when: {model: faast}}", "there is no model 'faast'; did you mean 'fast'?"),
        ("{when: {model: zzz}}", "there is no model 'zzz'; known: auto, fast, careful"),
        ("{when: {task: chat, nature: predictable}}", "can never match: none of its tasks has its nature"),
        (
            "{when: {model: fast}, use: [plain]}",
            (
                "none of its targets may serve the models that it names; add one of them (plain)"
                " to models.fast"
            ),
        ),
        ("{when: {media: true, input_tokens: {min: 1}}}", "nobody knows how many tokens images"),
        (
            "{when: {model: fast}, use: [speculative, plain]}",
            "no model that the rule is for may use 'plain'; add",
        ),
        (
            "{when: {input_tokens: {min: 1024}}, use: [plain]}",
            "plain cannot take the rule's calls: its context has 1024 tokens, and their input at least 1024",
        ),
        (
            "{limits: {output_usd_per_million: 0.3}}",
            "no target of the routes is cheap enough: plain: its output",
        ),
        ("{use: [plain], limits: {output_usd_per_million: 0.3}}", "no target of `use` is cheap enough"),
    ],
)
def test_what_cannot_work_is_an_error(rules: str, said: str) -> None:
    errors = [
        each.told("p") for each in checked(f"  - {{name: r, {rules[1:]}\n") if each.severity is Severity.ERROR
    ]
    assert errors
    assert said in errors[0], errors
    assert errors[0].startswith("p:11: rules[0].")


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("{when: {input_tokens: {max: 2000}}, use: [plain]}", "context of 1024 tokens: it is passed over"),
        ("{use: [speculative]}", "calls with min_p or logit_bias are refused"),
        (
            "{use: [plain, speculative], limits: {output_usd_per_million: 0.5}}",
            "some of `use` are never used",
        ),
        ("{use: [plain], objective: cost}", "there is nothing to choose"),
        ("{use: [plain], canary: {shares: [{percent: 5, use: [plain]}]}}", "no canary"),
        (
            "{use: [speculative, plain], budget_low: {at_percent: 9, then: cheaper, use: [plain]}}",
            "plain is not cheaper than speculative: output at 0.60 USD per million tokens,",
        ),
    ],
)
def test_what_looks_wrong_is_a_warning(rules: str, said: str) -> None:
    found = checked(f"  - {{name: r, {rules[1:]}\n")
    assert [each.severity for each in found] == [Severity.WARNING]
    assert said in found[0].told("p")


def test_targets_that_cannot_read_or_know_what_they_are_given() -> None:
    text_only = ModelSpec(served_name="m", max_model_len=1024, reads=("text",))
    rule = "  - {name: r, when: {media: true}, use: [plain]}\n"
    assert "its model reads text only" in told(rule, model=text_only)[0]
    adapter = POLICY_TEXT.replace("careful: {pools: [plain]}", "careful: {pools: [plain], adapter: legal}")
    found = told("  - {name: r, when: {model: careful}, use: [plain]}\n", adapter)
    assert "nothing serves it: none of its pools has the adapter 'legal'; start one with it" in found[0]
    assert "its engines have no adapter legal" in found[1]
    some = POLICY_TEXT.replace(
        "auto: {pools: [speculative, plain]", "auto: {adapter: legal, pools: [speculative, plain]"
    )
    loras: dict[str, Any] = {"engine_args": {"lora-modules": "legal=/x"}}
    assert "speculative has no adapter 'legal' and is never used" in told("", some, **loras)[0]


def test_tools_need_engines_that_were_started_for_them() -> None:
    started: dict[str, Any] = {
        "driver": "process",
        "urls": (),
        "model": ModelSpec(path="m", served_name="m", max_model_len=99),
    }
    rule = "  - {name: r, when: {tools: true}, use: [plain]}\n"
    assert "without enable-auto-tool-choice" in told(rule, **started)[0]
    flags: dict[str, Any] = {"engine_args": {"enable_auto_tool_choice": True, "tool-call-parser": "hermes"}}
    assert told(rule, **started, **flags) == []


def test_external_targets_that_nobody_can_use() -> None:
    text = OVERFLOW_TEXT.replace(", overflow: [outside, compatible]", ", overflow: [outside]")
    text = text.replace('\n    rates: {input: "0.15", cached_input: "0.075", output: "0.60"}', "")
    found = told("", text)
    assert "external.outside: it has no price and is refused until it has one" in found[0]
    assert "external.compatible: nothing uses it; name it in a model's overflow" in found[1]
    rule = "  - {name: r, when: {model: careful}, use: [compatible, plain]}\n"
    assert not any("compatible" in each for each in told(rule, text))
    unnamed = told("  - {name: r, use: [compatible, plain]}\n", text)
    assert any("add 'compatible' to the model's overflow, or name the model" in each for each in unnamed)
