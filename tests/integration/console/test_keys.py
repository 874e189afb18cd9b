"""Do the pages of keys find, show and offer what the role allows, and never a secret?"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.identity.roles import Role
from gateway.migrate import upgrade
from tests.support.console_app import ConsoleApp, running_console
from tests.support.spend_rows import attempt_row, book_rows

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "empty.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def console(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ConsoleApp]:
    monkeypatch.chdir(tmp_path)
    async with running_console(tmp_path, migrated, clock=Clock()) as running:
        yield running


async def test_keys_are_issued_found_and_ended(console: ConsoleApp) -> None:
    admin, viewer = await console.visitor(), await console.visitor(Role.VIEWER)
    assert "There are no keys yet" in await viewer.read("/console/keys")
    for name in ("acme", EVIL):
        assert (await admin.send("POST", "/admin/v1/tenants", {"name": name})).status_code == 201
    made = [
        (
            await admin.send("POST", "/admin/v1/keys", {"tenant": tenant, "project": "search", "name": name})
        ).json()
        for tenant, name in (("acme", "100%_sure"), ("acme", "ci"), (EVIL, "other"))
    ]
    everything = await viewer.get("/console/keys")
    assert EVIL not in everything
    assert not any(one["key"] in everything for one in made)
    for search, ids in (("100%_", {0}), ("ACME", {0, 1}), ("onerror", {2}), (made[1]["id"], {1}), ("%", {0})):
        html = await viewer.get("/console/keys", q=search)
        assert {number for number, one in enumerate(made) if one["id"] in html} == ids
    page = f"/console/keys/{made[0]['id']}"
    revoke = f'data-api="POST /admin/v1/keys/{made[0]["id"]}/revoke"'
    assert revoke in await admin.get(page)
    assert revoke not in await viewer.get(page)
    assert "Waiting for its first request" in await viewer.read(page)
    await _first_request(console, made[0])
    text = await viewer.read(page)
    assert "Waiting for its first request" not in text
    assert "1.234567890" in text
    assert (await admin.send("POST", f"/admin/v1/keys/{made[0]['id']}/revoke")).status_code == 200
    assert made[0]["id"] in await viewer.get("/console/keys?state=revoked")
    assert made[0]["id"] not in await viewer.get("/console/keys?state=active")
    assert "A key's state is one of" in await viewer.read("/console/keys?state=lost", status_code=400)
    assert "No key" in await viewer.read("/console/keys/nobody", status_code=404)


async def _first_request(console: ConsoleApp, key: dict[str, str]) -> None:
    started_ms = console.services.clock.epoch_ms() - 100
    async with console.services.sessions() as session:
        row = attempt_row(
            1,
            tenant_id=key["tenant_id"],
            project_id=key["project_id"],
            key_id=key["id"],
            charge_usd_nanos=1_234_567_890,
            started_at_ms=started_ms,
            ended_at_ms=started_ms + 50,
        )
        await book_rows(session, [row], now_ms=started_ms + 60)
        await session.commit()


async def test_a_tenant_has_projects_keys_and_limits(console: ConsoleApp) -> None:
    admin, finance = await console.visitor(), await console.visitor(Role.FINANCE)
    assert "There are no tenants yet" in await finance.read("/console/keys/tenants")
    tenant = (await admin.send("POST", "/admin/v1/tenants", {"name": "acme"})).json()
    project = {"tenant": tenant["id"], "name": "search", "tags": {"cost_center": "4711"}}
    made = (await admin.send("POST", "/admin/v1/projects", project)).json()
    assert "acme" in await finance.read("/console/keys/tenants")
    page = f"/console/keys/tenants/{tenant['id']}"
    limit = f"/admin/v1/limits/project/{made['id']}"
    assert f'data-api="PUT {limit}"' in await finance.get(page)  # how fast is a matter of money
    assert 'data-api="POST /admin/v1/projects"' not in await finance.get(page)
    body = {"requests_per_minute": 600, "tokens_per_minute": None, "concurrent_requests": 8}
    assert (await finance.send("PUT", limit, body)).status_code == 200
    text = await finance.read(page)
    assert "600 requests/min 8 at once" in text
    assert "cost_center=4711" in text
    assert f'data-api="DELETE {limit}"' in await finance.get(page)
    assert "No tenant" in await finance.read("/console/keys/tenants/nobody", status_code=404)
