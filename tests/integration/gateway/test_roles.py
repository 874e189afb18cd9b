"""May everybody do what the table of rules says, and nothing else?"""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from gateway.api.edge import ROUTES
from gateway.app import create_app
from gateway.dependencies import COOKIE, require_guarded
from gateway.identity import admin_store
from gateway.identity.roles import RULES, Credential, Role
from gateway.settings import Settings
from tests.integration.gateway.rig import Gateway, bearer, eventually, running, settings_for
from tests.support.factories import make_act
from tests.support.pool_files import DEFAULT_POLICY, write_pools

Client = httpx.AsyncClient  # noqa: TID251 - a test's client
FOR_ADMINISTRATORS = [route for route, rule in RULES.items() if rule.credential is Credential.ADMIN_KEY]
JSON = {"content-type": "application/json"}
PAGES = [route for route, rule in RULES.items() if rule.credential is Credential.LOGIN]
EMBEDDED = pytest.mark.parametrize("home", ["embedded"], indirect=True)
"""Where keys are kept makes no difference to what they may; tests of the control plane have both."""


# -------------------------------------------------------------------------------------------- every route
@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    nowhere = ["http://127.0.0.1:9"]
    pools = write_pools(tmp_path / "pools", {"speculative": nowhere, "plain": nowhere})
    return create_app(Settings(state_dir=tmp_path / "state", pools=pools, policy=DEFAULT_POLICY))


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every route of the program, whoever serves it.

    Raises:
        AssertionError: one is of a kind that the guard does not stand before.
    """
    for context in iter_route_contexts(app.router.routes):
        assert isinstance(context.original_route, APIRoute), (
            f"{context.path}: nothing guards a {context.route}"
        )
        assert context.original_route.path == context.path, f"{context.path}: include it without a prefix"
        for method in context.methods or ():
            yield method, context.path or ""
    for path, methods in ROUTES.items():
        for method in methods:
            yield method, path


def test_every_route_has_a_rule_and_every_rule_a_route(app: FastAPI) -> None:
    routes = list(routes_of(app))
    assert len(routes) == len(set(routes))
    assert ("GET", "/console") in routes
    assert ("GET", "/openapi.json") in routes
    assert set(routes) - set(RULES) == set(), "routes without a rule: nobody may use them"
    assert set(RULES) - set(routes) == set(), "rules without a route"


def test_the_data_plane_is_for_tenants_and_the_rest_is_not() -> None:
    raw = {(method, path) for path, methods in ROUTES.items() for method in methods}
    assert {route for route, rule in RULES.items() if rule.credential is Credential.TENANT_KEY} == raw
    for route, rule in RULES.items():
        assert bool(rule.roles) == (rule.credential in {Credential.ADMIN_KEY, Credential.LOGIN}), route
        assert not rule.roles or Role.ADMIN in rule.roles, route
        if route[1].startswith("/admin/"):
            assert rule.credential is Credential.ADMIN_KEY
            assert not rule.is_open_on_loopback


MONEY = {"prices", "limits", "budgets", "periods", "adjustments", "reconciliations"}


QUESTIONS = {f"/admin/v1/policies/{what}" for what in ("explain", "check", "diff")}
"""They have a body and change nothing."""
OWN = {"/admin/v1/me/password"}
"""What is somebody's own, whatever their role."""


def test_viewers_change_nothing_finance_no_routing_and_operators_no_money() -> None:
    for (method, path), rule in RULES.items():
        if path in OWN:
            assert rule.roles == set(Role), path
        elif path.startswith("/admin/") and method != "GET" and path not in QUESTIONS:
            assert Role.VIEWER not in rule.roles, path
            is_money = path.removeprefix("/admin/v1/").partition("/")[0] in MONEY
            assert (Role.FINANCE in rule.roles) == is_money, path
            assert not (is_money and Role.OPERATOR in rule.roles), path
        if path.startswith("/admin/v1/admin-keys"):
            assert rule.roles == {Role.ADMIN}


def test_a_door_without_a_guard_keeps_the_program_from_starting(app: FastAPI) -> None:
    require_guarded(app)
    app.mount("/files", FastAPI())
    with pytest.raises(RuntimeError, match="no guard stands before '/files'"):
        require_guarded(app)


def test_a_door_behind_another_one_is_found_too(app: FastAPI) -> None:
    inner, outer = APIRouter(), APIRouter()
    inner.mount("/files", FastAPI())
    outer.include_router(inner)
    app.include_router(outer)
    with pytest.raises(RuntimeError, match="no guard stands before '/files'"):
        require_guarded(app)


@EMBEDDED
async def test_a_route_without_a_rule_is_shut(gateway: Gateway) -> None:
    async def forgotten() -> dict[str, str]:
        return {"secret": "shown"}

    gateway.app.add_api_route("/admin/v1/forgotten", forgotten)
    answer = await gateway.client.get("/admin/v1/forgotten", headers=gateway.admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert "no rule" in answer.json()["error"]["message"]


# -------------------------------------------------------------------------------------------- every role
TAKES_SECONDS = {"/admin/v1/reports/forecast": "?top=0", "/admin/v1/exports": "?format=nothing"}
"""What starts a process: whoever may do it is told that this is wrong."""
DONE_OR_WRONG = {200, 400, 404, 409}
"""What whoever may do it gets, where there is nothing to do it to."""


class Office:
    """A gateway with a key of every role, seen from another machine."""

    def __init__(self, gateway: Gateway, client: Client, keys: dict[Role, str]) -> None:
        self.gateway = gateway
        self.client = client
        self.keys = keys

    async def ask(self, method: str, template: str, headers: dict[str, str]) -> httpx.Response:
        path = re.sub(r"\{[^}]+\}", "nothing", template) + TAKES_SECONDS.get(template, "")
        body: dict[str, Any] = {"json": {}} if method in {"POST", "PATCH", "PUT"} else {}
        return await self.client.request(method, path, headers=headers, **body)


@pytest.fixture
async def office(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Office]:
    async with running(settings_for(home, urls), is_up=False) as gateway:
        keys: dict[Role, str] = {}
        async with gateway.services.sessions() as session:
            for role in Role:
                issued = await admin_store.create_admin_key(session, f"the {role}", role, act=make_act())
                keys[role] = issued.secret
            await session.commit()
        await eventually(lambda: all(_is_known(gateway, key) for key in keys.values()))
        transport = httpx.ASGITransport(gateway.app, client=("192.0.2.1", 40_000))
        async with Client(transport=transport, base_url="http://tollgate") as client:
            yield Office(gateway, client, keys)


def _is_known(gateway: Gateway, key: str) -> bool:
    return gateway.services.admins.actor_with_id(key.split("-")[1]) is not None


@EMBEDDED
async def test_every_role_may_do_over_http_what_the_table_says(office: Office) -> None:
    assert ("POST", "/admin/v1/keys/{key}/rotate") in FOR_ADMINISTRATORS
    for method, path in FOR_ADMINISTRATORS:
        roles = RULES[method, path].roles
        for role, key in office.keys.items():
            answer = await office.ask(method, path, bearer(key))
            if role in roles:
                assert answer.status_code in DONE_OR_WRONG, (method, path, role, answer.text)
            else:
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (403, "permission_denied"), (method, path, role)
                assert f"has the role {role}, which may not do this. It takes one of: " in error["message"]
                assert RULES[method, path].roles_text() in error["message"]
        assert (await office.ask(method, path, office.gateway.admin)).status_code in DONE_OR_WRONG


@EMBEDDED
@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "needs an administrator key"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "needs an administrator key"),
        ({"authorization": "Bearer "}, "needs an administrator key"),
        (bearer("tga-aaaaaaaaaa-" + "0" * 32), "not an administrator key"),
        (bearer("\xe4\xf6"), "not an administrator key"),
        ({"cookie": f"{COOKIE}=9999999999.a.bootstrap.b"}, "needs an administrator key"),
    ],
)
async def test_without_a_key_of_ours_nobody_gets_in(office: Office, headers: Any, said: str) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for method, path in FOR_ADMINISTRATORS:
        answer = await office.ask(method, path, raw)  # type: ignore[arg-type]  # bytes are headers too
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (401, "invalid_api_key"), (method, path)
        assert said in error["message"]


@EMBEDDED
async def test_a_tenants_key_is_told_where_it_belongs(office: Office) -> None:
    for method, path in FOR_ADMINISTRATORS:
        answer = await office.ask(method, path, bearer(office.gateway.key))
        assert answer.status_code == 401, (method, path)
        assert "This is a tenant's API key (tg-…), for the models under /v1." in answer.text
        assert office.gateway.key.split("-")[2] not in answer.text


@EMBEDDED
async def test_an_administrators_key_is_told_where_it_belongs(office: Office) -> None:
    for key in (office.keys[Role.ADMIN], office.gateway.admin["authorization"].removeprefix("Bearer ")):
        for headers in (bearer(key), {"x-api-key": key}):
            answer = await office.client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert "This is an administrator key (tga-…), for /admin/v1 and the console." in answer.text


@EMBEDDED
async def test_what_is_open_is_open(office: Office) -> None:
    for (method, path), rule in RULES.items():
        if rule.credential is Credential.NOTHING and method == "GET" and "{" not in path:
            # No company login is set up here.
            expected = {404} if path.startswith("/console/login/oidc") else {200, 503}
            assert (await office.client.get(path)).status_code in expected, path


@EMBEDDED
async def test_the_console_lets_every_role_in_and_nobody_without_a_login(office: Office) -> None:
    for role, key in office.keys.items():
        origin = {"origin": "http://tollgate"}
        answer = await office.client.post("/console/login", data={"key": key}, headers=origin)
        assert (answer.status_code, answer.headers["location"]) == (303, "/console"), role
        login = {"cookie": f"{COOKIE}={office.client.cookies[COOKIE]}"}
        office.client.cookies.clear()
        for method, path in PAGES:
            answer = await office.ask(method, path, login)
            allowed = {200, 404} if role in RULES[method, path].roles else {403}
            assert answer.status_code in allowed, (method, path, role)
        assert f"the {role} · {role}" in (await office.client.get("/console", headers=login)).text
    for method, path in PAGES:
        for headers in ({}, bearer(office.keys[Role.ADMIN])):
            assert (await office.ask(method, path, headers)).headers["location"] == "/console/login"


# --------------------------------------------------------------------------------------------- in our form
@EMBEDDED
async def test_what_the_framework_would_say_is_said_in_our_form(office: Office) -> None:
    client, admin = office.client, office.gateway.admin
    for answer, status, code, said in [
        (await client.get("/nowhere"), 404, "not_found", "There is no /nowhere here."),
        (await client.delete("/healthz"), 405, "method_not_allowed", "/healthz takes GET, not DELETE."),
        (
            await client.post("/admin/v1/tenants", headers=admin, content=b'{"name": "acme"}'),
            400,
            "invalid_request",
            "The body must be a JSON object, sent with the header content-type: application/json.",
        ),
        (
            await client.post("/admin/v1/tenants", headers=admin | JSON, content=b"{"),
            400,
            "invalid_request",
            "The body is not valid JSON.",
        ),
    ]:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert error["message"].startswith(said)
        assert answer.headers["x-should-retry"] == "false"
    assert (await client.delete("/healthz")).headers["allow"] == "GET"
    too_large = await client.post("/admin/v1/tenants", headers=admin, content=b"x" * 2_000_000)
    assert too_large.status_code == 413  # in Starlette's words: its limit stands before everything of ours
