"""Can finance close a month from its pages, and nobody else; do corrections and bills look as they are?"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.identity.key_store import create_key
from gateway.identity.roles import Role
from gateway.identity.store import create_tenant, ensure_project
from gateway.migrate import upgrade
from tests.support.console_app import ConsoleApp, running_console, text_of, writing
from tests.support.factories import make_act
from tests.support.spend_rows import attempt_row, book_rows, know_price, priced

NOW = datetime(2026, 11, 15, 12, 30, tzinfo=UTC)
MONTH = "2026-10"


class StandingClock(Clock):
    """A clock that stands in the middle of a month."""

    def now(self) -> datetime:
        return NOW

    def epoch_ms(self) -> int:
        return int(NOW.timestamp() * 1000)


async def _fill(database: Path) -> None:
    clock = StandingClock()
    act = make_act(clock)
    async with writing(database) as session:
        await know_price(session)
        tenant = await create_tenant(session, "acme", act=act)
        project = await ensure_project(session, tenant, "search", act=act)
        key = await create_key(session, project, "ci", act=act)
        rows = []
        for number, (month, day) in enumerate(((10, 1), (10, 9), (10, 31), (11, 2))):
            started_ms = int(datetime(2026, month, day, 9, tzinfo=UTC).timestamp() * 1000)
            made = attempt_row(
                number,
                tenant_id=tenant.id,
                project_id=project.id,
                key_id=key.id,
                pool="plain",
                input_tokens=1_000_003 * (number + 1),
                started_at_ms=started_ms,
                ended_at_ms=started_ms + 50,
            )
            rows.append(priced(made))
        await book_rows(session, rows, now_ms=clock.epoch_ms())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("periods") / "filled.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    asyncio.run(_fill(path))
    return path


@pytest.fixture
async def console(tmp_path: Path, filled: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConsoleApp]:
    monkeypatch.chdir(tmp_path)
    async with running_console(tmp_path, filled, clock=StandingClock()) as running:
        yield running


async def test_finance_closes_a_month_and_a_viewer_cannot(console: ConsoleApp) -> None:
    viewer, finance = await console.visitor(Role.VIEWER), await console.visitor(Role.FINANCE)
    assert "due" in await finance.read("/console/periods")
    offered = 'data-api="POST /admin/v1/periods"'
    assert offered not in await viewer.get(f"/console/periods/{MONTH}")
    assert "takes the role admin or finance; yours is viewer" in await viewer.read(
        f"/console/periods/{MONTH}"
    )
    assert (await viewer.send("POST", "/admin/v1/periods", {"period": MONTH})).status_code == 403
    assert offered in await finance.get(f"/console/periods/{MONTH}")
    assert offered not in await finance.get("/console/periods/2026-11")  # it goes on
    made = await finance.send("POST", "/admin/v1/periods", {"period": MONTH})
    assert made.status_code == 201, made.text
    page = await viewer.get(f"/console/periods/{MONTH}")
    for name in ("report_sha256", "seal_sha256", "signature", "public_key"):
        assert made.json()[name] in page
    assert made.json()["charge_usd"] in text_of(page)
    assert "Closed for ever" in page
    assert offered not in page
    assert "finance" in await viewer.read("/console/periods")  # who closed it
    assert "It is what it was." in await viewer.read(f"/console/periods/{MONTH}/verification")


async def test_a_tenants_statement_is_a_document(console: ConsoleApp) -> None:
    viewer = await console.visitor(Role.VIEWER)
    page = await viewer.get(f"/console/periods/{MONTH}")
    address = next(part for part in page.split('"') if "/statements/ten_" in part)
    answer = await viewer.raw(address)
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.content.startswith(b"%PDF-")
    assert (await viewer.raw(f"/admin/v1/periods/{MONTH}/statements/nobody")).status_code == 404


async def test_a_month_that_nobody_used_is_told(console: ConsoleApp) -> None:
    viewer = await console.visitor(Role.VIEWER)
    assert "nothing was used in it" in await viewer.read("/console/periods/2025-01", status_code=404)
    assert "A period is a UTC month" in await viewer.read("/console/periods/soon", status_code=404)
    assert "is not closed" in await viewer.read(f"/console/periods/{MONTH}/verification")


async def test_one_proposes_and_another_one_is_offered_to_approve(console: ConsoleApp) -> None:
    first, second = (
        await console.visitor(Role.FINANCE, name="ann"),
        await console.visitor(Role.FINANCE, name="bo"),
    )
    proposal = {"kind": "credit", "tenant": "acme", "amount_usd": "-12.50", "reason": "<b>Outage</b>"}
    made = await first.send("POST", "/admin/v1/adjustments", proposal)
    assert made.status_code == 201, made.text
    approve = f'data-api="POST /admin/v1/adjustments/{made.json()["id"]}/approve"'
    mine = await first.get("/console/periods/adjustments")
    assert approve not in mine
    assert "a second person approves it" in mine
    assert "&lt;b&gt;Outage" in mine
    theirs = await second.get("/console/periods/adjustments")
    assert approve in theirs
    assert "-12.500000000" in text_of(theirs)
    assert "reject" not in await (await console.visitor(Role.VIEWER)).get("/console/periods/adjustments")
    done = await second.send("POST", f"/admin/v1/adjustments/{made.json()['id']}/approve")
    assert done.status_code == 200, done.text
    assert "There are no proposals" in await second.read("/console/periods/adjustments?open=1")
    assert "bo" in await second.read("/console/periods/adjustments")


async def test_a_bill_stands_beside_the_ledger_with_its_gaps(console: ConsoleApp) -> None:
    finance = await console.visitor(Role.FINANCE)
    assert "No bill was compared yet" in await finance.read("/console/periods/bills")
    bill = "day,pool,quantity,amount\n2026-10-01,plain,1000113,2.00\n2026-10-20,plain,1000,7.00\n"
    body = {"period": MONTH, "file_name": "invoice.csv", "file": bill}
    made = await finance.send("POST", "/admin/v1/reconciliations", body)
    assert made.status_code == 201, made.text
    view = made.json()
    assert "invoice.csv" in await finance.read("/console/periods/bills")
    text = await finance.read(f"/console/periods/bills/{view['id']}")
    assert "Missing in the ledger 7.000000000" in text
    for amount in (view["bill_usd"], view["ledger_usd"], *view["classes"].values()):
        assert amount in text
    assert "There is no reconciliation" in await finance.read("/console/periods/bills/rec_0", status_code=404)
