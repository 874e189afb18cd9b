"""Can tenants, projects and keys be steered over HTTP, and does the data plane obey?"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from gateway.identity.credentials import OVERLAP_S_MAX
from gateway.settings import FreshnessSettings
from tests.integration.gateway.desk import Answer, Desk
from tests.integration.gateway.rig import PATIENCE_S, bearer, running, settings_for
from tests.support.clock import MovableClock


@pytest.fixture
async def desk(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Desk]:
    clock = MovableClock()
    # A clock that jumps must not make the keys in memory look old.
    freshness = FreshnessSettings(poll_interval_s=0.05, auth_stale_max_s=1e9)
    async with running(settings_for(home, urls, freshness=freshness), clock=clock) as gateway:
        yield Desk(gateway, clock)


def message(answer: httpx.Response) -> str:
    text: str = answer.json()["error"]["message"]
    return text


# ----------------------------------------------------------------------------------------------- tenants
async def test_a_tenant_from_the_first_to_the_last(desk: Desk) -> None:
    made = await desk.post("/tenants", {"name": "umbrella", "caches_answers": False})
    assert made == {
        "id": made["id"],
        "name": "umbrella",
        "is_internal_only": True,
        "caches_answers": False,
        "created_at": "2026-11-20T12:00:00Z",
        "retired_at": None,
        "projects": 0,
        "valid_keys": 0,
    }
    assert await desk.get("/tenants/umbrella") == await desk.get(f"/tenants/{made['id']}") == made
    change = {"name": "Umbrella Corp / EU", "is_internal_only": False}
    changed = await desk.patch("/tenants/umbrella", change)
    assert changed == {**made, **change}
    assert await desk.patch(f"/tenants/{made['id']}", change) == changed
    issued = await desk.post("/keys", {"tenant": made["id"], "project": "search"})
    await desk.until(issued["key"], 200)
    desk.clock.move(60)
    retired = await desk.post(f"/tenants/{made['id']}/retire")
    assert (retired["retired_at"], retired["valid_keys"]) == ("2026-11-20T12:01:00Z", 0)
    said = message(await desk.until(issued["key"], 401))
    assert said.startswith("The tenant 'Umbrella Corp / EU' of the API key tg-")
    assert "was retired on 2026-11-20 12:01 UTC" in said
    desk.clock.move(60)
    assert await desk.post(f"/tenants/{made['id']}/retire") == retired
    for path, field in (("/projects", "name"), ("/keys", "project")):
        status, _, said = await desk.refused("POST", path, {"tenant": made["id"], field: "another"})
        assert (status, said.endswith("is retired: nothing new can be made for it.")) == (409, True)
    assert (await desk.get(f"/keys/{issued['id']}"))["state"] == "retired"


async def test_what_a_tenant_allows_reaches_its_callers(desk: Desk) -> None:
    caller = desk.gateway.services.keys.authenticate(bearer(desk.gateway.key))
    assert (caller.is_internal_only, caller.caches_answers) == (True, True)
    await desk.patch("/tenants/acme", {"is_internal_only": False, "caches_answers": False})
    deadline_s = time.monotonic() + PATIENCE_S
    while caller.is_internal_only or caller.caches_answers:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)
        caller = desk.gateway.services.keys.authenticate(bearer(desk.gateway.key))


async def test_mistakes_about_tenants_are_explained(desk: Desk) -> None:
    cases: list[tuple[Answer, int, str | None, str]] = [
        ({"name": "acme"}, 409, "name", "There is a tenant called 'acme' already; `tollgate tenants list`"),
        ({"name": ""}, 400, "name", "A name has 1 to 128 characters."),
        ({"name": "x" * 129}, 400, "name", "A name has 1 to 128 characters."),
        ({"name": " x"}, 400, "name", "no spaces at its ends"),
        ({"name": "a\nb"}, 400, "name", "no line breaks"),
        ({"name": "ten_0"}, 400, "name", "ids look like that"),
        ({}, 400, "name", "`name`: is missing."),
        ({"name": 7}, 400, "name", "`name`: input should be a valid string."),
        ({"name": "x", "nmae": 1}, 400, "nmae", "`nmae`: there is no such field."),
        ({"name": "x", "caches_answers": "often"}, 400, "caches_answers", "valid boolean"),
    ]
    for body, status, param, said in cases:
        found = await desk.refused("POST", "/tenants", body)
        assert found[:2] == (status, param), body
        assert said in found[2], body
    await desk.post("/tenants", {"name": "other"})
    assert (await desk.refused("PATCH", "/tenants/other", {"name": "acme"}))[0] == 409
    assert (await desk.refused("GET", "/tenants/nobody"))[::2] == (
        404,
        "No tenant 'nobody'; `tollgate tenants list` shows the known ones.",
    )
    assert (await desk.refused("POST", "/tenants/nobody/retire"))[0] == 404


# ---------------------------------------------------------------------------------------------- projects
async def test_a_project_from_the_first_to_the_last(desk: Desk) -> None:
    made = await desk.post("/projects", {"tenant": "acme", "name": "search"})
    assert made == {
        "id": made["id"],
        "name": "search",
        "tenant_id": desk.gateway.tenant_id,
        "tenant": "acme",
        "tags": {},
        "created_at": "2026-11-20T12:00:00Z",
        "retired_at": None,
    }
    assert (await desk.refused("POST", "/projects", {"tenant": "acme", "name": "search"}))[0] == 409
    renamed = await desk.patch(f"/projects/{made['id']}", {"name": "retrieval"})
    assert renamed == await desk.get(f"/projects/{made['id']}") == {**made, "name": "retrieval"}
    assert (await desk.refused("PATCH", f"/projects/{made['id']}", {"name": "default"}))[0] == 409
    issued = await desk.post("/keys", {"tenant": "acme", "project": "retrieval"})
    await desk.until(issued["key"], 200)
    assert (await desk.post(f"/projects/{made['id']}/retire"))["retired_at"] == "2026-11-20T12:00:00Z"
    assert "The project 'retrieval' of the API key" in message(await desk.until(issued["key"], 401))
    assert (await desk.models(desk.gateway.key)).status_code == 200
    assert (await desk.refused("GET", "/projects/prj_0"))[0] == 404
    await desk.post("/tenants", {"name": "other"})
    await desk.post("/projects", {"tenant": "other", "name": "default"})
    of_acme = (await desk.get("/projects", tenant="acme"))["data"]
    assert {project["name"] for project in of_acme} == {"default", "retrieval"}
    assert len((await desk.get("/projects"))["data"]) == 3


# -------------------------------------------------------------------------------------------------- keys
async def test_a_key_shows_its_secret_once(desk: Desk) -> None:
    issued = await desk.post("/keys", {"tenant": "acme", "project": "search", "name": "ci"})
    prefix, public_id, secret = issued["key"].split("-")
    assert (prefix, public_id) == ("tg", issued["id"])
    await desk.until(issued["key"], 200)
    shown = await desk.get(f"/keys/{issued['id']}")
    assert shown == {name: value for name, value in issued.items() if name != "key"}
    assert (shown["state"], shown["project"], shown["expires_at"]) == ("active", "search", None)
    for text in (str(await desk.get("/keys")), str(await desk.get("/audit")), str(shown)):
        assert secret not in text
    revoked = await desk.post(f"/keys/{issued['id']}/revoke")
    assert (revoked["state"], revoked["revoked_at"]) == ("revoked", "2026-11-20T12:00:00Z")
    assert "was revoked on 2026-11-20 12:00 UTC" in message(await desk.until(issued["key"], 401))
    desk.clock.move(5)
    assert await desk.post(f"/keys/{issued['id']}/revoke") == revoked
    assert (await desk.refused("PATCH", f"/keys/{issued['id']}", {"name": "x"}))[0] == 409
    assert (await desk.refused("POST", f"/keys/{issued['id']}/rotate", {}))[0] == 409


async def test_a_key_sees_and_gets_only_the_models_it_may_use(desk: Desk) -> None:
    everything = [model["id"] for model in (await desk.models(desk.gateway.key)).json()["data"]]
    assert len(everything) > 1
    first, *others = everything
    issued = await desk.post("/keys", {"tenant": "acme", "allowed_models": [others[0]]})
    await desk.until(issued["key"], 200)
    await desk.until_named(issued["key"], [others[0]])
    refused = await desk.chat(issued["key"], model=first)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert refused.json()["error"]["param"] == "model"
    assert message(refused).endswith(f"may not use the model {first!r}. It may use: {others[0]}.")
    assert (await desk.chat(issued["key"], model=others[0])).status_code == 200
    await desk.patch(f"/keys/{issued['id']}", {"allowed_models": [first]})
    await desk.until_named(issued["key"], [first])
    assert (await desk.patch(f"/keys/{issued['id']}", {"name": "x"}))["allowed_models"] == [first]
    lifted = await desk.patch(f"/keys/{issued['id']}", {"allowed_models": None})
    assert (lifted["allowed_models"], lifted["name"]) == (None, "x")
    await desk.until_named(issued["key"], everything)
    assert (await desk.chat(issued["key"], model=first)).status_code == 200


async def test_a_key_gets_only_the_classes_it_may_use(desk: Desk) -> None:
    issued = await desk.post("/keys", {"tenant": "acme", "allowed_classes": ["flex", "default"]})
    await desk.until(issued["key"], 200)
    for tier in (None, "auto", "default", "flex"):
        assert (await desk.chat(issued["key"], service_tier=tier)).status_code == 200, tier
    refused = await desk.chat(issued["key"], service_tier="priority")
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "service_tier")
    assert message(refused).endswith("service tier 'priority'. It may use: default, flex.")


async def test_a_key_ends_at_its_instant_without_being_told(desk: Desk) -> None:
    new = {"tenant": "acme", "expires_at": "2026-11-20T13:30:00+01:00"}
    issued = await desk.post("/keys", new)
    assert issued["expires_at"] == "2026-11-20T12:30:00Z"
    await desk.until(issued["key"], 200)
    desk.clock.move(1799.999)
    assert (await desk.models(issued["key"])).status_code == 200
    desk.clock.move(0.001)
    over = await desk.models(issued["key"])
    assert over.status_code == 401
    assert message(over) == (
        f"The API key tg-{issued['id']}-… expired on 2026-11-20 12:30 UTC."
        " Ask an administrator for a new one."
    )
    assert (await desk.get(f"/keys/{issued['id']}"))["state"] == "expired"
    status, _, said = await desk.refused("POST", f"/keys/{issued['id']}/rotate", {})
    assert (status, said.endswith("is expired and cannot be rotated; create a new one.")) == (409, True)


async def test_mistakes_about_keys_are_explained(desk: Desk) -> None:
    cases: list[tuple[Answer, int, str | None, str]] = [
        ({"allowed_models": ["autoo"]}, 400, "allowed_models", "there is no 'autoo'. Did you mean 'auto'?"),
        ({"allowed_models": ["zzz"]}, 400, "allowed_models", "there is no 'zzz'. Known: auto"),
        ({"allowed_models": ["auto"] * 101}, 400, "allowed_models", "at most 100 names"),
        ({"allowed_models": "auto"}, 400, "allowed_models", "valid list"),
        ({"allowed_classes": ["prioritty"]}, 400, "allowed_classes", "Did you mean 'priority'?"),
        ({"allowed_classes": ["auto"]}, 400, "allowed_classes", "there is no 'auto'"),
        ({"expires_at": "2026-11-20T12:00:00Z"}, 400, "expires_at", "must be in the future"),
        ({"expires_at": "soon"}, 400, "expires_at", "valid datetime"),
        ({"tenant": "nobody"}, 404, None, "No tenant 'nobody'"),
        ({"tenant": None}, 400, "tenant", "valid string"),
    ]
    for more, status, param, said in cases:
        found = await desk.refused("POST", "/keys", {"tenant": "acme", "project": "new", **more})
        assert found[:2] == (status, param), more
        assert said in found[2], more
    assert [one["name"] for one in (await desk.get("/projects"))["data"]] == ["default"], "half a change"
    key_id = desk.gateway.key.split("-")[1]
    status, _, said = await desk.refused("GET", "/keys/nothing")
    assert (status, said) == (404, "No key 'nothing'; `tollgate keys list` shows the public ids.")
    for seconds in (-1, OVERLAP_S_MAX + 1):
        status, param, _ = await desk.refused("POST", f"/keys/{key_id}/rotate", {"overlap_s": seconds})
        assert (status, param) == (400, "overlap_s")
    assert (await desk.refused("GET", "/keys?state=lost"))[:2] == (400, "state")
    assert (await desk.models(desk.gateway.key)).status_code == 200


async def test_keys_are_found_by_owner_and_by_state(desk: Desk) -> None:
    await desk.post("/tenants", {"name": "other"})
    keys = {
        name: await desk.post(
            "/keys", {"tenant": tenant, "project": project, "name": name, "expires_at": expires_at}
        )
        for name, tenant, project, expires_at in [
            ("kept", "other", "a", None),
            ("revoked", "other", "a", None),
            ("expired", "other", "b", "2026-11-20T12:00:10Z"),
            ("retired", "other", "c", None),
        ]
    }
    await desk.post(f"/keys/{keys['revoked']['id']}/revoke")
    await desk.post(f"/projects/{keys['retired']['project_id']}/retire")
    desk.clock.move(10)
    for state in ("revoked", "expired", "retired"):
        found = (await desk.get("/keys", state=state))["data"]
        assert [(one["name"], one["state"]) for one in found] == [(state, state)]
    active = (await desk.get("/keys", state="active", tenant="other"))["data"]
    assert [one["name"] for one in active] == ["kept"]
    of_a = (await desk.get("/keys", tenant="other", project="a"))["data"]
    assert {one["name"] for one in of_a} == {"kept", "revoked"}
    assert (await desk.get("/keys", project=keys["expired"]["project_id"]))["data"][0]["name"] == "expired"
    assert (await desk.get("/tenants/other"))["valid_keys"] == 1
    assert (await desk.refused("GET", "/keys?project=a"))[0] == 404, "a name alone is not enough"


# ---------------------------------------------------------------------------------------------- rotation
async def test_both_keys_work_for_the_overlap_and_then_the_old_one_ends_by_itself(desk: Desk) -> None:
    old = await desk.post(
        "/keys", {"tenant": "acme", "name": "ci", "allowed_models": ["auto"], "allowed_classes": ["flex"]}
    )
    await desk.until(old["key"], 200)
    new = await desk.post(f"/keys/{old['id']}/rotate", {"overlap_s": 3600})
    assert (new["rotated_from"], new["rotated_to"], new["expires_at"]) == (old["id"], None, None)
    for same in ("name", "tenant_id", "project_id", "allowed_models", "allowed_classes"):
        assert new[same] == old[same]
    assert new["id"] != old["id"]
    ending = await desk.get(f"/keys/{old['id']}")
    assert (ending["rotated_to"], ending["expires_at"]) == (new["id"], "2026-11-20T13:00:00Z")
    await desk.until(new["key"], 200)
    answers = [await desk.chat(one["key"]) for one in (old, new)]
    assert [answer.status_code for answer in answers] == [200, 200]
    rows = await desk.gateway.rows(2)
    # By key: on a clock that stands still both began at the same instant.
    assert sorted(row.key_id for row in rows) == sorted([old["id"], new["id"]]), (
        "whose spend it is stays known"
    )
    desk.clock.move(3599)
    assert (await desk.models(old["key"])).status_code == 200
    desk.clock.move(1)
    over = await desk.models(old["key"])
    assert over.status_code == 401
    assert message(over) == (
        f"The API key tg-{old['id']}-… was replaced by tg-{new['id']}-… and ended on 2026-11-20 13:00 UTC."
    )
    assert (await desk.models(new["key"])).status_code == 200
    status, _, said = await desk.refused("POST", f"/keys/{old['id']}/rotate")
    assert (status, said) == (409, f"Key {old['id']} was rotated already: its successor is {new['id']}.")
    assert (await desk.post(f"/keys/{new['id']}/rotate"))["rotated_from"] == new["id"]
    assert (await desk.get(f"/keys/{new['id']}"))["expires_at"] == "2026-11-21T13:00:00Z", "24 h unasked"


async def test_without_an_overlap_the_old_key_stops_at_once(desk: Desk) -> None:
    old_id = desk.gateway.key.split("-")[1]
    new = await desk.post(f"/keys/{old_id}/rotate", {"overlap_s": 0})
    await desk.until(new["key"], 200)
    await desk.until(desk.gateway.key, 401)


async def test_a_rotation_never_makes_a_key_live_longer(desk: Desk) -> None:
    old = await desk.post("/keys", {"tenant": "acme", "expires_at": "2026-11-20T12:10:00Z"})
    new = await desk.post(f"/keys/{old['id']}/rotate")
    assert (await desk.get(f"/keys/{old['id']}"))["expires_at"] == old["expires_at"] == new["expires_at"]
    later = await desk.post(f"/keys/{new['id']}/rotate", {"expires_at": "2027-01-01T00:00:00Z"})
    assert later["expires_at"] == "2027-01-01T00:00:00Z"
    assert (await desk.get(f"/keys/{new['id']}"))["expires_at"] == old["expires_at"]


async def test_of_two_rotations_at_once_one_wins(desk: Desk) -> None:
    old_id = desk.gateway.key.split("-")[1]
    answers = await asyncio.gather(*(desk.ask("POST", f"/keys/{old_id}/rotate") for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    successors = [one for one in (await desk.get("/keys"))["data"] if one["rotated_from"] == old_id]
    assert len(successors) == 1
    assert len((await desk.get("/audit", action="key.rotate"))["data"]) == 1


# ---------------------------------------------------------------------------------------- administrators
async def test_an_administrators_key_from_the_first_to_the_last(desk: Desk) -> None:
    made = await desk.post("/admin-keys", {"name": "ops", "role": "viewer"})
    assert made["key"].startswith(f"tga-{made['id']}-")
    await desk.until_admin(made["key"], 200)
    assert (await desk.ask("POST", "/tenants", headers=bearer(made["key"]), json={})).status_code == 403
    shown = await desk.get(f"/admin-keys/{made['id']}")
    assert (await desk.get("/admin-keys"))["data"] == [shown]
    assert "key" not in shown
    assert (shown["role"], shown["state"]) == ("viewer", "active")
    new = await desk.post(f"/admin-keys/{made['id']}/rotate", {"overlap_s": 60})
    assert (new["role"], new["name"], new["rotated_from"]) == ("viewer", "ops", made["id"])
    await desk.until_admin(new["key"], 200)
    assert (await desk.ask("GET", "/tenants", headers=bearer(made["key"]))).status_code == 200
    await _until_ending(desk, made["id"])
    desk.clock.move(60)
    over = await desk.ask("GET", "/tenants", headers=bearer(made["key"]))
    assert (over.status_code, "is expired since 2026-11-20 12:01 UTC" in message(over)) == (401, True)
    assert (await desk.refused("POST", f"/admin-keys/{made['id']}/rotate"))[0] == 409
    revoked = await desk.post(f"/admin-keys/{new['id']}/revoke")
    assert revoked["state"] == "revoked"
    assert "is revoked since" in message(await desk.until_admin(new["key"], 401))
    assert (await desk.refused("GET", "/admin-keys/nothing"))[0] == 404
    assert (await desk.refused("POST", "/admin-keys", {"name": "x", "role": "boss"}))[:2] == (400, "role")
    secrets = [one["key"].split("-")[2] for one in (made, new)]
    texts = str(await desk.get("/admin-keys")) + str(await desk.get("/audit"))
    assert not [secret for secret in secrets if secret in texts]


async def _until_ending(desk: Desk, key_id: str) -> None:
    """The running gateway has learned that the key ends."""
    deadline_s = time.monotonic() + PATIENCE_S
    while desk.gateway.services.admins._by_id[key_id].expires_at_ms is None:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


# ------------------------------------------------------------------------------------------ odd characters
@pytest.mark.parametrize("odd", ["\x00", "a\x00b", "\ud800", "\U0001f9ea", "%", "_", "'", "\\"])
async def test_odd_characters_are_found_nowhere_and_break_nothing(desk: Desk, odd: str) -> None:
    path = quote(odd, errors="surrogatepass")
    for found in (
        await desk.ask("GET", f"/tenants/{path}"),
        await desk.ask("GET", f"/keys/{path}"),
        await desk.ask("GET", f"/projects?tenant={path}"),
        await _post(desk, {"tenant": odd}),
        await _post(desk, {"tenant": "acme", "project": f"{odd}\n"}),
        await _post(desk, {"tenant": "acme", "allowed_models": [odd]}),
    ):
        assert found.status_code in {400, 404}, found.text
        assert found.json()["error"]["code"] in {"invalid_request", "not_found"}
    for name in ("actor", "action", "object"):
        assert (await desk.ask("GET", f"/audit?{name}={path}")).json() in (
            {"data": [], "next_cursor": None},
            _odd(),
        )
    cursor = base64.urlsafe_b64encode(f"5.{odd}".encode(errors="surrogatepass")).decode()
    assert (await desk.ask("GET", f"/keys?cursor={cursor}")).status_code in {200, 400}


async def _post(desk: Desk, body: Answer) -> httpx.Response:
    headers = desk.gateway.admin | {"content-type": "application/json"}
    return await desk.ask("POST", "/keys", content=json.dumps(body), headers=headers)


def _odd() -> Answer:
    said = "The database cannot hold one of the characters that were sent."
    return {
        "error": {"message": said, "type": "invalid_request_error", "param": None, "code": "invalid_request"}
    }
