"""Can finance steer budgets, do callers obey, and is every number right afterwards?"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.append_only import APPEND_ONLY
from gateway.cli import app as program
from gateway.db import create_engine
from gateway.settings import AuditSettings, FreshnessSettings
from tests.integration.gateway.desk import Answer, Desk
from tests.integration.gateway.rig import PATIENCE_S, bearer, eventually, running, settings_for
from tests.integration.gateway.terminal import Terminal
from tests.support.clock import MovableClock


@pytest.fixture
async def desk(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Desk]:
    clock = MovableClock()
    freshness = FreshnessSettings(poll_interval_s=0.05, auth_stale_max_s=1e9)
    audit = AuditSettings(interval_s=0.2)
    async with running(settings_for(home, urls, freshness=freshness, audit=audit), clock=clock) as gateway:
        yield Desk(gateway, clock)


async def until_chat(desk: Desk, status: int) -> Answer:
    """The answer to a chat once it has this status; news of a budget takes a moment."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (answer := await desk.chat(desk.gateway.key, max_tokens=16)).status_code != status:
        assert time.monotonic() < deadline_s, answer.text
        await asyncio.sleep(0.02)
    found: Answer = {"headers": answer.headers, "body": answer.json()}
    return found


async def test_a_budget_from_the_first_to_the_last(desk: Desk) -> None:
    made = await desk.post(
        "/budgets",
        {"name": "all", "scope": "tenant", "of": "acme", "window": "month", "limit_usd": "0.000000001"},
    )
    assert made == {
        "id": made["id"],
        "name": "all",
        "scope": "tenant",
        "of": desk.gateway.tenant_id,
        "owner": "acme",
        "tenant_id": desk.gateway.tenant_id,
        "window": "month",
        "limit_usd": "0.000000001",
        "is_hard": True,
        "alert_percents": [50, 80, 100],
        "created_at": "2026-11-20T12:00:00Z",
        "retired_at": None,
        "state": {
            "window_start": "2026-11-01T00:00:00Z",
            "window_end": "2026-12-01T00:00:00Z",
            "posted_usd": "0.000000000",
            "lent_usd": "0.000000000",
            "unattributed_usd": "0.000000000",
            "overage_usd": "0.000000000",
            "left_usd": "0.000000001",
            "used_percent": "0.0",
        },
    }
    refused = await until_chat(desk, 402)
    error = refused["body"]["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "budget_exceeded")
    assert error["resets_at"] == "2026-12-01T00:00:00Z"
    assert (
        "The budget 'all' (month, 0.000000001 USD) has at most 0.000000001 USD left for new"
        in error["message"]
    )
    assert refused["headers"]["x-should-retry"] == "false"
    changed = await desk.patch(
        "/budgets/all", {"limit_usd": "0.00001", "is_hard": False, "name": "everything"}
    )
    assert (changed["limit_usd"], changed["is_hard"], changed["id"]) == ("0.000010000", False, made["id"])
    await until_chat(desk, 200)
    spool = desk.gateway.services.spool
    await eventually(lambda: not spool.open_count and not spool.unshipped_count)
    shown = await desk.get("/budgets/everything")
    posted = shown["state"]["posted_usd"]
    assert shown["windows"] == [
        {
            "window_start": "2026-11-01T00:00:00Z",
            "window_end": "2026-12-01T00:00:00Z",
            "limit_usd": "0.000010000",
            "posted_usd": posted,
            "overage_usd": "0.000000000",
        }
    ]
    reached = int(posted.replace(".", "")) * 100 // 10_000
    assert [alert["percent"] for alert in shown["alerts"]] == [at for at in (50, 80, 100) if at <= reached]
    assert shown["alerts"]
    assert shown["alerts"][0]["posted_usd"] == posted
    assert re.fullmatch(r"\d+\.\d", shown["state"]["used_percent"])
    retired = await desk.post("/budgets/everything/retire")
    assert retired["retired_at"] == "2026-11-20T12:00:00Z"
    assert await desk.post(f"/budgets/{made['id']}/retire") == retired
    status, _, said = await desk.refused("PATCH", "/budgets/everything", {"limit_usd": "1"})
    assert (status, "is retired and cannot be changed" in said) == (409, True)
    assert (await desk.get("/budgets"))["data"] == []
    assert [one["id"] for one in (await desk.get("/budgets", with_retired=True))["data"]] == [made["id"]]
    await _every_number_is_right(desk)


async def _every_number_is_right(desk: Desk) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while (await desk.get("/audit/invariants"))["whole"] is None:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)
    found = await desk.get("/audit/invariants")
    assert found["whole"]["since"] is None
    assert found["recent"]["since"] is not None
    for run in found.values():
        assert [one for one in run["invariants"] if one["breaches"]] == []
        assert {one["id"]: one["looked_at"] for one in run["invariants"]}["I-2"] == len(APPEND_ONLY)
    page = (await desk.gateway.client.get("/metrics", headers=desk.gateway.admin)).text
    assert re.search(r"^tollgate_budget_refusals_total [1-9]", page, re.MULTILINE)
    assert re.search(r"^tollgate_budget_alerts_total [1-9]", page, re.MULTILINE)
    assert re.search(r"^tollgate_audit_breaches 0.0$", page, re.MULTILINE)


async def test_owners_are_found_by_what_people_call_them(desk: Desk) -> None:
    key = await desk.post("/keys", {"tenant": "acme", "project": "search", "name": "ci"})
    acme = desk.gateway.tenant_id
    wanted: list[tuple[Answer, str, str, str | None]] = [
        ({"scope": "tenant", "of": acme}, acme, "acme", acme),
        ({"scope": "project", "of": "search", "tenant": "acme"}, key["project_id"], "acme/search", acme),
        ({"scope": "project", "of": key["project_id"]}, key["project_id"], "acme/search", acme),
        ({"scope": "key", "of": key["id"]}, key["id"], "acme/search/ci", acme),
        ({"scope": "tag", "of": "team=search=1"}, "team=search=1", "team=search=1", None),
        ({"scope": "tag", "of": "team=x", "tenant": "acme"}, "team=x", "acme: team=x", acme),
    ]
    for number, (body, scope_id, owner, tenant_id) in enumerate(wanted):
        desk.clock.move(1)
        new = {"name": f"budget {number}", "window": "total", "limit_usd": "5", "is_hard": False, **body}
        made = await desk.post("/budgets", new)
        assert (made["of"], made["owner"], made["tenant_id"]) == (scope_id, owner, tenant_id)
        assert (made["state"]["window_start"], made["state"]["window_end"]) == (None, None)
    listed = await desk.get("/budgets", scope="project", owner="search", tenant="acme")
    assert [one["name"] for one in listed["data"]] == ["budget 1", "budget 2"]
    assert len((await desk.get("/budgets", scope="tag"))["data"]) == 2
    first = await desk.get("/budgets", limit=4)
    rest = await desk.get("/budgets", limit=4, cursor=first["next_cursor"])
    assert [one["name"] for one in first["data"] + rest["data"]] == [f"budget {n}" for n in range(6)]
    finance = await desk.post("/admin-keys", {"name": "finance", "role": "finance"})
    operator = await desk.post("/admin-keys", {"name": "ops", "role": "operator"})
    for each in (finance, operator):
        await desk.until_admin(each["key"], 200)
    change = {"json": {"alert_percents": [90]}}
    answer = await desk.ask("PATCH", "/budgets/budget 0", headers=bearer(finance["key"]), **change)
    assert (answer.status_code, answer.json()["alert_percents"]) == (200, [90])
    denied = await desk.ask("PATCH", "/budgets/budget 0", headers=bearer(operator["key"]), **change)
    assert denied.status_code == 403
    assert (await desk.ask("GET", "/budgets/budget 0", headers=bearer(operator["key"]))).status_code == 200


async def test_mistakes_about_budgets_are_explained(desk: Desk) -> None:
    await desk.post("/tenants", {"name": "umbrella"})
    await desk.post("/tenants/umbrella/retire")
    right = {"name": "b", "scope": "tenant", "of": "acme", "window": "day", "limit_usd": "1"}
    cases: list[tuple[Answer, int, str | None, str]] = [
        ({"of": "acmee"}, 404, None, "No tenant 'acmee'. Did you mean 'acme'?"),
        ({"of": "umbrella"}, 409, None, "is retired: nothing new can be made for it."),
        ({"scope": "project", "of": "defalt", "tenant": "acme"}, 404, None, "Did you mean 'default'?"),
        ({"scope": "project", "of": "default"}, 404, None, "its name needs `tenant` beside it"),
        ({"scope": "key", "of": "nothing"}, 404, None, "`tollgate keys list` shows the public ids."),
        ({"scope": "key", "of": "x", "tenant": "acme"}, 400, "tenant", "A key needs no `tenant`"),
        ({"scope": "tag", "of": "team"}, 400, "of", "A tag is written name=value"),
        ({"scope": "team"}, 400, "scope", "'tenant', 'project', 'key' or 'tag'"),
        ({"window": "year"}, 400, "window", "'day', 'week', 'month' or 'total'"),
        ({"limit_usd": 1.5}, 400, "limit_usd", "valid string"),
        ({"limit_usd": "0.0000000001"}, 400, "limit_usd", "finer than 0.000000001 USD"),
        ({"limit_usd": "-1"}, 400, "limit_usd", "a finite amount of 0 or more"),
        ({"limit_usd": "9000000001"}, 400, "limit_usd", "the largest amount kept"),
        ({"limit_usd": "much"}, 400, "limit_usd", "is not a decimal amount"),
        ({"alert_percents": [0]}, 400, "alert_percents", "each at 1 to 1000 percent"),
        ({"name": "bud_1"}, 400, "name", "does not look like an id"),
    ]
    for wrong, status, param, said in cases:
        found = await desk.refused("POST", "/budgets", {**right, **wrong})
        assert found[:2] == (status, param), (wrong, found)
        assert said in found[2], (wrong, found)
    await desk.post("/budgets", right)
    assert (await desk.refused("POST", "/budgets", right))[0] == 409
    status, _, said = await desk.refused("GET", "/budgets/a")
    assert (status, said) == (404, "No budget 'a'; `tollgate budgets list` shows the known ones.")
    assert (await desk.refused("GET", "/budgets?owner=acme"))[:2] == (400, "scope")


# ---------------------------------------------------------------------------------------- command line
def test_budgets_and_the_audit_at_a_terminal(home: Path) -> None:
    terminal = Terminal(home)
    create = ("budgets", "create")
    month = ("--window", "month", "--limit", "100")
    said = terminal.text(*create, "search-monthly", "--tenant", "acme", *month)
    assert said == "Budget search-monthly is made: 100.00 USD (month, hard) of tenant acme.\n"
    of_project = ("--project", "default", "--tenant", "acme")
    made = terminal.json(*create, "soft", *of_project, *month, "--soft", "--alert", "75")
    assert (made["is_hard"], made["alert_percents"], made["owner"]) == (False, [75], "acme/default")
    terminal.text(*create, "team", "--tag", "team=search", "--window", "total", "--limit", "0")
    table = terminal.text("budgets", "list")
    assert re.search(
        r"search-monthly +tenant acme +month +100\.00 +0\.00 +0\.00 +100\.00 +0\.0 % +hard", table
    )
    assert [one["name"] for one in terminal.json("budgets", "list", *of_project)] == ["soft"]
    shown = terminal.text("budgets", "show", "search-monthly")
    assert "░" * 50 in shown
    assert re.search(r"50 % +not reached", shown)
    changed = terminal.text("budgets", "update", "soft", "--limit", "0.25", "--hard")
    assert changed == "Budget soft is changed: 0.25 USD (month, hard) of project acme/default.\n"
    assert "is retired" in terminal.text("budgets", "retire", "team")
    assert "Say whose spending it counts" in terminal.refused(*create, "x", *month)
    assert "--key ID" in terminal.refused(*create, "x", "--key", "k", "--tenant", "acme", *month)
    assert "`--limit`" in terminal.refused(
        *create, "x", "--tenant", "acme", "--window", "day", "--limit", "x"
    )
    right = terminal.text("audit")
    assert "✓ I-1 " in re.sub(" +", " ", right)
    assert "Every number is right." in right
    assert terminal.json("audit", "--since", "2026-11-01")["breaches"] == 0
    assert terminal.json("audit", "log", "--action", "budget")[0]["action"] == "budget.retire"
    assert "Write the options after" in terminal.refused("audit", "--json", "log")
    asyncio.run(_break(terminal.environment["TOLLGATE_DATABASE_URL"]))
    for arguments, told in (
        (["audit"], "I-1 is broken, for example:"),
        (["audit", "--json"], '"breaches": 1'),
    ):
        outcome = terminal.runner.invoke(program, arguments, env=terminal.environment)
        assert outcome.exit_code == 1
        assert "jtx_odd" in outcome.stdout
        assert told in outcome.stdout


async def _break(url: str) -> None:
    engine = create_engine(url)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO journal_transactions (id, kind, at_ms, attempts, note)"
                " VALUES ('jtx_odd', 'usage', 1, 0, 'nothing')"
            )
        )
    await engine.dispose()
