"""Does every policy that was ever stored still parse, with the same version and the same meaning?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.routing.policy import Policy, load_policy, parse_policy
from gateway.routing.policy_schema import schema_text
from tests.support.factories import POOLS
from tests.support.pool_files import DEFAULT_POLICY, ROOT

HISTORY = sorted((Path(__file__).parent / "policies" / "history").glob("*.yaml"))


def stored(name: str) -> Policy:
    (path,) = [each for each in HISTORY if name in each.name]
    return load_policy(path, pools=POOLS)


def test_there_is_one_of_each_generation() -> None:
    assert [path.stem for path in HISTORY] == [
        "1-first",
        "2-cache",
        "3-overflow",
        "4-economics",
        "5-rules",
    ]


@pytest.mark.parametrize("path", HISTORY, ids=lambda path: path.stem)
def test_a_stored_policy_keeps_its_version(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    version = text.splitlines()[1].removeprefix("# version: ")
    assert parse_policy(text, source=path.name, pools=POOLS).version == version


def test_the_shipped_policy_keeps_its_version() -> None:
    assert load_policy(DEFAULT_POLICY, pools=POOLS).version == "default@d642c631fc40"


def test_what_the_stored_rules_mean() -> None:
    first, rest = stored("5-rules").rules.entries
    assert first.orders == {"auto": ("plain", "speculative", "outside")}
    assert (first.limits.output, first.limits.input) == (750_000_000, 500_000_000)
    assert (first.ttft_p95_s, first.tpot_p95_s) == (0.3, 0.04)
    assert [arm.branch for arm in first.arms] == ["canary 1", "canary 2"]
    assert [arm.below for arm in first.arms] == pytest.approx([0.05, 0.055])
    assert first.sticks_to_key
    assert first.has_external
    assert first.low is not None
    assert first.low.orders == {"auto": ("speculative",)}
    assert rest.low is not None
    assert (rest.low.then, rest.low.at_percent, rest.orders) == ("refuse", 95, None)


def test_editors_check_by_the_schema_of_the_grammar() -> None:
    """Drift: `tollgate policy schema > policies/schema.json` writes it anew."""
    kept = (ROOT / "policies" / "schema.json").read_text(encoding="utf-8")
    assert kept == schema_text(), "tollgate policy schema > policies/schema.json"
    schema = json.loads(kept)
    assert schema["additionalProperties"] is False
    rule = schema["$defs"]["RuleEntry"]
    assert all("description" in each or "$ref" in each for each in rule["properties"].values())
    # One word may stand where a list may: editors must not mark it.
    assert {"string", "array"} <= {each.get("type") for each in rule["properties"]["use"]["anyOf"]}
    for name in ("default", "example"):
        first = (ROOT / "policies" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=schema.json"
