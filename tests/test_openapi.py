"""Does /openapi.json name every path that the program answers, and no other?"""

import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

import gateway.admin
import gateway.api
from gateway.api.edge import ROUTES
from gateway.app import create_app
from gateway.identity.roles import RULES
from gateway.settings import Settings
from tests.support.pool_files import DEFAULT_POLICY, write_pools

ANYTHING = {
    "/admin/v1/reports/spend",
    "/admin/v1/exports",
    "/admin/v1/periods/{period}/report",
    "/admin/v1/periods/{period}/statements/{tenant}",
}
"""What answers with any columns, a file, or stored bytes."""
VERBS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    nowhere = ["http://127.0.0.1:9"]
    pools = write_pools(tmp_path / "pools", {"speculative": nowhere, "plain": nowhere})
    return create_app(Settings(state_dir=tmp_path / "state", pools=pools, policy=DEFAULT_POLICY))


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(path, verb) for path, entry in document["paths"].items() for verb in entry if verb in VERBS}


def test_every_path_of_the_raw_door_is_described(document: dict[str, Any]) -> None:
    wanted = {(path, method.lower()) for path, methods in ROUTES.items() for method in methods}
    assert wanted
    assert wanted <= operations(document)
    for path, verb in wanted:
        operation = document["paths"][path][verb]
        assert operation["summary"]
        assert operation["security"] == [{"apiKey": []}]
        assert "200" in operation["responses"]
        assert ("requestBody" in operation) == (verb == "post")


def routers() -> list[APIRouter]:
    """Every router for programs that a module of the two rooms offers, included in the app or forgotten."""
    found = []
    for room in (gateway.api, gateway.admin):
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            router = getattr(importlib.import_module(module.name), "router", None)
            if isinstance(router, APIRouter):
                found.append(router)
    return found


def test_every_other_path_for_programs_is_described_and_the_console_is_not(document: dict[str, Any]) -> None:
    wanted = {
        (route.path, method.lower())
        for router in routers()
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert {("/healthz", "get"), ("/readyz", "get"), ("/metrics", "get")} <= wanted
    assert ("/admin/v1/reports/spend", "get") in wanted
    raw = {(path, method.lower()) for path, methods in ROUTES.items() for method in methods}
    assert operations(document) == wanted | raw


def test_the_control_plane_says_who_may_use_it_what_it_answers_and_how_it_fails(
    document: dict[str, Any],
) -> None:
    control = {
        (path, verb): operation
        for path, entry in document["paths"].items()
        for verb, operation in entry.items()
        if path.startswith("/admin/")
    }
    assert ("/admin/v1/keys/{key}/rotate", "post") in control
    for (path, verb), operation in control.items():
        assert operation["security"] == [{"adminKey": []}], path
        rule = RULES[verb.upper(), path]
        assert operation["x-tollgate-roles"] == sorted(rule.roles)
        assert f"Roles: {rule.roles_text()}." in operation["description"]
        assert operation["summary"]
        assert "422" not in operation["responses"]
        failure = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert failure == {"$ref": "#/components/schemas/Error"}
        if path not in ANYTHING:
            success = operation["responses"].get("201") or operation["responses"]["200"]
            assert "$ref" in success["content"]["application/json"]["schema"], path
    schemas = document["components"]["schemas"]
    for name in (
        "NewTenant",
        "TenantChange",
        "NewProject",
        "NewKey",
        "KeyChange",
        "NewAdminKey",
        "NewPrice",
        "Error",
    ):
        assert schemas[name]["examples"], name
    assert "HTTPValidationError" not in schemas
    shown_once = [name for name, schema in schemas.items() if "key" in schema.get("properties", {})]
    # "Given" is a question about a policy and names a key by its id.
    assert sorted(shown_once) == ["Given", "IssuedAdminKeyView", "IssuedKeyView"]
    assert not [name for name, schema in schemas.items() if "secret_hash" in schema.get("properties", {})]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert found
    assert found <= set(document["components"]["schemas"])


def test_nothing_that_is_described_is_hidden_by_the_raw_door(document: dict[str, Any]) -> None:
    below = {path for path in document["paths"] if path.startswith("/v1/")}
    assert below == set(ROUTES)


def test_the_document_hangs_together(document: dict[str, Any]) -> None:
    assert document["info"]["title"] == "Tollgate"
    assert document["components"]["securitySchemes"]["apiKey"] == {"type": "http", "scheme": "bearer"}
    ids = [
        entry[verb]["operationId"]
        for entry in document["paths"].values()
        for verb in entry
        if "operationId" in entry[verb]
    ]
    assert len(ids) == len(set(ids))


def test_it_is_made_once(app: FastAPI) -> None:
    assert app.openapi() is app.openapi()


async def test_the_docs_page_loads_nothing_from_outside(app: FastAPI) -> None:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:  # noqa: TID251 - a test
        page = (await client.get("/docs")).text
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        answers = [await client.get(link) for link in links]
    assert len(links) == 3
    assert all(link.startswith("/docs/static/") for link in links)
    assert [answer.status_code for answer in answers] == [200, 200, 200]
