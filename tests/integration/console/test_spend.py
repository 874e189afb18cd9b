"""Do the pages about spend show what the reports say, with filters, roles and errors?"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Clock
from gateway.forecasts.tables import Anomaly
from gateway.identity.key_store import create_key
from gateway.identity.roles import Role
from gateway.identity.store import create_tenant, ensure_project
from gateway.ledger.supply_tables import SupplyHour, SupplyLine
from gateway.migrate import upgrade
from tests.support.console_app import ConsoleApp, Visitor, running_console, writing
from tests.support.factories import make_act
from tests.support.pool_files import DEFAULT_POLICY
from tests.support.spend_rows import attempt_row, book_rows

NOW = datetime(2026, 11, 15, 12, 30, tzinfo=UTC)
EVIL = "<script>alert(1)</script>"

BASELINES = """
baselines:
  naive_pool:
    usd_per_hour: 2
    step: {fixed_s: 0.01, batched_token_s: 0.0001}
    source: this test
  list_prices:
    elsewhere:
      rates: {input: "2", cached_input: "1", output: "8"}
      source: this test
"""
WRONG = {
    "by=colour": "Cannot group by",
    "filter=tenant%3Dacne": "Did you mean 'acme'?",
    "filter=nonsense": "A filter is written dimension=value",
    "by=day&order=luck": "Cannot order by",
    "period=2026-99": "A period is one of",
    "by=tenant,project,key,model": "Group by at most 3 things",
    "from=yesterday": "must be a date or an instant",
    "top=many": "is a number of rows",
}
"""Queries that make no sense, and what is said of them."""


class StandingClock(Clock):
    """A clock that stands in the middle of a month."""

    def now(self) -> datetime:
        return NOW

    def epoch_ms(self) -> int:
        return int(NOW.timestamp() * 1000)


def at(month: int, day: int, hour: int = 10) -> int:
    return int(datetime(2026, month, day, hour, tzinfo=UTC).timestamp() * 1000)


async def _fill(database: Path) -> None:
    act = make_act(StandingClock())
    async with writing(database) as session:
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(("acme", EVIL)):
            tenant = await create_tenant(session, name, act=act)
            project = await ensure_project(session, tenant, "search", act=act)
            key = await create_key(session, project, f"key {number}", act=act)
            for month, day, charge in ((10, 3, 2_000_000_000), (11, 2, 1_500_000_000), (11, 9, 1)):
                rows.append(
                    attempt_row(
                        len(rows),
                        tenant_id=tenant.id,
                        project_id=project.id,
                        key_id=key.id,
                        end_user=f"user-{day}",
                        pool=("speculative", "plain")[number],
                        tags={"team": "blue"} if number else {},
                        cached_input_tokens=100,
                        charge_usd_nanos=charge * (number + 1),
                        started_at_ms=at(month, day),
                    )
                )
        await book_rows(session, rows)
        session.add(_anomaly(rows[0]["tenant_id"]))
        await session.flush()
        hour = _bill()
        session.add(hour)
        await session.flush()
        nobody = dict.fromkeys(("project_id", "key_id", "model_alias", "task"), "")
        shared: dict[str, Any] = {
            "pool": hour.pool,
            "hour_start_ms": at(11, 9),
            "corrects_hour_ms": at(11, 9),
            **nobody,
        }
        session.add_all(
            [
                SupplyLine(line="idle", tenant_id="", cost_usd_nanos=1_250_000_000, **shared),
                SupplyLine(
                    line="request",
                    tenant_id=rows[0]["tenant_id"],
                    cost_usd_nanos=750_000_000,
                    engine_us=9_000_000,
                    attempts=1,
                    **shared,
                ),
            ]
        )


def _anomaly(tenant_id: str) -> Anomaly:
    return Anomaly(
        day_start_ms=at(11, 9, 0),
        dimension="tenant",
        value=tenant_id,
        at_ms=at(11, 9, 11),
        end_ms=at(11, 9, 11),
        window_hours=6,
        actual_usd_nanos=9_000_000_000,
        expected_usd_nanos=1_000_000_000,
        deviations_permille=8_500,
        cause_dimension="model",
        cause_value="auto",
        cause_permille=930,
    )


def _bill() -> SupplyHour:
    return SupplyHour(
        hour_start_ms=at(11, 9),
        pool="speculative",
        corrects_hour_ms=at(11, 9),
        bill_usd_nanos=2_000_000_000,
        serving_ms=3_600_000,
        busy_ms=9_000,
        replicas=1,
        gpus_per_replica=1,
        prices=[{"since_ms": 0, "kind": "on_demand", "usd_nanos_per_hour": 2_000_000_000}],
        time_source="driver",
        method="engine-time/1",
        weights="1:1:1",
        attempts=1,
        booked_before_ms=at(11, 9, 12),
        frozen_at_ms=at(11, 9, 12),
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spend") / "filled.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    asyncio.run(_fill(path))
    return path


@pytest.fixture
async def console(tmp_path: Path, filled: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConsoleApp]:
    monkeypatch.chdir(tmp_path)
    policy = tmp_path / "policy.yaml"
    policy.write_text(DEFAULT_POLICY.read_text() + BASELINES)
    async with running_console(tmp_path, filled, clock=StandingClock(), policy=policy) as running:
        yield running


@pytest.fixture
async def visitor(console: ConsoleApp) -> Visitor:
    return await console.visitor(Role.VIEWER)


async def test_spend_is_what_the_report_says_with_what_was_before(visitor: Visitor) -> None:
    html = await visitor.get("/console/spend?compare=previous")
    text = await visitor.read("/console/spend?compare=previous")
    report = (await visitor.raw("/admin/v1/reports/spend?compare=previous")).json()
    assert report["total"]["charge_usd"] == "4.500000003"
    assert report["total"]["change"]["charge_usd"] == "-1.499999997"
    assert "4.500000003" in text
    assert "−1.49 (−25 %)" in text  # noqa: RUF001 - a minus for people
    assert EVIL in text
    assert "<script>alert" not in html


async def test_a_click_on_a_row_filters_and_a_chip_takes_the_filter_away(visitor: Visitor) -> None:
    assert "filter=tenant%3Dacme" in await visitor.get("/console/spend")
    html = await visitor.get("/console/spend?filter=tenant%3Dacme&by=model")
    assert "Tenant: <strong>acme</strong>" in html
    assert 'aria-label="Take away the filter tenant=acme"' in html
    assert 'href="/admin/v1/exports?format=xlsx&amp;group_by=model&amp;from=2026-11-01' in html
    assert "1.500000001" in await visitor.read("/console/spend?filter=tenant%3Dacme&by=model")
    # A day narrows the time, not the rows.
    html = await visitor.get("/console/spend?by=day")
    assert "period=custom&amp;from=2026-11-02&amp;to=2026-11-03&amp;by=day" in html
    text = await visitor.read("/console/spend?period=custom&from=2026-11-02&to=2026-11-03&by=day")
    assert "2026-11-02 to before 2026-11-03, UTC" in text
    assert "4.500000000" in text


async def test_what_reads_every_attempt_follows_the_page(visitor: Visitor) -> None:
    page = await visitor.get("/console/spend?by=tag:team&end_users=1")
    assert 'hx-get="/console/spend/report?' in page
    text = await visitor.read("/console/spend/report?by=tag:team&end_users=1")
    assert "blue" in text
    assert "untagged" in text
    assert "per end user, of 2" in text


async def test_a_wrong_question_is_answered_by_a_sentence(visitor: Visitor) -> None:
    for query, said in WRONG.items():
        assert said in await visitor.read(f"/console/spend?{query}", status_code=400), query
    assert "Choose another period" in await visitor.read("/console/spend?period=2025-10")


async def test_bills_of_pools_stand_beside_charges(visitor: Visitor) -> None:
    page = await visitor.get("/console/spend/supply")
    assert 'hx-get="/console/spend/supply/report?' in page
    html = await visitor.get("/console/spend/supply/report?period=this-month&by=tenant")
    text = await visitor.read("/console/spend/supply/report?period=this-month&by=tenant")
    report = (await visitor.raw("/admin/v1/reports/supply?group_by=tenant")).json()
    assert report["lines"]["idle"] == "1.250000000"
    for amount in (report["bill_usd"], report["lines"]["idle"], report["recovery_usd"].removeprefix("-")):
        assert amount in text
    assert '"label": "Idle"' in html  # in the chart of the bill's course


async def test_savings_say_how_they_are_known(visitor: Visitor) -> None:
    assert "Comparing with the policy" in await visitor.read("/console/spend/savings")
    text = await visitor.read("/console/spend/savings/report")
    report = (await visitor.raw("/admin/v1/reports/savings")).json()
    assert report["comparisons"]
    for made in report["comparisons"]:
        assert f"Against {made['baseline']}" in text
        assert made["saved_usd"].removeprefix("-") in text


async def test_a_forecast_follows_its_page_and_an_anomaly_leads_to_its_day(visitor: Visitor) -> None:
    assert "Forecasting" in await visitor.read("/console/spend/forecast")
    text = await visitor.read("/console/spend/forecast/report?by=pool")
    assert "By pool" in text
    assert "seasonal-naive" in text
    assert "back-tested from" in text
    html = await visitor.get("/console/spend/anomalies")
    assert "Tenant acme" in html
    assert "model <strong>auto</strong>: 93 % of the excess" in html
    assert "/console/spend?period=custom&amp;from=2026-11-09&amp;to=2026-11-10&amp;by=model" in html
