"""Do the commands about tenants, keys and administrators do what they say, and say what they did?"""

import re
from pathlib import Path

import pytest

from gateway.cli import app as program
from tests.integration.gateway.terminal import Terminal

# What the commands do on PostgreSQL is tried with the audit; this is about what they say.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


@pytest.fixture
def terminal(home: Path) -> Terminal:
    return Terminal(home)


def test_tenants_and_projects_for_people(terminal: Terminal) -> None:
    assert re.fullmatch(r"Tenant new \(ten_[0-9a-f]{32}\)\n", terminal.text("tenants", "create", "new"))
    changed = terminal.text("tenants", "update", "new", "--external-allowed", "--name", "newer")
    assert re.search(r"is internal only +no *\n", changed)
    assert re.search(r"name +newer *\n", terminal.text("tenants", "show", "newer"))
    assert re.search(
        r"retired at +\d{4}-\d\d-\d\d \d\d:\d\d UTC", terminal.text("tenants", "retire", "newer")
    )
    assert re.search(r"newer +ten_\w+ +0 +0 +no +yes +\d{4}", terminal.text("tenants", "list"))
    assert terminal.text("projects", "create", "[b]odd", "--tenant", "acme").startswith(
        "Project [b]odd (prj_"
    )
    listed = terminal.text("projects", "list", "--tenant", "acme")
    assert re.search(r"\[b\]odd +prj_\w+ +acme ", listed)
    named = terminal.json("projects", "update", "[b]odd", "--tenant", "acme", "--name", "even")
    assert terminal.json("projects", "show", named["id"]) == named
    assert re.search(r"name +even *\n", terminal.text("projects", "show", "even", "--tenant", "acme"))
    assert "UTC" in terminal.text("projects", "retire", named["id"])
    assert "is retired: nothing new" in terminal.refused("keys", "create", "--tenant", "newer")


def test_keys_for_people(terminal: Terminal) -> None:
    limits = ("--model", "auto", "--class", "flex", "--class", "default", "--expires", "2999-01-01")
    said, secret = terminal.text("keys", "create", "--tenant", "acme", *limits).splitlines()
    key_id = secret.split("-")[1]
    assert said == f"Key {key_id}. Copy it now, it is not shown again:"
    shown = terminal.text("keys", "show", secret)
    assert re.search(r"allowed classes +flex, default *\n", shown)
    assert re.search(r"expires at +2999-01-01 00:00 UTC *\n", shown)
    assert secret.split("-")[2] not in shown
    lifted = terminal.json("keys", "update", key_id, "--all-models", "--all-classes", "--name", "bot")
    assert (lifted["allowed_models"], lifted["allowed_classes"], lifted["name"]) == (None, None, "bot")
    said, new = terminal.text("keys", "rotate", key_id, "--overlap", "0").splitlines()
    assert said.startswith(f"Key {new.split('-')[1]} replaces {key_id}, which works until 20")
    assert [one["id"] for one in terminal.json("keys", "list", "--state", "expired")] == [key_id]
    of_default = terminal.json(
        "keys", "list", "--tenant", "acme", "--project", "default", "--state", "active"
    )
    assert [one["id"] for one in of_default] == [new.split("-")[1]]
    assert re.search(rf"{key_id} +bot +acme +default +expired ", terminal.text("keys", "list"))
    assert terminal.text("keys", "revoke", new) == f"Key {new.split('-')[1]} is revoked.\n"


def test_administrators_and_the_audit_for_people(terminal: Terminal) -> None:
    said, secret = terminal.text("admins", "create", "ada", "--role", "finance").splitlines()
    key_id = secret.split("-")[1]
    assert said == f"Administrator key {key_id}, role finance. Copy it now, it is not shown again:"
    said, new = terminal.text("admins", "rotate", key_id, "--overlap", "90m").splitlines()
    assert said.startswith(f"Administrator key {new.split('-')[1]} replaces {key_id}.")
    assert terminal.text("admins", "revoke", key_id) == f"Administrator key {key_id} is revoked.\n"
    listed = terminal.text("admins", "list")
    assert re.search(rf"{key_id} +ada +finance +revoked ", listed)
    assert [one["state"] for one in terminal.json("admins", "list")] == ["revoked", "active"]
    audit = terminal.text("audit", "log", "--object", key_id)
    for action in ("admin_key.create", "admin_key.rotate", "admin_key.revoke"):
        assert action in audit
    assert new.split("-")[2] not in audit
    assert "  by root (cli:root), admin, cli\n" in audit
    assert re.search(r"\n  role +\"finance\"\n", audit)
    assert re.search(r"\n  revoked_at +null → \"20", audit)
    assert "Nothing was changed" in terminal.text("audit", "log", "--action", "key")
    terminal.text("admins", "create", "on:key:call [b]", "--role", "viewer")
    assert "admin_key.create  on:key:call [b] (" in terminal.text("audit", "log", "--limit", "1")
    newest = terminal.json("audit", "log", "--object", key_id, "--limit", "2")
    assert [one["action"] for one in newest] == ["admin_key.revoke", "admin_key.rotate"]
    assert terminal.json("audit", "log", "--action", "key") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("keys create --tenant acme --model autoo", "there is no 'autoo'. Did you mean 'auto'?"),
        ("keys create --tenant acme --class slow", "there is no 'slow'. "),
        ("keys create --tenant acme --expires 2001-01-01", "`expires_at` must be in the future."),
        ("keys create --tenant acme --expires soon", "`--expires` must be a date or an instant such as"),
        ("keys rotate nothing", "No key 'nothing'; `tollgate keys list` shows the public ids."),
        ("keys rotate nothing --overlap tomorrow", "--overlap must be a span such as 0, 90m, 24h or 7d"),
        ("keys rotate nothing --overlap 31d", "`overlap_s` must be 0"),
        ("keys list --project default", "No project 'default'; `tollgate projects list`"),
        ("projects show nothing --tenant acme", "No project 'nothing' in tenant 'acme';"),
        ("tenants show nobody", "No tenant 'nobody'; `tollgate tenants list`"),
        ("tenants update nobody --name x", "No tenant 'nobody'"),
        ("admins revoke nothing", "No administrator key 'nothing'; `tollgate admins list`"),
        ("audit log --from yesterday", "`from` must be a date or an instant such as"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_would_be_right(
    terminal: Terminal, arguments: str, said: str
) -> None:
    assert said in terminal.refused(*arguments.split())


def test_a_role_that_there_is_not_is_a_wrong_call(terminal: Terminal) -> None:
    outcome = terminal.runner.invoke(program, ["admins", "create", "x", "--role", "boss"])
    assert outcome.exit_code == 2
    assert "viewer" in outcome.output


def test_lists_are_read_to_their_end(terminal: Terminal) -> None:
    for number in range(3):
        terminal.json("keys", "create", "--tenant", "acme", "--name", f"key {number}")
    assert {one["name"] for one in terminal.json("keys", "list")} == {"key 0", "key 1", "key 2"}
    assert len(terminal.json("audit", "log", "--limit", "3")) == 3
    assert len(terminal.json("audit", "log")) == 5
