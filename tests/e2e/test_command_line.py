"""Does the `tollgate` program tell the truth, and say what is wrong when something is?"""

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest
import typer
from typer.testing import CliRunner

from gateway.cli import app
from gateway.migrate import upgrade
from tests.e2e.site import attempts, eventually
from tests.support.gateway_process import GatewayProcess, environment, json_of
from tests.support.mock_process import MockVllm
from tests.support.own_process import run_here
from tests.support.pool_files import DEFAULT_POLICY, write_pools

Outcome = tuple[int, str, str]


class Home:
    """An installation without a running gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        nowhere = ["http://127.0.0.1:9"]
        self.pools = write_pools(folder / "pools", {"speculative": nowhere, "plain": nowhere})
        (folder / "state").mkdir()
        upgrade(f"sqlite+aiosqlite:///{folder / 'state' / 'tollgate.db'}")

    def run(self, *arguments: str, **settings: str) -> Outcome:
        outcome = run_here(environment(self.folder, settings), self.folder, *arguments)
        return outcome.returncode, outcome.stdout, outcome.stderr

    def json(self, *arguments: str) -> Any:
        return json_of(run_here(environment(self.folder), self.folder, *arguments, "--json"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_tenants_and_keys_from_the_first_to_the_last(home: Home) -> None:
    made = home.json("tenants", "create", "acme")
    assert re.fullmatch(r"ten_[0-9a-f]{32}", made["id"])
    again = home.run("tenants", "create", "acme")
    assert again[0] == 2
    assert again[2] == (
        "tollgate: There is a tenant called 'acme' already; `tollgate tenants list` shows it.\n"
    )
    issued = home.json("keys", "create", "--tenant", "acme", "--project", "search", "--name", "ci")
    assert re.fullmatch(r"tg-[a-z0-9]{10}-[a-z0-9]{32}", issued["key"])
    assert issued["key"].split("-")[1] == issued["id"]
    status, shown, _ = home.run("keys", "create", "--tenant", made["id"])
    assert status == 0
    assert "Copy it now, it is not shown again" in shown
    by_hand = shown.splitlines()[-1]

    listed = home.json("keys", "list")
    assert [(key["name"], key["tenant"], key["project"], key["revoked_at"]) for key in listed] == [
        ("ci", "acme", "search", None),
        ("default", "acme", "default", None),
    ]
    for secret in (issued["key"], by_hand):
        assert secret.split("-")[2] not in json.dumps(listed)
        database = (home.folder / "state" / "tollgate.db").read_bytes()
        assert secret.split("-")[2].encode() not in database, "the secret is kept"
    (tenant,) = home.json("tenants", "list")
    assert tenant == home.json("tenants", "show", "acme") == {**made, "projects": 2, "valid_keys": 2}
    assert (made["is_internal_only"], made["caches_answers"], made["retired_at"]) == (True, True, None)

    assert home.run("keys", "revoke", issued["id"])[0] == 0
    whole_key = home.run("keys", "revoke", by_hand)
    assert whole_key[1] == f"Key {by_hand.split('-')[1]} is revoked.\n"
    first = {key["id"]: key["revoked_at"] for key in home.json("keys", "list")}
    assert all(first.values())
    assert home.run("keys", "revoke", issued["id"])[0] == 0
    assert {key["id"]: key["revoked_at"] for key in home.json("keys", "list")} == first
    assert home.json("tenants", "list")[0]["valid_keys"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "create", "--tenant", "nobody"], "No tenant 'nobody'; `tollgate tenants list`"),
        (["keys", "revoke", "nothing"], "No key 'nothing'; `tollgate keys list`"),
        (["tenants", "create", " "], "A name has 1 to 128 characters."),
        (["report", "--by", "colour"], "Cannot group by 'colour'. Known: tenant, project"),
        (["report", "--from", "yesterday"], "must be a date or an instant such as 2026-11-01"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_would_be_right(
    home: Home, arguments: list[str], said: str
) -> None:
    status, _, errors = home.run(*arguments)
    assert status == 2
    assert errors.startswith("tollgate: ")
    assert said in errors
    assert "Traceback" not in errors


def _commands(command: Any, *path: str) -> Iterator[list[str]]:
    """The words of every command that does something."""
    if not hasattr(command, "commands"):
        yield list(path)
        return
    for name, inner in command.commands.items():
        yield from _commands(inner, *path, name)


def test_every_command_has_help_with_an_example() -> None:
    commands = list(_commands(typer.main.get_command(app)))
    assert ["keys", "revoke"] in commands
    for command in commands:
        outcome = CliRunner().invoke(app, [*command, "--help"])
        assert outcome.exit_code == 0
        assert "Example: " in outcome.stdout, command
        assert f"tollgate {' '.join(command)}" in outcome.stdout, command


def test_a_group_lists_its_commands_as_they_describe_themselves() -> None:
    group: Any = typer.main.get_command(app)
    for name in group.list_commands(None):
        listed, loaded = group.get_command(None, name), group.commands[name]
        assert (listed.name, listed.get_short_help_str(200)) == (loaded.name, loaded.get_short_help_str(200))


@pytest.mark.parametrize(
    ("arguments", "unloaded"),
    [
        (["--help"], {"sqlalchemy", "pydantic", "fastapi"}),
        (["keys", "list"], {"fastapi", "uvicorn", "jinja2", "alembic", "redis", "gateway.pipeline"}),
        (["pools", "up", "--help"], {"fastapi", "uvicorn", "alembic"}),
    ],
)
def test_a_command_loads_only_what_it_needs(home: Home, arguments: list[str], unloaded: set[str]) -> None:
    program = "import sys; from gateway.cli import main\ntry: main()\nfinally: print(*sys.modules, sep='\\n')"
    outcome = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=home.folder,
        env=environment(home.folder),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "gateway.commands.lazy" in outcome.stdout.splitlines()
    assert unloaded.isdisjoint(outcome.stdout.splitlines())


def test_the_settings_are_shown_without_their_secrets(home: Home) -> None:
    secrets = {
        "TOLLGATE_ADMIN_KEY": "tga-" + "q" * 40,
        "TOLLGATE_SECRET_KEY": "z" * 40,
        "TOLLGATE_DATABASE_URL": "postgresql+asyncpg://owner:hunter2@db.example:5432/tollgate",
        "TOLLGATE_MIGRATION_DATABASE_URL": "postgresql+asyncpg://root:hunter3@db.example/tollgate",
    }
    for arguments in (["config"], ["config", "--json"]):
        status, shown, _ = home.run(*arguments, **secrets)
        assert status == 0
        for secret in ("q" * 8, "z" * 8, "hunter2", "hunter3"):
            assert secret not in shown
        assert "postgresql+asyncpg://owner:**********@db.example:5432/tollgate" in shown
    values = json.loads(home.run("config", "--json", TOLLGATE_TIMEOUTS__CONNECT_S="1.5")[1])
    assert values["timeouts"]["connect_s"] == 1.5
    assert values["limits"]["body_bytes_max"] == 20_000_000


def test_the_settings_file_counts_and_the_environment_beats_it(home: Home) -> None:
    (home.folder / "tollgate.toml").write_text("[limits]\nattempts_max = 2\nmessages_max = 9\n")
    shown = home.run("config", "--json", TOLLGATE_LIMITS__ATTEMPTS_MAX="5")[1]
    limits = json.loads(shown)["limits"]
    assert (limits["attempts_max"], limits["messages_max"]) == (5, 9)


POLICY: Final = DEFAULT_POLICY.read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_tokens_default:", "max_token_default:", r":\d+: max_token_default: .*max_tokens_default"),
        ("  default: chat", "  defaut: chat", r":\d+: tasks\.defaut: .*default"),
        ("  default: chat", "  default: poetry", r":\d+: tasks\.default: .*extraction"),
        ("creative: [plain, speculative]", "creative: [plane, speculative]", r"(plane|creative)"),
        (
            "routes:",
            "routes:\n  predictable: [plain]",
            r":\d+: duplicate key 'routes.predictable'",
        ),
        ("name: default", "name: [", r":\d+: "),
    ],
)
def test_a_policy_with_a_mistake_is_refused_with_file_line_and_key(
    home: Home, old: str, new: str, said: str
) -> None:
    file = home.folder / "policy.yaml"
    assert old in POLICY
    file.write_text(POLICY.replace(old, new))
    status, told, errors = home.run("policy", "check", str(file))
    assert (status, errors) == (1, "")
    assert told.startswith(f"{file}:")
    assert re.search(said, told), told
    # The gateway does not start with it either, and says the same.
    stopped, _, refusal = home.run("serve", TOLLGATE_POLICY=str(file))
    assert (stopped, refusal.startswith(f"tollgate: {file}:")) == (2, True)
    assert re.search(said, refusal), refusal
    assert "Traceback" not in told + refusal


def test_the_line_of_a_mistake_is_the_line_of_the_key(home: Home) -> None:
    file = home.folder / "policy.yaml"
    file.write_text(POLICY.replace("max_tokens_default:", "max_token_default:"))
    line = 1 + file.read_text().splitlines().index("max_token_default: 256")
    assert f"{file}:{line}: max_token_default: unknown key" in home.run("policy", "check", str(file))[1]


def test_a_policy_that_is_right(home: Home) -> None:
    status, shown, _ = home.run("policy", "check", str(DEFAULT_POLICY))
    assert status == 0
    assert re.fullmatch(r"\S+: valid, version default@[0-9a-f]{12}\n", shown)
    missing = home.run("policy", "check", "nowhere.yaml")
    assert (missing[0], "the policy cannot be read" in missing[2]) == (2, True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_num_seqs: 32", "max_num_seq: 32", r":\d+: batching\.max_num_seq: .*max_num_seqs"),
        ("output: 0.60", "output: -1", r":\d+: rates\.output: "),
        ("output: 0.60", "output: 0.0000000001", r"finer than 0\.000000001 USD"),
        ("driver: external", "driver: cloud", r":\d+: driver: .*external"),
        ("urls:", "url:", r":\d+: url: .*urls"),
    ],
)
def test_a_pool_with_a_mistake_is_refused_with_file_line_and_key(
    home: Home, old: str, new: str, said: str
) -> None:
    file = home.pools / "plain.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    status, shown, errors = home.run("pools", "check")
    assert status == 1
    assert "plain: invalid\n" in shown
    assert re.search(said, shown), shown
    assert errors == ""


def test_pools_that_are_right(home: Home) -> None:
    status, shown, _ = home.run("pools", "check")
    assert status == 0
    for name in ("plain", "speculative"):
        assert f"{name}: unchecked (someone else runs it: the file is right" in shown


# --------------------------------------------------------------------------------- with a running gateway
@pytest.fixture
def gateway(tmp_path: Path, mocks: dict[str, MockVllm]) -> Iterator[GatewayProcess]:
    urls = {name: [mock.url] for name, mock in mocks.items()}
    with GatewayProcess(tmp_path, urls, is_measured=True) as started:
        yield started


def _nanos(amount: str) -> int:
    assert re.fullmatch(r"\d+\.\d{9}", amount)
    return int(amount.replace(".", ""))


def test_the_report_is_what_the_clients_were_told_and_what_the_rows_say(gateway: GatewayProcess) -> None:
    assert gateway.cli("tenants", "create", "acme").returncode == 0
    keys = {
        "demo": gateway.key,
        "acme": json_of(gateway.cli("keys", "create", "--tenant", "acme", "--json"))["key"],
    }
    told = dict.fromkeys(keys, 0)
    for tenant, key in keys.items():
        eventually(lambda: _is_known(gateway, key))  # noqa: B023 - called at once
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, timeout=30) as client:
            for number in range(3):
                told[tenant] += _told_plain(client, number)
                told[tenant] += _told_by_a_stream(client, number)
    eventually(lambda: len(attempts(gateway)) >= 12)
    rows = attempts(gateway)
    assert len(rows) == 12

    report = json_of(gateway.cli("report", "--by", "tenant,pool,task", "--json"))
    by_tenant = dict.fromkeys(keys, 0)
    for row in report["rows"]:
        if row["tenant"] == "platform":  # a token of each engine, to see that it serves
            assert (row["requests"], row["task"], row["charge_usd"]) == (0, "heartbeat", "0.000000000")
            continue
        by_tenant[row["tenant"]] += _nanos(row["charge_usd"])
        assert (row["pool"], row["task"]) in {("speculative", "extraction"), ("plain", "creative")}
    assert by_tenant == told
    assert _nanos(report["total"]["charge_usd"]) == sum(told.values())
    assert sum(row["charge_usd_nanos"] for row in rows) == sum(told.values())
    assert report["total"]["requests"] == 12
    assert report["total"]["output_tokens"] == sum(row["output_tokens"] for row in rows)
    over_http = httpx.get(
        f"{gateway.url}/admin/v1/reports/spend",
        params={"group_by": "tenant,pool,task"},
        headers={"authorization": f"Bearer {gateway.admin_key}"},
        trust_env=False,
    ).json()
    assert over_http.pop("generated_at") >= report.pop("generated_at")
    assert over_http == report
    for_people = gateway.cli("report", "--by", "tenant,pool,task").stdout
    for row in report["rows"]:
        assert row["charge_usd"] in for_people
    assert report["total"]["charge_usd"] in for_people


def _is_known(gateway: GatewayProcess, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{gateway.url}/v1/models", headers=headers, trust_env=False).status_code == 200


def _told_plain(client: openai.OpenAI, number: int) -> int:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": f"Extract all names: {number}"}]
    )
    return _nanos(raw.headers["x-tollgate-cost-usd"])


def _told_by_a_stream(client: openai.OpenAI, number: int) -> int:
    *_, last = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": f"Tell me a story {number}"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert last.usage is not None
    assert last.usage.model_extra is not None
    return _nanos(last.usage.model_extra["cost_usd"])


def test_secrets_in_the_state_folder_are_its_owners_alone(gateway: GatewayProcess) -> None:
    for name in ("admin-key", "secret-key", "demo-key"):
        assert (gateway.state_dir / name).stat().st_mode & 0o777 == 0o600
    secret = gateway.key.split("-")[2]
    with sqlite3.connect(gateway.state_dir / "tollgate.db") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    assert secret not in dump
    assert secret not in gateway.said()
    assert gateway.admin_key not in gateway.said()
