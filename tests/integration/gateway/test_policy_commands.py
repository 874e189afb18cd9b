"""Do the commands about a policy's life do what they say, and say what they did?"""

import json
import re
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


@pytest.fixture
def file(home: Path) -> Path:
    path = home / "policies" / "one.yaml"
    path.parent.mkdir()
    path.write_text(DEFAULT_POLICY.read_text())
    return path


def edit(file: Path, tokens: int) -> None:
    file.write_text(re.sub(r"max_tokens_default: \d+", f"max_tokens_default: {tokens}", file.read_text()))


def status(terminal: Terminal, *arguments: str) -> tuple[int, str]:
    outcome = terminal.runner.invoke(program, arguments, env=terminal.environment)
    return outcome.exit_code, outcome.stdout


def test_from_edit_to_rollback(terminal: Terminal, file: Path) -> None:
    assert "No policy was ever active" in terminal.text("policy", "history")
    first = terminal.json("policy", "publish", str(file), "-m", "the first")
    assert (first["is_changed"], first["before"], first["diff"]) == (True, None, None)

    edit(file, 512)
    told = terminal.text("policy", "diff", "active", str(file))
    assert re.search(r"changed +max_tokens_default +256 +512", told)
    assert "+max_tokens_default: 512" in told
    tried = terminal.text("policy", "publish", str(file), "--dry-run")
    assert "Nothing was changed (--dry-run)." in tried
    told = terminal.text(
        "policy", "publish", str(file.parent), "-m", "longer", "--expected", first["version"]
    )
    second = re.search(r"(default@\w{12}) is active, number 2\.", told)
    assert second is not None
    assert f"Back to {first['version']}: tollgate policy rollback" in told

    assert status(terminal, "policy", "publish", str(file))[0] == 1
    code, printed = status(terminal, "policy", "publish", str(file), "--if-changed", "--json")
    assert (code, json.loads(printed)["is_changed"]) == (0, False)
    told = terminal.refused("policy", "publish", str(DEFAULT_POLICY), "--expected", first["version"])
    assert f"The active policy is {second[1]}, not {first['version']}" in told

    back = terminal.json("policy", "rollback", "-m", "too long")
    assert (back["version"], back["active"]["origin"]) == (first["version"], "rollback")
    history = terminal.json("policy", "history")
    assert [(one["version"], one["message"]) for one in history] == [
        (first["version"], "too long"),
        (second[1], "longer"),
        (first["version"], "the first"),
    ]
    told = terminal.text("policy", "history", "--limit", "2")
    assert re.search(rf"3 +{first['version']} +\S+ \S+ UTC +now +rollback", told)
    assert terminal.text("policy", "show", second[1][8:14]) == file.read_text()
    shown = terminal.json("policy", "show", second[1])
    assert (shown["state"], shown["message"], shown["text"]) == ("retired", "longer", file.read_text())
    about = [one["action"] for one in terminal.audit() if one["action"].startswith("policy.")]
    assert sorted(about) == ["policy.publish", "policy.publish", "policy.rollback"]


def test_drafts_wait_until_they_are_activated(terminal: Terminal, file: Path) -> None:
    terminal.text("policy", "publish", str(file))
    edit(file, 300)
    draft = terminal.json("policy", "draft", str(file), "-m", "for Monday")
    assert draft["state"] == "checked"
    edit(file, 301)
    file.write_text(file.read_text().replace("plain]", "plain, later]").replace("[plain,", "[plain, later,"))
    told = terminal.text("policy", "draft", str(file))
    assert "It does not fit the fleet:" in told
    assert "there is no pool 'later'" in told
    states = {one["state"]: one["version"] for one in terminal.json("policy", "list")}
    assert set(states) == {"active", "checked", "draft"}
    assert "there is no pool 'later'" in terminal.refused("policy", "activate", states["draft"])
    told = terminal.text("policy", "activate", draft["version"])
    assert f"{draft['version']} is active, number 2" in told
    assert "retired" in terminal.text("policy", "list")


def test_what_is_wrong_is_said_with_what_to_do(terminal: Terminal, file: Path) -> None:
    assert "only one policy was ever active" in terminal.refused("policy", "rollback")
    assert "the policy cannot be read" in terminal.refused("policy", "publish", "nowhere.yaml")
    (file.parent / "two.yaml").write_text("name: two")
    told = terminal.refused("policy", "publish", str(file.parent))
    assert "exactly one YAML file; found: one.yaml, two.yaml" in told
    assert "There is no file 'nowhere.yaml'" in terminal.refused("policy", "diff", "nowhere.yaml", str(file))
    assert "at least 4 characters" in terminal.refused("policy", "show", "abc")
    assert "no line breaks" in terminal.refused("policy", "publish", str(file), "-m", "two\nlines")
    assert "No policy was ever active" in terminal.text("policy", "history")


def test_other_commands_follow_the_active_policy(terminal: Terminal, file: Path) -> None:
    file.write_text(file.read_text().replace("  auto:\n", "  fresh: {pools: [plain]}\n  auto:\n"))
    assert "fresh" in terminal.refused("keys", "create", "--tenant", "acme", "--model", "fresh")
    terminal.text("policy", "publish", str(file))
    made = terminal.json("keys", "create", "--tenant", "acme", "--model", "fresh")
    assert made["allowed_models"] == ["fresh"]
