"""Does the command line start, show and end shadows, and say what it did?"""

from pathlib import Path

import pytest

from gateway.cli import app as program
from tests.integration.gateway.terminal import Terminal
from tests.support.pool_files import DEFAULT_POLICY

# What happens on PostgreSQL is tried over HTTP; this is about what commands say.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


@pytest.fixture
def terminal(home: Path) -> Terminal:
    return Terminal(home)


def test_from_the_start_to_the_stop(terminal: Terminal, home: Path) -> None:
    file = home / "next.yaml"
    file.write_text(DEFAULT_POLICY.read_text().replace("max_tokens_default: 256", "max_tokens_default: 300"))
    order = ("policy", "shadow", "start", str(file), "--percent", "10")
    assert "start a gateway first" in terminal.refused(*order, "--budget", "2")
    active = terminal.json("policy", "publish", str(DEFAULT_POLICY))["version"]
    assert "There never was a shadow" in terminal.refused("policy", "shadow", "status")
    missing = terminal.runner.invoke(program, order, env=terminal.environment)
    assert (missing.exit_code, "--budget" in missing.output) == (2, True)
    assert "is not a decimal amount" in terminal.refused(*order, "--budget", "much")
    assert "USD/day or USD/month" in terminal.refused(*order, "--budget", "2/week")

    told = terminal.text(*order, "--budget", "2", "--match", "tenant=acme", "-m", "one pool")
    assert "Shadow 1: copies of 10 % of conversations of acme go to default@" in told
    assert f"for at most 2 USD a day; {active} answers." in told
    shown = terminal.text("policy", "shadow", "status")
    assert "under way\nbudget: 0.000000000 of 2.000000000 USD booked this day (UTC)" in shown
    assert "no copy is booked yet" in shown
    assert "Shadow 1" in terminal.refused(*order, "--budget", "2")
    assert "Shadow 1" in terminal.refused("policy", "canary", str(file), "--percent", "5")
    (budget,) = terminal.json("budgets", "list")
    assert (budget["name"], budget["scope"], budget["of"], budget["is_hard"]) == (
        "evaluation, shadow-1",
        "key",
        "shadow-1",
        True,
    )

    told = terminal.text("policy", "shadow", "stop", "-m", "seen enough")
    assert "Shadow 1 is stopped: nothing is copied to default@" in told
    assert "There is no shadow now" in terminal.refused("policy", "shadow", "stop")
    assert "stopped" in terminal.text("policy", "shadow", "status")
    (row,) = terminal.json("policy", "shadow", "history")
    assert (row["number"], row["end"]["how"], row["end"]["reason"]) == (1, "stopped", "seen enough")
    assert "seen enough" in terminal.text("policy", "shadow", "history")
    assert terminal.json("budgets", "list") == []
    assert (
        terminal.json("policy", "shadow", "start", str(file), "--percent", "5", "--budget", "1")["number"]
        == 2
    )
