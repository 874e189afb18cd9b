"""Does a policy read as what it does?"""

from __future__ import annotations

import pytest

from gateway.errors import ConfigurationError
from gateway.policy_words import told
from tests.support.pool_files import DEFAULT_POLICY, ROOT


def test_routes_models_and_what_holds_of_all_calls() -> None:
    words = told(DEFAULT_POLICY.read_text())
    assert words.name == "default"
    assert words.routes[0] == ("predictable", ("speculative", "plain"))
    assert ("auto", "speculative or plain") in words.models
    assert words.rules == ()
    assert "A call of which nothing says the task is chat." in words.others
    assert (
        "Calls that state a temperature of at most 0 are answered from the cache for 3,600 s." in words.others
    )


def test_every_kind_of_rule_in_words() -> None:
    words = told((ROOT / "policies" / "example.yaml").read_text())
    said = {rule.name: (rule.when, rule.then) for rule in words.rules}
    assert said["trial"] == (
        "the tenant is trial",
        (
            "follows the routes",
            "is tried 1 time at most",
            "no stream is asked for twice",
            "from 95 % of a budget on is refused (402)",
        ),
    )
    assert said["pictures"] == (
        "the model is auto and it has images, sound or files",
        ("goes to openai-4o",),
    )
    assert said["long-documents"][0] == "the model is auto and the input has at least 1,000 tokens"
    assert said["support-desk"] == (
        "the project is support and the latency class is priority or default",
        (
            "goes to speculative, then plain",
            "measurements may put a faster target first",
            "first tokens within 800 ms, 95 of 100 times",
            "slow streams are asked for twice",
        ),
    )
    assert said["nightly-batch"][0] == "the fixed tag batch is nightly and it is 20:00 to 06:00 UTC"
    assert "nothing whose output costs more than 1.00 USD per million tokens" in said["nightly-batch"][1]
    assert said["labels"][0] == "the task is classification or extraction and it offers no tools"
    assert "is answered from the cache up to temperature 0.2, kept for 86,400 s" in said["labels"][1]
    assert "10 % of the conversations go to plain, then speculative instead" in said["code-canary"][1]
    assert "from 90 % of a budget on the cheapest target goes first" in said["everybody"][1]
    assert (
        "auto",
        "speculative or plain; outside the company to openai-4o when no pool can take a call",
    ) in (words.models)


@pytest.mark.parametrize("text", ["name: [", "name: only\n"])
def test_what_is_no_policy_is_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read by today's grammar"):
        told(text)
