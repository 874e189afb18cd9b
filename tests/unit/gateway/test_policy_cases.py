"""Do the shipped policies do what their cases say, and does a case that fails say what came out?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from backends.files import load_pools
from gateway.cli import app as program
from gateway.errors import ConfigurationError, GatewayError
from gateway.policy_cases import load_cases, run_cases
from gateway.pricing.catalog import cards_of
from gateway.routing.policy_check import Severity, check_policy
from tests.support.pool_files import ROOT

POOLS = ROOT / "backends" / "pools"
CASES = sorted((ROOT / "policies" / "cases").glob("*.yaml"))
EXAMPLE = ROOT / "policies" / "example.yaml"
MADE = """\
policy: POLICY
pools: POOLS
cases:
  - name: one
    given: {task: code, conversation: c1}
    expect: EXPECT
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(program, ["policy", *arguments], env={"TOLLGATE_POOLS": str(POOLS)})


def made(folder: Path, expect: str, text: str = MADE) -> Path:
    path = folder / "cases.yaml"
    for name, value in (("POLICY", EXAMPLE), ("POOLS", POOLS), ("EXPECT", expect)):
        text = text.replace(name, str(value))
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_shipped_policies_decide_as_their_cases_say(path: Path) -> None:
    cases = load_cases(path)
    folder = cases.pools_folder
    assert folder is not None
    results = run_cases(cases, specs=load_pools(folder))
    assert [(each.name, each.differences) for each in results if not each.is_right] == []
    assert len(results) >= 15


@pytest.mark.parametrize("name", ["default", "example"])
def test_the_shipped_policies_are_sound(name: str) -> None:
    path = ROOT / "policies" / f"{name}.yaml"
    pools = load_pools(POOLS)
    prices = {pool: card.price for pool, card in cards_of(pools).items() if card.price is not None}
    _, found = check_policy(path.read_text(), source=name, pools=pools, prices=prices)
    assert [each for each in found if each.severity is not Severity.OVERLAP] == []


def test_every_rule_of_the_example_decides_one_of_its_cases() -> None:
    (path,) = [each for each in CASES if each.stem == "example"]
    decided = {each.explanation.rule for each in run_cases(load_cases(path), specs=load_pools(POOLS))}
    names = [line.split()[-1] for line in EXAMPLE.read_text().splitlines() if line.startswith("  - name: ")]
    assert decided == {*names, None}


def test_a_case_that_fails_shows_what_came_out_and_ends_with_1(tmp_path: Path) -> None:
    expect = "{targets: [plain], rule: labels, drops: {plain: x}, first: speculative, hedging: true}"
    path = made(tmp_path, expect)
    outcome = run("test", str(path))
    assert outcome.exit_code == 1
    told = outcome.stdout
    assert f"{path}:4: one" in told.replace("\n", "")
    for line in ("targets", "- plain", "+ speculative then plain", "- labels", "+ code-canary"):
        assert line in told
    assert "drops.openai-4o" in told
    assert "rule labels: no: task is code, not classification or extraction" in told
    assert "1 of 1 cases differ" in told
    found = json.loads(run("test", str(path), "--json").stdout)
    assert (found["cases"], found["failed"]) == (1, 1)
    assert {each["what"] for each in found["results"][0]["differences"]} == {
        "targets",
        "rule",
        "drops.plain",
        "drops.openai-4o",
        "hedging",
    }


def test_a_refusal_that_nobody_expects_is_a_failure(tmp_path: Path) -> None:
    text = MADE.replace("task: code", "task: code, down: [speculative, plain]")
    (result,) = run_cases(load_cases(made(tmp_path, "{rule: code-canary}", text)), specs=load_pools(POOLS))
    assert [each.what for each in result.differences] == ["error"]
    (result,) = run_cases(
        load_cases(made(tmp_path, "{error: no_target, message: nowhere}", text)), specs=load_pools(POOLS)
    )
    assert [each.what for each in result.differences] == ["message"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cases:", "csaes:", r"did you mean 'cases'"),
        ("task: code", "tsak: code", r"cases\[0\]\.given\.tsak: unknown key"),
        ("EXPECT", "{}", r"it expects nothing, and so can never fail"),
        ("task: code", "down: nowhere", r"there is no pool 'nowhere'; known: plain, speculative"),
        ("policy: POLICY", "policy: [", r":\d+: "),
    ],
)
def test_a_mistake_in_a_case_is_told_with_its_line(tmp_path: Path, old: str, new: str, *, said: str) -> None:
    path = made(tmp_path, "{first: plain}", MADE.replace(old, new))
    with pytest.raises(ConfigurationError, match=said):
        run_cases(load_cases(path), specs=load_pools(POOLS))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_cases(tmp_path / "nowhere.yaml")


# ------------------------------------------------------------------------------------------------ commands
def test_check_says_what_is_wrong_and_ends_with_1(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(EXAMPLE.read_text().replace("  - name: trial", "  - name: all\n  - name: trial", 1))
    outcome = run("check", str(bad))
    assert outcome.exit_code == 1
    assert "no call reaches it: rule 'all' (line" in outcome.stdout
    assert "invalid, 8 errors" in outcome.stdout
    found = json.loads(run("check", str(bad), "--json").stdout)
    assert (found["valid"], len([each for each in found["findings"] if each["severity"] == "error"])) == (
        False,
        8,
    )
    fine = run("check", str(EXAMPLE))
    assert fine.exit_code == 0
    assert "pairs of rules share calls" in fine.stdout
    assert "such as tenant trial" in run("check", str(EXAMPLE), "--overlaps").stdout
    (tmp_path / "raw.yaml").write_bytes(b"\xff")
    for missing in ("nowhere.yaml", str(tmp_path / "raw.yaml")):
        assert isinstance(run("check", missing).exception, ConfigurationError)
    assert json.loads(run("schema").stdout)["title"] == "Tollgate routing policy"


def test_explain_tells_facts_rules_candidates_and_the_choice(tmp_path: Path) -> None:
    body = tmp_path / "request.json"
    body.write_text(
        '{"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": "Write a haiku"}]}'
    )
    arguments = ("explain", str(body), "--policy", str(EXAMPLE), "--tenant", "acme")
    told = run(*arguments, "--given", "tag.batch=nightly", "--given", "at=2026-06-03T23:00").stdout
    for line in (
        "task: creative",
        "tags: batch=nightly",
        "1. trial: no: tenant is acme, not trial",
        "5. nightly-batch: matches",
        "not openai-4o: requests of this tenant stay inside the company",
        "rule 'nightly-batch': plain then speculative",
        "cache: looked up first",
        "attempts at most: 2",
    ):
        assert line in told, told
    found = json.loads(run(*arguments, "--given", "budget_used_percent=95", "--json").stdout)
    assert (found["rule"], found["branch"]) == ("everybody", "budget_low")
    assert [each["predicted"] is not None for each in found["candidates"]] == [True, True]
    refused = run(*arguments, "--given", "tenant=trial", "--given", "budget_used_percent=95")
    assert refused.exit_code == 1
    assert "402 budget_exceeded: 95.0 % of the budget" in " ".join(refused.stdout.split())
    prompt = CliRunner().invoke(
        program,
        ["policy", "explain", "-", "--json"],
        env={
            "TOLLGATE_POOLS": str(POOLS),
            "TOLLGATE_POLICY": str(EXAMPLE),
            "TOLLGATE_STATE_DIR": str(tmp_path),
        },
        input='{"model": "auto", "prompt": "Once upon a time"}',
    )
    assert json.loads(prompt.stdout)["error"] is None
    outside = run(
        "explain", "--policy", str(EXAMPLE), "--given", "media=yes", "--given", "may_leave=yes",
        "--given", "project=support", "--given", "class=flex",
    )  # fmt: skip
    assert "openai-4o (outside)" in outside.stdout
    hedged = run("explain", "--policy", str(EXAMPLE), "--given", "project=support")
    assert "hedging: on" in hedged.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Say what is asked"),
        (("--given", "tsak=code"), "--given tsak: nobody knows it; known: class, tag.NAME, at"),
        (("--given", "task=cod"), "--given task: "),
        (("--given", "task"), "takes NAME=VALUE"),
        (("--given", "down=nowhere"), "There is no pool 'nowhere'"),
        (("nowhere.json",), "cannot be read"),
        (("BAD",), "not JSON"),
        (("EMPTY",), "`model` is missing"),
        (("BAD", "--receipt", "req_1"), "Say what is asked"),
    ],
)
def test_a_wrong_call_says_what_to_do(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "BAD").write_text("{")
    (tmp_path / "EMPTY").write_text("{}")
    shown = [str(tmp_path / each) if each.isupper() else each for each in arguments]
    outcome = run("explain", "--policy", str(EXAMPLE), *shown)
    assert isinstance(outcome.exception, GatewayError), outcome.output
    assert said in str(outcome.exception)
