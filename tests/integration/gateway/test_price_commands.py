"""Do the commands about prices do what they say, and say what they did?"""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import app as program
from tests.integration.gateway.terminal import Terminal
from tests.support.pool_files import SERVED_NAME

# What entries do on PostgreSQL is tried over HTTP and with the audit; this is about what commands say.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

POLICY = """\
name: outgoing
models:
  auto: {pools: [speculative, plain], overflow: [mini, partner]}
external:
  mini: {model: openai/gpt-4o-mini, api_key: openai, max_model_len: 128000}
  partner:
    model: llama-70b
    api_base: https://models.example.com/v1
    max_model_len: 300000
    rates: {input: "1", cached_input: "1", output: "2"}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 256
"""
DERIVED = f"""\
name: plain
driver: external
model: {{served_name: {SERVED_NAME}, max_model_len: 1024}}
batching: {{max_num_seqs: 32, max_num_batched_tokens: 2048}}
hardware: {{gpu: cpu, usd_per_hour: "0.12"}}
derived_rates: {{utilisation: 0.4, input_tokens_per_s: 5000, output_tokens_per_s: 600}}
urls: [http://127.0.0.1:9]
"""


@pytest.fixture
def terminal(home: Path) -> Terminal:
    made = Terminal(home)
    (home / "policy.yaml").write_text(POLICY)
    (Path(made.environment["TOLLGATE_POOLS"]) / "plain.yaml").write_text(DERIVED)
    made.environment["TOLLGATE_POLICY"] = str(home / "policy.yaml")
    return made


def test_prices_for_people_and_for_machines(terminal: Terminal) -> None:
    listed = terminal.text("prices", "show")
    assert re.search(
        r"speculative +0\.10 +0\.01 +0\.00 +0\.40 +0\.40 +0\.00 +pool +speculative@\w{12}", listed
    )
    assert re.search(r"mini +- +- +- +- +- +- +unpriced *\n", listed)
    shown = terminal.text("prices", "show", "plain")
    assert re.search(r"input +0\.016666667 USD per million tokens", shown)
    assert re.search(r"source +derived", shown)
    assert re.search(
        r"derived +0\.12 USD/h / \(tokens/s \* 3600\) \* 1,000,000 / 0\.4 utilisation; tokens/s: 5000 input,",
        shown,
    )
    derivation = terminal.json("prices", "show", "plain")["derivation"]
    assert (derivation["usd_per_hour"], derivation["utilisation"]) == ("0.12", "0.4")

    rates = ("--input", "0.15", "--cached-input", "0.075", "--output", "0.6", "--per-request", "0.001")
    said = terminal.text("prices", "set", "mini", *rates, "--note", "contract of November")
    assert re.search(r"per request +0\.001 USD per request", said)
    assert re.search(r"note +contract of November", said)
    later = terminal.json("prices", "set", "mini", *rates[:-2], "--from", "2999-01-01")
    assert later["since"] == "2999-01-01T00:00:00Z"
    assert re.search(
        rf"then +{later['version']}, from 2999-01-01 00:00 UTC", terminal.text("prices", "show", "mini")
    )
    assert terminal.json("prices", "show", "mini", "--at", "2999-01-01") == later
    back = terminal.json("prices", "reset", "mini", "--note", "ended")
    assert (back["version"], back["following"]["version"]) == (None, later["version"])
    history = terminal.json("prices", "show", "mini", "--history")["history"]["data"]
    assert [one["note"] for one in history] == ["ended", None, "contract of November"]
    assert "unpriced: refused, unless" in (found := terminal.text("prices", "show", "mini", "--history"))
    assert re.search(r"2999-01-01 00:00 +finance +0\.15", found)

    now_and_then = terminal.text("prices", "diff", "--from", "2998-12-31", "--to", "2999-01-01")
    assert re.search(r"mini +input +- +-> +0\.15", now_and_then)
    assert re.search(r"mini +cached input +- +-> +0\.075", now_and_then)
    assert "speculative" not in now_and_then
    assert (
        terminal.text("prices", "diff", "--from", "2998-01-01", "--to", "2998-01-02") == "No price differs.\n"
    )
    (entry,) = [one for one in terminal.audit() if one["action"] == "price.reset"]
    assert entry["object"] == {"kind": "price", "id": history[0]["id"], "name": "mini"}
    assert entry["after"]["effective_from"].rstrip("Z") in history[0]["effective_from"]


def test_prices_are_taken_over_from_litellms_map_after_they_were_shown(terminal: Terminal) -> None:
    compared = terminal.json("prices", "diff")
    assert [one["target"] for one in compared] == ["mini"]
    assert (compared[0]["before"], compared[0]["after"]["input"]) == (None, "0.150000000")

    def invoke(*arguments: str, said: str) -> Any:
        return terminal.runner.invoke(program, arguments, env=terminal.environment, input=said)

    declined = invoke("prices", "import", said="n\n")
    assert declined.exit_code == 1
    assert re.search(r"mini +output +- +-> +0\.60", declined.stdout)
    assert "partner: left out, its provider is not known" in declined.stderr
    assert "Nothing was changed." in declined.stderr
    assert terminal.json("prices", "show", "mini")["version"] is None
    agreed = invoke("prices", "import", "mini", said="y\n")
    assert (agreed.exit_code, "Taken over from litellm " in agreed.stdout) == (0, True)
    view = terminal.json("prices", "show", "mini")
    assert (view["source"], view["rates"]["cached_input"]) == ("litellm", "0.075000000")
    assert re.fullmatch(r"litellm [\d.]+, gpt-4o-mini", view["note"])
    assert terminal.text("prices", "import", "mini") == "Nothing to change.\n"
    assert terminal.text("prices", "diff") == "No price differs.\n"
    named = terminal.json("prices", "import", "partner", "--model", "deepseek/deepseek-chat", "--yes")
    assert [one["rates"]["cache_write"] for one in named["changed"]] == ["0.000000000"]
    assert terminal.json("prices", "import", "mini", "--yes")["changed"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "show plian",
            "There is no target 'plian' among the pools and external targets. Did you mean 'plain'",
        ),
        ("set plian --input 1 --output 1", "Did you mean 'plain'"),
        ("set plain --input 0 --output 1", "`input` must be above 0"),
        (
            "set plain --input 1 --output 1 --from 2001-01-01",
            "lies in the past: what was charged never changes",
        ),
        ("set plain --input 1 --output 1 --from soon", "`--from` must be a date or an instant such as"),
        ("reset zzz", "Known: plain, speculative, mini, partner."),
        ("show --history", "tollgate prices show TARGET --history"),
        ("import --json", "say --yes, too"),
        ("import --yes --from 2001-01-01", "--from lies in the past"),
        ("import --model gpt-4o --yes", "--model is for one target"),
        ("import partner --yes", "tollgate prices import partner --model NAME"),
        ("import partner --model gpt-4o-minii --yes", "has no model 'gpt-4o-minii'"),
        ("import partner --model gpt-5.4 --yes", "and the target takes 300,000 (max_model_len)"),
        (
            "import mini --model claude-sonnet-4-5 --yes",
            "`cache_creation_input_token_cost_above_1hr` is a price",
        ),
        ("diff --to 2026-01-01", "--to needs --from"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_would_be_right(
    terminal: Terminal, arguments: str, said: str
) -> None:
    assert said in terminal.refused("prices", *arguments.split())
    assert terminal.json("audit", "log", "--action", "price") == []
