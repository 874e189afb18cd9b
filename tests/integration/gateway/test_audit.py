"""Does every change leave one entry, does nothing change without, and are no secrets kept?"""

import json
import logging
import os
import pwd
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from sqlalchemy import delete, select, update
from sqlmodel import col

from gateway import audit
from gateway.audit import Act, Actor, ActorKind, AuditEntry
from gateway.cli import app as program
from gateway.db import metadata
from gateway.errors import AuthenticationFailed, Conflict
from gateway.identity import admin_store, key_store, store
from gateway.identity.roles import RULES, Role
from gateway.identity.tables import AdminKey, ApiKey, Tenant
from gateway.policy_life import read_policy
from gateway.settings import FreshnessSettings
from tests.integration.gateway.desk import Answer, Desk
from tests.integration.gateway.rig import bearer, running, settings_for
from tests.integration.gateway.terminal import Terminal
from tests.support.clock import MovableClock
from tests.support.factories import make_act
from tests.support.pool_files import DEFAULT_POLICY


@pytest.fixture
async def desk(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Desk]:
    clock = MovableClock()
    freshness = FreshnessSettings(poll_interval_s=0.05, auth_stale_max_s=1e9)
    settings = settings_for(home, urls, freshness=freshness)
    async with running(settings, clock=clock, is_up=False) as gateway:
        yield Desk(gateway, clock)


async def entries(desk: Desk, **wanted: Any) -> list[Answer]:
    found: list[Answer] = []
    answer: Answer = {"next_cursor": None}
    while not found or answer["next_cursor"] is not None:
        following = {} if answer["next_cursor"] is None else {"cursor": answer["next_cursor"]}
        answer = await desk.get("/audit", limit=200, **following, **wanted)
        found += answer["data"]
        if not answer["data"]:
            break
    return found


# ------------------------------------------------------------------------------------ one entry per change
Change = tuple[str, str, Answer]
"""To which object of a tenant of its own, the action, and the body."""

_DEFAULT = DEFAULT_POLICY.read_text()
POLICY = re.sub(r"max_tokens_default: \d+", "max_tokens_default: %d", _DEFAULT.replace("%", "%%"))
SEEDED = read_policy(_DEFAULT, source="default").version
CHANGES: dict[tuple[str, str], Change] = {
    ("POST", "/tenants"): ("", "tenant.create", {"name": "new"}),
    ("PATCH", "/tenants/{tenant}"): ("tenant", "tenant.update", {"caches_answers": False}),
    ("POST", "/tenants/{tenant}/retire"): ("tenant", "tenant.retire", {}),
    ("POST", "/projects"): ("", "project.create", {"tenant": "acme", "name": "new"}),
    ("PATCH", "/projects/{project}"): ("project", "project.update", {"name": "other"}),
    ("POST", "/projects/{project}/retire"): ("project", "project.retire", {}),
    ("POST", "/keys"): ("", "key.create", {"tenant": "acme"}),
    ("PATCH", "/keys/{key}"): ("key", "key.update", {"allowed_models": ["auto"]}),
    ("POST", "/keys/{key}/rotate"): ("key", "key.rotate", {}),
    ("POST", "/keys/{key}/revoke"): ("key", "key.revoke", {}),
    ("PUT", "/limits/{scope}/{owner}"): ("project", "limit.create", {"requests_per_minute": 5}),
    ("DELETE", "/limits/{scope}/{owner}"): ("tenant", "limit.end", {}),
    ("POST", "/budgets"): (
        "",
        "budget.create",
        {"name": "new", "scope": "tenant", "of": "acme", "window": "day", "limit_usd": "1"},
    ),
    ("PATCH", "/budgets/{budget}"): ("budget", "budget.update", {"limit_usd": "2"}),
    ("POST", "/budgets/{budget}/retire"): ("budget", "budget.retire", {}),
    ("POST", "/admin-keys"): ("", "admin_key.create", {"name": "new", "role": "finance"}),
    ("POST", "/admin-keys/{key}/rotate"): ("admin_key", "admin_key.rotate", {}),
    ("POST", "/admin-keys/{key}/revoke"): ("admin_key", "admin_key.revoke", {}),
    ("POST", "/people"): (
        "",
        "person.create",
        {"name": "new person", "role": "finance", "password": "four words in a row"},
    ),
    ("PATCH", "/people/{person}"): ("person", "person.change_role", {"role": "operator"}),
    ("POST", "/people/{person}/password"): (
        "person",
        "person.set_password",
        {"password": "other words in a row"},
    ),
    ("POST", "/people/{person}/retire"): ("person", "person.retire", {}),
    ("POST", "/prices/{target}"): ("price", "price.set", {"input": "1", "output": "2"}),
    ("POST", "/prices/{target}/reset"): ("price", "price.reset", {}),
    ("POST", "/policies"): ("", "policy.draft", {"text": POLICY % 101}),
    ("POST", "/policies/publish"): ("", "policy.publish", {"text": POLICY % 102}),
    ("POST", "/policies/{version}/activate"): ("policy", "policy.publish", {"message": "agreed"}),
    ("POST", "/policies/rollback"): ("", "policy.rollback", {"version": SEEDED}),
}
AT_FIRST = ("policy.seed", "tenant.create", "project.create", "key.create")
"""What a gateway of the rig and its key leave in the audit."""
NOT_BY_ITSELF = {
    ("POST", "/policies/{version}/check"),  # only where it finds something else: see test_policy_life.py
    # They change nothing: questions with a body, and jobs that only read.
    ("POST", "/policies/explain"),
    ("POST", "/policies/check"),
    ("POST", "/policies/diff"),
    ("POST", "/policies/backtest"),
    ("POST", "/policies/backtest/{backtest}/cancel"),
    # One stands beside the active policy at a time, and only one that does can end: see test_canary.py.
    ("POST", "/policies/canary"),
    ("POST", "/policies/canary/promote"),
    ("POST", "/policies/canary/stop"),
    # The same for shadows: see test_shadow.py.
    ("POST", "/policies/shadow"),
    ("POST", "/policies/shadow/stop"),
    # By a person's login alone: see test_people.py of the console.
    ("POST", "/me/password"),
}


ELSEWHERE = ("/admin/v1/periods", "/admin/v1/adjustments", "/admin/v1/reconciliations")
"""Their entries are looked at in `test_periods`: a month is closed once, and an approval takes two people."""


def test_every_route_that_changes_something_is_tried() -> None:
    changing = {
        (method, path)
        for method, path in RULES
        if path.startswith("/admin/") and method != "GET" and not path.startswith(ELSEWHERE)
    }
    assert changing == {(method, f"/admin/v1{path}") for method, path in CHANGES.keys() | NOT_BY_ITSELF}


async def _objects(desk: Desk, name: str, *, with_person: bool = False) -> dict[str, str]:
    """A tenant with all that belongs to one, and an administrator's key; their ids."""
    key = await desk.post("/keys", {"tenant": (await desk.post("/tenants", {"name": name}))["id"]})
    admin_key = await desk.post("/admin-keys", {"name": name, "role": "viewer"})
    person = {"id": ""}
    if with_person:  # argon2id is meant to take its time
        person = await desk.post(
            "/people", {"name": f"person {name}", "role": "viewer", "password": "a few words in a row"}
        )
    set_ = await desk.ask("PUT", f"/limits/tenant/{key['tenant_id']}", json={"concurrent_requests": 9})
    assert set_.status_code == 200, set_.text
    about = {"scope": "key", "of": key["id"], "window": "day", "limit_usd": "1"}
    budget = await desk.post("/budgets", {"name": f"budget of {name}", **about})
    policy = await desk.post("/policies", {"text": POLICY % (1000 + int(name.split()[1]))})
    return {
        "tenant": key["tenant_id"],
        "project": key["project_id"],
        "key": key["id"],
        "admin_key": admin_key["id"],
        "person": person["id"],
        "price": "plain",
        "budget": budget["id"],
        "policy": policy["version"],
    }


async def test_every_change_over_http_leaves_one_entry(desk: Desk) -> None:
    for number, ((method, template), (kind, action, body)) in enumerate(CHANGES.items()):
        object_id = (await _objects(desk, f"tenant {number}", with_person=kind == "person")).get(kind, "")
        ids = dict.fromkeys(
            ("tenant", "project", "key", "owner", "target", "budget", "version", "person"), object_id
        )
        path = template.format(scope=kind, **ids)
        known = {one["id"] for one in await entries(desk)}
        answer = await desk.ask(method, path, json=body)
        assert answer.status_code in {200, 201}, (template, answer.text)
        new = [one for one in await entries(desk) if one["id"] not in known]
        assert [one["action"] for one in new] == [action]
        check_entry(new[0], answer)
        if not action.endswith((".create", ".rotate", ".set_password")):
            assert (await desk.ask(method, path, json=body)).status_code == answer.status_code
            assert len(await entries(desk)) == len(known) + 1, f"{action}: the same again is no change"


def check_entry(entry: Answer, answer: httpx.Response) -> None:
    bootstrap = {"kind": "bootstrap", "id": "bootstrap", "name": "bootstrap", "role": "admin"}
    assert entry["actor"] == bootstrap
    assert (entry["source"], entry["at"]) == ("api", "2026-11-20T12:00:00Z")
    assert entry["request_id"] == answer.headers["x-request-id"]
    assert entry["object"]["kind"] == entry["action"].split(".")[0]
    # A price is set and reset by an entry of its own.
    assert (entry["before"] is None) == entry["action"].endswith(
        (".create", "price.set", "price.reset", ".draft")
    )
    assert entry["before"] != entry["after"]
    assert answer.json().get("key", "none").rpartition("-")[2] not in json.dumps(entry)
    assert "hash" not in json.dumps(entry)


async def test_an_entry_says_what_was_and_what_is(desk: Desk) -> None:
    made = await desk.post("/keys", {"tenant": "acme", "name": "ci", "allowed_classes": ["flex"]})
    desk.clock.move(1)
    await desk.patch(f"/keys/{made['id']}", {"name": "bot", "allowed_classes": []})
    desk.clock.move(1)
    new = await desk.post(f"/keys/{made['id']}/rotate", {"overlap_s": 60})
    rotated, updated, created = await entries(desk, object=made["id"])
    assert (created["before"], created["after"]["allowed_classes"]) == (None, ["flex"])
    assert updated["before"] == {"name": "ci", "allowed_classes": ["flex"]}
    assert updated["after"] == {"name": "bot", "allowed_classes": None}
    assert updated["object"] == {"kind": "key", "id": made["id"], "name": "bot"}
    assert rotated["before"] == {"expires_at": None}
    assert rotated["after"] == {"expires_at": "2026-11-20T12:01:02.000Z", "rotated_to": new["id"]}


async def test_an_administrator_is_named(desk: Desk) -> None:
    made = await desk.post("/admin-keys", {"name": "ada", "role": "admin"})
    await desk.until_admin(made["key"], 200)
    await desk.ask("POST", "/tenants", headers=bearer(made["key"]), json={"name": "new"})
    (entry,) = await entries(desk, object="new")
    assert entry["actor"] == {"kind": "admin_key", "id": made["id"], "name": "ada", "role": "admin"}


# ---------------------------------------------------------------------------------------- command line
COMMANDS: dict[tuple[str, str], tuple[list[str], str]] = {
    ("tenants", "create"): (["new"], "tenant.create"),
    ("tenants", "update"): (["TENANT", "--no-cache-answers"], "tenant.update"),
    ("tenants", "retire"): (["TENANT"], "tenant.retire"),
    ("projects", "create"): (["new", "--tenant", "acme"], "project.create"),
    ("projects", "update"): (["PROJECT", "--name", "other"], "project.update"),
    ("projects", "retire"): (["default", "--tenant", "TENANT"], "project.retire"),
    ("keys", "create"): (["--tenant", "acme"], "key.create"),
    ("keys", "update"): (["KEY", "--model", "auto"], "key.update"),
    ("keys", "rotate"): (["KEY", "--overlap", "1h"], "key.rotate"),
    ("keys", "revoke"): (["KEY"], "key.revoke"),
    ("limits", "set"): (["tenant", "TENANT", "--concurrent", "5"], "limit.create"),
    ("limits", "clear"): (["key", "KEY"], "limit.end"),
    ("budgets", "create"): (
        ["new", "--tenant", "acme", "--window", "day", "--limit", "1"],
        "budget.create",
    ),
    ("budgets", "update"): (["BUDGET", "--limit", "2"], "budget.update"),
    ("budgets", "retire"): (["BUDGET"], "budget.retire"),
    ("admins", "create"): (["new", "--role", "viewer"], "admin_key.create"),
    ("admins", "rotate"): (["ADMIN"], "admin_key.rotate"),
    ("admins", "revoke"): (["ADMIN"], "admin_key.revoke"),
    ("prices", "set"): (["plain", "--input", "1", "--output", "2"], "price.set"),
    ("prices", "reset"): (["plain"], "price.reset"),
    ("prices", "import"): (["plain", "--model", "gpt-4o-mini", "--yes"], "price.import"),
}


@pytest.fixture
def terminal(home: Path) -> Terminal:
    return Terminal(home)


def test_every_command_that_changes_something_is_tried() -> None:
    groups: Any = typer.main.get_command(program)
    reading = {"list", "show", "diff", "burn-down"}
    changing = {
        (group, name)
        for group in ("tenants", "projects", "keys", "limits", "budgets", "prices", "admins")
        for name in groups.commands[group].commands
        if name not in reading
    }
    assert changing == set(COMMANDS)


def test_every_change_at_a_terminal_leaves_one_entry(terminal: Terminal) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    for number, (command, (arguments, action)) in enumerate(COMMANDS.items()):
        ids = terminal.objects(f"tenant {number}")
        known = {one["id"] for one in terminal.audit()}
        made = terminal.json(*command, *(ids.get(argument, argument) for argument in arguments))
        found = terminal.audit()
        (entry,) = [one for one in found if one["id"] not in known]
        assert entry["action"] == action
        assert (entry["source"], entry["request_id"]) == ("cli", None)
        assert entry["actor"] == {"kind": "cli", "id": f"cli:{user}", "name": user, "role": "admin"}
        assert made.get("key", "none").rpartition("-")[2] not in json.dumps(found)


# ------------------------------------------------------------------------------ nothing else writes
async def test_what_is_audited_cannot_be_written_in_another_way(desk: Desk) -> None:
    sessions = desk.gateway.services.sessions
    act = make_act(desk.clock)
    async with sessions() as session:
        session.add(Tenant(id="ten_1", name="silent", created_at_ms=1))
        with pytest.raises(RuntimeError, match=r"Tenant is written through gateway\.audit\.write"):
            await session.flush()
    async with sessions() as session:
        tenant = await store.get_tenant(session, "acme")
        tenant.name = "silent"
        with pytest.raises(RuntimeError, match="Tenant is written through"):
            await store.create_tenant(session, "loud", act=act)
    async with sessions() as session:
        await session.delete(await store.get_tenant(session, "acme"))
        with pytest.raises(RuntimeError, match="Tenant is written through"):
            await session.commit()
    for statement in (
        update(ApiKey).values(revoked_at_ms=None),
        delete(AuditEntry),
        update(AuditEntry).values(actor_name="somebody else"),
        metadata.tables["api_keys"].update().values(revoked_at_ms=None),
        metadata.tables["tenants"].insert().values(id="ten_1", name="silent", created_at_ms=1),
    ):
        async with sessions() as session:
            with pytest.raises(RuntimeError, match="is written through"):
                await session.execute(statement)
    async with sessions() as session:
        entry = (await session.execute(select(AuditEntry))).scalars().first()
        assert entry is not None
        entry.actor_name = "somebody else"
        with pytest.raises(RuntimeError, match="AuditEntry is written through"):
            await session.commit()
    async with sessions() as session:
        names = (await session.execute(select(col(Tenant.name)))).scalars().all()
    assert names == ["acme"]
    assert len(await entries(desk)) == len(AT_FIRST)


async def test_a_change_and_its_entry_stand_or_fall_together(desk: Desk) -> None:
    async with desk.gateway.services.sessions() as session:
        await store.create_tenant(session, "given up", act=make_act(desk.clock))
        assert len(list((await session.execute(select(AuditEntry))).scalars())) == len(AT_FIRST) + 1
        await session.rollback()
    assert len(await entries(desk)) == len(AT_FIRST)
    assert (await desk.refused("GET", "/tenants/given%20up"))[0] == 404


async def test_a_name_that_somebody_else_took_at_the_same_moment_is_a_conflict(desk: Desk) -> None:
    act = make_act(desk.clock)
    async with desk.gateway.services.sessions() as session:
        taken = Tenant(id="ten_1", name="acme", created_at_ms=1)
        with pytest.raises(Conflict, match="taken meanwhile"):
            await audit.write(session, act, "tenant.create", row=taken, conflict="taken meanwhile")
    assert len(await entries(desk)) == len(AT_FIRST)


@pytest.mark.parametrize("end", ["revoked", "expired", "unknown"])
async def test_whose_key_ended_changes_nothing_though_a_gateway_may_not_know_yet(
    desk: Desk, end: str
) -> None:
    act = make_act(desk.clock)
    async with desk.gateway.services.sessions() as session:
        issued = await admin_store.create_admin_key(
            session, "ops", Role.ADMIN, act=act, expires_at_ms=act.at_ms + 1000
        )
        if end == "revoked":
            await admin_store.revoke_admin_key(session, issued.id, act=act)
        await session.commit()
        actor = Actor(ActorKind.ADMIN_KEY, "other" if end == "unknown" else issued.id, "ops", Role.ADMIN)
        theirs = Act(actor=actor, source=act.source, at_ms=act.at_ms + (1000 if end == "expired" else 0))
        with pytest.raises(AuthenticationFailed, match=r"not valid any more\. Nothing was changed\."):
            await store.create_tenant(session, "mine", act=theirs)
        fresh = replace(theirs, at_ms=act.at_ms, actor=replace(actor, id=issued.id))
        if end != "revoked":
            assert (await store.create_tenant(session, "mine", act=fresh)).name == "mine"


# -------------------------------------------------------------------------------------------- reading it
async def test_entries_are_found_by_who_what_when_and_to_what(desk: Desk) -> None:
    await desk.post("/tenants", {"name": "early"})
    desk.clock.move(3600)
    made = await desk.post("/keys", {"tenant": "early"})
    await desk.post(f"/keys/{made['id']}/revoke")

    async def actions(**wanted: Any) -> set[str]:
        return {one["action"] for one in await entries(desk, **wanted)}

    assert await actions(actor="bootstrap") == {"tenant.create", "project.create", "key.create", "key.revoke"}
    assert await actions(actor="nobody") == set()
    assert await actions(action="key.revoke") == {"key.revoke"}
    assert await actions(action="key", actor="bootstrap") == {"key.create", "key.revoke"}
    assert await actions(action="k") == set()
    assert await actions(object=made["id"]) == {"key.create", "key.revoke"}
    assert await actions(object="early") == {"tenant.create"}
    late = {"from": "2026-11-20T13:00:00Z"}
    assert await actions(**late) == {"project.create", "key.create", "key.revoke"}
    assert await actions(to="2026-11-20T14:00:00+01:00", actor="bootstrap") == {"tenant.create"}
    assert (await desk.refused("GET", "/audit?from=yesterday"))[:2] == (400, "from")
    newest = await entries(desk)
    assert [one["at"] for one in newest] == sorted((one["at"] for one in newest), reverse=True)


# --------------------------------------------------------------------------------------------- secrets
async def test_no_secret_is_logged_listed_or_kept(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway")
    issued = [
        await desk.post("/keys", {"tenant": "acme"}),
        await desk.post("/admin-keys", {"name": "ops", "role": "viewer"}),
    ]
    issued.append(await desk.post(f"/keys/{issued[0]['id']}/rotate"))
    issued.append(await desk.post(f"/admin-keys/{issued[1]['id']}/rotate"))
    for one in issued:
        for path in ("/tenants", "/keys/nothing"):
            await desk.ask("GET", path, headers=bearer(one["key"]))
        await desk.ask("POST", "/keys", json={"tenant": "acme", "name": [one["key"]]})
        await desk.gateway.client.get("/v1/models", headers=bearer(f"{one['key']}x"))
        assert one["key"] not in (await desk.ask("GET", f"/keys/{one['key']}")).text
    said = "".join(record.getMessage() for record in caplog.records if record.name.startswith("gateway"))
    assert "invalid_api_key" in said
    assert "not_found" in said
    lists = [await desk.get(path) for path in ("/keys", "/admin-keys", "/audit", "/tenants", "/projects")]
    async with desk.gateway.services.sessions() as session:
        kept = [
            row.model_dump_json()
            for table in (ApiKey, AdminKey, AuditEntry)
            for row in (await session.execute(select(table))).scalars()
        ]
        records = [repr(record) for record in await key_store.list_keys(session)]
    for one in issued:
        secret = one["key"].split("-")[2]
        assert secret not in said
        assert secret not in json.dumps(lists)
        assert secret not in "".join(kept + records)


# ----------------------------------------------------------------------------------------------- pages
async def _add(desk: Desk, path: str, number: int) -> None:
    body = {
        "/tenants": {"name": f"tenant {number}"},
        "/projects": {"tenant": "acme", "name": f"project {number}"},
        "/keys": {"tenant": "acme", "name": f"key {number}"},
        "/admin-keys": {"name": f"admin {number}", "role": "viewer"},
    }
    await desk.post(*((path, body[path]) if path in body else ("/tenants", {"name": f"tenant {number}"})))


@pytest.mark.parametrize("path", ["/tenants", "/projects", "/keys", "/admin-keys", "/audit"])
async def test_no_row_is_lost_or_shown_twice_while_rows_are_added(desk: Desk, path: str) -> None:
    for number in range(8):  # half of them at one instant, where ids decide
        desk.clock.move(number // 4)
        await _add(desk, path, number)
    there = {one["id"] for one in (await desk.get(path, limit=200))["data"]}
    assert len(there) >= 8
    shown: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await desk.get(path, limit=2, **cursor)
        assert len(page["data"]) <= 2
        shown += [one["id"] for one in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        if len(shown) <= 8:
            await _add(desk, path, 100 + len(shown))
    assert len(shown) == len(set(shown))
    assert there <= set(shown)


async def test_a_page_that_cannot_be_is_explained(desk: Desk) -> None:
    for query, param in [("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit")]:
        assert (await desk.refused("GET", f"/keys?{query}"))[:2] == (400, param)
    for cursor in ("x", "%00", "MQ", "LTEueA", "MS4", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkueA", "\u00e4"):
        status, param, said = await desk.refused("GET", f"/audit?cursor={cursor}")
        assert (status, param) == (400, "cursor"), cursor
        assert "leave it out for the first page" in said
