"""Does the command line start, show and end canaries, and say what it did?"""

from pathlib import Path

import pytest

from tests.integration.gateway.terminal import Terminal
from tests.support.pool_files import DEFAULT_POLICY

# What happens on PostgreSQL is tried over HTTP; this is about what commands say.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


@pytest.fixture
def terminal(home: Path) -> Terminal:
    return Terminal(home)


def test_from_the_start_to_the_promotion(terminal: Terminal, home: Path) -> None:
    file = home / "next.yaml"
    file.write_text(DEFAULT_POLICY.read_text().replace("max_tokens_default: 256", "max_tokens_default: 300"))
    told = terminal.refused("policy", "canary", str(file), "--percent", "5")
    assert "start a gateway first" in told
    active = terminal.json("policy", "publish", str(DEFAULT_POLICY))["version"]
    assert "There never was a canary" in terminal.refused("policy", "canary", "status")

    told = terminal.text("policy", "canary", str(file), "--percent", "5", "--match", "tenant=acme")
    assert "Canary 1: 5 % of conversations of acme follow default@" in told
    assert f"all others {active}." in told
    shown = terminal.text("policy", "canary", "status")
    assert "under way; no verdict yet (wanted: 2000 units of the candidate)" in shown
    assert "its guard has not looked yet" in shown
    assert "not 'team=a'" in terminal.refused(
        "policy", "canary", str(file), "--percent", "5", "--match", "team=a"
    )
    assert "is under way" in terminal.refused("policy", "canary", "start", str(file), "--percent", "5")

    told = terminal.text("policy", "canary", "stop", "-m", "not today")
    assert f"Canary 1 is stopped: all requests follow {active}" in told
    assert "There is no canary now" in terminal.refused("policy", "canary", "promote")
    started = terminal.json("policy", "canary", "start", str(file), "--percent", "50", "--sticky", "key")
    told = terminal.text("policy", "canary", "promote", "--number", "2")
    assert f"{started['version']} is active, number 2." in told
    history = terminal.json("policy", "canary", "history")
    assert [(one["number"], one["end"]["how"]) for one in history] == [(2, "promoted"), (1, "stopped")]
    assert "not today" in terminal.text("policy", "canary", "history")
