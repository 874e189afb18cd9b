"""Do the operators' pages show what is, and offer nobody what his role refuses?"""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from backends.pool import ReplicaLoad, ReplicaState
from gateway.admin.policy_check import READER, RETRY_AFTER_S, WAITING_MAX
from gateway.app import create_app
from gateway.dependencies import Services
from gateway.identity.admin_store import create_admin_key
from gateway.identity.key_store import create_key
from gateway.identity.roles import Role
from gateway.identity.store import create_tenant, ensure_project
from gateway.migrate import upgrade
from gateway.settings import Settings
from tests.support.factories import make_act
from tests.support.pool_files import DEFAULT_POLICY, write_pools
from tests.support.spend_rows import attempt_row, book_rows

ADMIN_KEY = "tga-a-key-for-the-operations-test-only-012345"
HTTP = "http://gateway.test"
EVIL = "<script>alert('x')</script>"
REQUEST = "req_01a20459e9f81f1f57340f10c2b9ecf9"
Browser = httpx.AsyncClient  # noqa: TID251 - a test's client


class Site:
    """The running app, and people with browsers."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.browser = self.visitor()

    @property
    def services(self) -> Services:
        services: Services = self.app.state.runtime.current()
        return services

    def visitor(self) -> Browser:
        return Browser(transport=httpx.ASGITransport(self.app), base_url=HTTP)

    async def log_in(self, key: str = ADMIN_KEY) -> None:
        answer = await self.browser.post("/console/login", data={"key": key}, headers={"origin": HTTP})
        assert answer.status_code == 303

    async def page(self, path: str, status: int = 200) -> str:
        answer = await self.browser.get(path)
        assert answer.status_code == status, answer.text
        assert " style=" not in answer.text
        return answer.text

    async def call(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.browser.post(path, json=body, headers={"origin": HTTP, "x-tollgate-console": "1"})


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    await asyncio.to_thread(upgrade, f"sqlite+aiosqlite:///{state / 'tollgate.db'}")
    urls = {"speculative": ["http://127.0.0.1:9"], "plain": ["http://127.0.0.1:9"]}
    settings = Settings(
        state_dir=state,
        pools=write_pools(tmp_path / "pools", urls),
        policy=DEFAULT_POLICY,
        admin_key=SecretStr(ADMIN_KEY),
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        found = Site(app)
        await found.log_in()
        yield found


async def book(site: Site, *rows: dict[str, Any]) -> str:
    """Book attempts of a new tenant; its id."""
    act = make_act(site.services.clock)
    now_ms = site.services.clock.epoch_ms()
    async with site.services.sessions() as database:
        tenant = await create_tenant(database, EVIL, act=act)
        project = await ensure_project(database, tenant, "p", act=act)
        await create_key(database, project, "k", act=act)
        shown = [
            attempt_row(number, **{"tenant_id": tenant.id, "started_at_ms": now_ms - 1_000 * number} | row)
            for number, row in enumerate(rows)
        ]
        if shown:
            await book_rows(database, shown)
        await database.commit()
    return tenant.id


async def test_traffic_lists_requests_filters_them_and_explains_one(site: Site) -> None:
    made_ms = int(REQUEST.removeprefix("req_")[:12], 16)
    await book(
        site,
        {"task": "<b>", "client_request_id": "theirs"},
        {"pool": "plain", "replica": "plain-0", "task": "chat", "state": "failed", "error_code": "no_target"},
        {"request_id": REQUEST, "started_at_ms": made_ms, "draft_steps": 5, "draft_tokens": 15}
        | {"accepted_tokens": 6, "queue_ms": 2.0, "generation_ms": 30.0, "hold_usd_nanos": 5_000_000},
    )
    page = await site.page("/console/traffic")
    assert EVIL not in page
    assert "&lt;b&gt;" in page
    assert "no_target" in page
    assert 'hx-get="/console/traffic"' in page
    only = await site.page("/console/traffic?state=errors&pool=plain")
    assert "no_target" in only
    assert "&lt;b&gt;" not in only
    assert 'hx-get="/console/traffic?pool=plain&amp;state=errors"' in only
    assert "No request matches." in await site.page("/console/traffic?over_ms=50")
    assert "theirs" in await site.page("/console/traffic?q=theirs")
    for wrong in ("over_ms=fast", "tenant=nobody", "from=yesterday", "state=odd"):
        assert 'role="alert"' in await site.page(f"/console/traffic?{wrong}", 400)
    found = await site.browser.get(f"/console/traffic?q={REQUEST}")
    assert (found.status_code, found.headers["location"]) == (303, f"/console/traffic/{REQUEST}")
    receipt = await site.page(f"/console/traffic/{REQUEST}")
    assert "engine&#39;s queue 2.0 ms" in receipt
    assert "40 % of 15 drafted tokens accepted, 2.20 tokens per step" in receipt
    assert "There is no request" in await site.page("/console/traffic/req_zzz", 404)
    chart = await site.page("/console/traffic/pulse?state=errors")
    assert '"label": "Errors"' in chart


async def test_pools_say_what_needs_attention_and_show_acceptance(site: Site) -> None:
    registry = site.services.registry
    await book(
        site, *({"state": "failed", "payer": "platform", "error_code": "upstream_timeout"} for _ in "abc")
    )
    # As late as can be: the monitor, which runs, knows of other replicas.
    registry.set_replicas("speculative", {"a": "http://127.0.0.1:9", "b": "http://127.0.0.1:9"})
    registry.set_state("a", ReplicaState.READY)
    registry.set_load("a", ReplicaLoad(32, 40, 0.5, 0, 0, 0, 0, None, None, None, 0.0))
    registry.set_state("b", ReplicaState.UNHEALTHY, "its <engine> died")
    page = await site.page("/console/pools")
    assert "a: requests wait in the engine&#39;s queue" in page
    assert "40 wait while 32 run of 32 seats" in page
    assert "its &lt;engine&gt; died" in page
    assert "3 of 3 attempts in 15 min: 3 upstream_timeout" in page
    assert "plain: no replica can take a request" in page
    assert page.count('class="h') >= 12  # a cell for each task
    one = await site.page("/console/pools/speculative")
    assert "Nobody measured this pool." in one
    assert 'hx-get="/console/pools/speculative/history"' in one
    assert '"label": "Failed attempts"' in await site.page("/console/pools/speculative/history")
    assert "There is no pool" in await site.page("/console/pools/nowhere", 404)
    await site.page("/console/pools/nowhere/history", 404)


async def test_policies_are_told_compared_and_checked(site: Site) -> None:
    text = DEFAULT_POLICY.read_text()
    page = await site.page("/console/policies")
    assert "Roll back to" not in page  # there is nothing before it
    other = text.replace("max_tokens_default: 256", "max_tokens_default: 128")
    stored = (await site.call("/admin/v1/policies", {"text": other, "message": "<i>shorter</i>"})).json()
    page = await site.page("/console/policies")
    assert "&lt;i&gt;shorter&lt;/i&gt;" in page
    shown = await site.page(f"/console/policies/version/{stored['version']}")
    assert "A call that states no limit on its output gets 128 tokens." in shown
    assert f'data-api="POST /admin/v1/policies/{stored["version"].replace("@", "%40")}/activate"' in shown
    diff = await site.page(f"/console/policies/diff?to={stored['version']}")
    assert '<tr class="removed">' in diff
    assert "max_tokens_default: 128" in diff
    assert "They say the same." in await site.page("/console/policies/diff")
    editor = await site.page(f"/console/policies/edit?from={stored['version']}")
    assert "max_tokens_default: 128" in editor
    assert (await site.browser.get("/console/policies/schema")).json()["title"] == "Tollgate routing policy"
    await site.page("/console/policies/version/none", 404)
    assert "None. A stored version" in await site.page("/console/policies/shadow")
    candidate = DEFAULT_POLICY.read_text().replace("max_tokens_default: 256", "max_tokens_default: 300")
    order = {"text": candidate, "percent": 10, "budget_usd": "2.5"}
    started = await site.call("/admin/v1/policies/shadow", order)
    assert started.status_code == 201, started.text
    shown = await site.page("/console/policies/shadow")
    assert started.json()["version"] in shown
    assert "2.50" in shown
    assert (await site.call("/admin/v1/policies/shadow/stop", {"message": "seen enough"})).status_code == 200
    assert "seen enough" in await site.page("/console/policies/shadow")

    checked = (await site.call("/admin/v1/policies/check", {"text": other})).json()
    assert (checked["version"], checked["is_valid"]) == (stored["version"], True)
    broken = (
        await site.call("/admin/v1/policies/check", {"text": text.replace("[plain, spec", "[plan, spec")})
    ).json()
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "creative: [plain" in each)
    assert not broken["is_valid"]
    assert (broken["findings"][0]["line"], broken["findings"][0]["severity"]) == (line, "error")
    keyed = text + "\nexternal: {mini: {model: openai/gpt-4o-mini, api_key: openai, max_model_len: 10}}\n"
    keyed = keyed.replace(
        "    pools: [speculative, plain]\n", "    pools: [speculative, plain]\n    overflow: [mini]\n", 1
    )
    missing = (await site.call("/admin/v1/policies/check", {"text": keyed})).json()["findings"]
    assert "TOLLGATE_EXTERNAL_KEYS__OPENAI" in " ".join(each["message"] for each in missing)
    assert (await site.call("/admin/v1/policies/check", {"text": "x" * 500_001})).status_code == 413
    change = (await site.call("/admin/v1/policies/diff", {"text": other})).json()
    assert [(each["path"], each["before"], each["after"]) for each in change["differences"]] == [
        ("max_tokens_default", 256, 128)
    ]
    assert (await site.call("/admin/v1/policies/diff", {"text": "a: ["})).status_code == 400


async def test_a_text_too_many_is_told_when_to_come_again(site: Site) -> None:
    await site.log_in()
    text = await asyncio.to_thread(Path(DEFAULT_POLICY).read_text)
    is_read = threading.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(1 + WAITING_MAX):
            tasks.create_task(READER.read(is_read.wait, 60))
        await asyncio.sleep(0)
        for path in ("check", "diff"):
            refused = await site.call(f"/admin/v1/policies/{path}", {"text": text})
            assert refused.status_code == 503, refused.text
            assert refused.headers["retry-after"] == str(RETRY_AFTER_S)
            error = refused.json()["error"]
            assert error["code"] == "overloaded"
            assert f"{1 + WAITING_MAX} texts are asked about already: try again in 2 s" in error["message"]
        is_read.set()
    assert (await site.call("/admin/v1/policies/check", {"text": text})).status_code == 200


async def test_the_audit_reads_as_what_changed(site: Site) -> None:
    tenant = await book(site)
    answer = await site.browser.patch(
        f"/admin/v1/tenants/{tenant}",
        json={"is_internal_only": False},
        headers={"origin": HTTP, "x-tollgate-console": "1"},
    )
    assert answer.status_code == 200
    page = await site.page(f"/console/audit?object={tenant}&action=tenant")
    assert "tenant.update" in page
    assert "<del>true</del>" in page
    assert "<ins>false</ins>" in page
    assert "each chained to the one before" in page
    assert "No entry matches." in await site.page("/console/audit?actor=nobody")
    assert "is no instant" in await site.page("/console/audit?from=soon", 400)


async def test_a_viewer_is_offered_nothing_that_changes(site: Site) -> None:
    text = DEFAULT_POLICY.read_text().replace("max_tokens_default: 256", "max_tokens_default: 128")
    stored = (await site.call("/admin/v1/policies", {"text": text})).json()
    async with site.services.sessions() as database:
        issued = await create_admin_key(database, "ada", Role.VIEWER, act=make_act(site.services.clock))
        await database.commit()
    deadline_s = asyncio.get_running_loop().time() + 60
    while site.services.admins.actor_with_id(issued.id) is None:
        assert asyncio.get_running_loop().time() < deadline_s
        await asyncio.sleep(0.02)
    site.browser = site.visitor()
    await site.log_in(issued.secret)
    for path in (
        "/console/traffic",
        "/console/pools",
        "/console/pools/plain",
        "/console/policies",
        f"/console/policies/version/{stored['version']}",
        "/console/policies/edit",
        "/console/audit",
    ):
        page = await site.page(path)
        assert "data-api=" not in page
    assert "may try and compare, not publish" in await site.page("/console/policies/edit")
    assert (await site.call("/admin/v1/policies/publish", {"text": text})).status_code == 403
    assert (await site.call("/admin/v1/policies/check", {"text": text})).status_code == 200
