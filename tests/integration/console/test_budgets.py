"""Do the pages of budgets show how they stand, and offer changes to those who may make them?"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.console.budgets import level_of
from gateway.identity.roles import Role
from gateway.identity.store import create_tenant
from gateway.ledger.budget_store import BudgetState
from gateway.ledger.tables import Budget, BudgetWindow
from gateway.migrate import upgrade
from tests.support.console_app import ConsoleApp, running_console
from tests.support.factories import make_act

BUDGET = {"name": "acme-month", "scope": "tenant", "of": "acme", "window": "month", "limit_usd": "100"}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("budgets") / "empty.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def console(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ConsoleApp]:
    monkeypatch.chdir(tmp_path)
    async with running_console(tmp_path, migrated, clock=Clock()) as running:
        async with running.services.sessions() as session:
            await create_tenant(session, "acme", act=make_act())
            await session.commit()
        yield running


async def test_a_budget_is_made_seen_changed_and_retired(console: ConsoleApp) -> None:
    finance, viewer = await console.visitor(Role.FINANCE), await console.visitor(Role.VIEWER)
    assert "There are no budgets" in await viewer.read("/console/budgets")
    assert 'data-api="POST /admin/v1/budgets"' in await finance.get("/console/budgets")
    assert 'data-api="POST /admin/v1/budgets"' not in await viewer.get("/console/budgets")
    made = (await finance.send("POST", "/admin/v1/budgets", BUDGET)).json()
    await _use(console, made["id"], 42_500_000_000)
    text = await viewer.read("/console/budgets")
    assert "acme-month" in text
    assert "42.500000000" in text
    assert "42.5 % used" in text
    path = f"/console/budgets/{made['id']}"
    assert "57.500000000" in await viewer.read(path)  # left
    change = f'data-api="PATCH /admin/v1/budgets/{made["id"]}"'
    assert change in await finance.get(path)
    assert 'value="100.00"' in await finance.get(path)
    assert change not in await viewer.get(path)
    retired = await finance.send("POST", f"/admin/v1/budgets/{made['id']}/retire")
    assert retired.status_code == 200
    assert "There are no budgets" in await viewer.read("/console/budgets")
    assert "acme-month" in await viewer.read("/console/budgets?retired=1")
    assert "it binds nobody" in await viewer.read(path)
    assert "No budget" in await viewer.read("/console/budgets/none", status_code=404)


async def _use(console: ConsoleApp, budget_id: str, amount: int) -> None:
    async with console.services.sessions() as session:
        start = console.services.clock.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        window = BudgetWindow(
            budget_id=budget_id,
            window_start_ms=int(start.timestamp() * 1000),
            limit_usd_nanos=100_000_000_000,
            limit_highest_usd_nanos=100_000_000_000,
            posted_usd_nanos=amount,
        )
        await session.merge(window)
        await session.commit()


@pytest.mark.parametrize(
    ("limit", "posted", "leased", "used", "held", "is_over"),
    [
        (1000, 250, 100, 250, 100, False),
        (1000, 1500, 100, 1000, 0, True),
        (1000, 950, 500, 950, 50, False),
        (0, 0, 0, 0, 0, False),
        (0, 5, 0, 1000, 0, True),
    ],
)
def test_a_bar_is_never_longer_than_the_whole(
    limit: int, posted: int, leased: int, used: int, held: int, *, is_over: bool
) -> None:
    budget = Budget(
        id="bud_1",
        name="one",
        scope="tenant",
        scope_id="ten_1",
        tenant_id=None,
        window="month",
        limit_usd_nanos=limit,
        is_hard=True,
        alert_percents=[],
        created_at_ms=0,
    )
    level = level_of(BudgetState(budget, 0, None, posted_usd_nanos=posted, leased_usd_nanos=leased))
    assert (level.used, level.held, level.is_over) == (used, held, is_over)
