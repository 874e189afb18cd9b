"""What is corrected afterwards, and who agreed: adjustments, and bills beside the ledger? Tabs of periods.

A bill is sent to the admin API, which compares it; this shows what came of it. Whoever proposed an adjustment
is not offered to approve it: a second person does.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from gateway.console.charts import Chart, Series
from gateway.console.pages import page
from gateway.console.periods import PATH, TABS, who
from gateway.dependencies import ActorDep, ServicesDep, SessionDep
from gateway.identity.store import tenant_names
from gateway.ledger.adjustments import list_proposals, proposals_of
from gateway.ledger.bills import GPU, KINDS
from gateway.ledger.closed_report import nanos_of
from gateway.ledger.cuts import previous_start
from gateway.ledger.period_tables import Reconciliation
from gateway.ledger.reconcile_store import get_reconciliation, list_reconciliations

SHOWN_MAX = 200
LINES_MAX = 500
GAPS = {
    "missing_in_ledger": "Missing in the ledger",
    "missing_in_bill": "Missing in the bill",
    "price": "Price",
    "quantity": "Quantity",
    "rounding": "Rounding",
    "time_zone": "Time zone",
    "currency": "Currency",
}
"""What people call the classes of a gap."""


async def show_adjustments(
    request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep
) -> Response:
    """Proposals, the newest first, and a form for a new one."""
    only_open = bool(request.query_params.get("open"))
    rows = await list_proposals(session, only_open=only_open)
    names = await tenant_names(session)
    return page(
        "adjustments.html",
        section="periods",
        actor=actor,
        tabs=TABS,
        tab="adjustments",
        path=PATH,
        rows=rows[:SHOWN_MAX],
        left_out=max(0, len(rows) - SHOWN_MAX),
        only_open=only_open,
        names=names,
        tenants=sorted(names.values()),
        last_month=f"{previous_start('month', services.clock.now()):%Y-%m}",
        who=who(services),
    )


async def show_bills(services: ServicesDep, session: SessionDep, *, actor: ActorDep) -> Response:
    """Bills that were compared, and a form for another one."""
    rows = await list_reconciliations(session)
    return page(
        "bills.html",
        section="periods",
        actor=actor,
        tabs=TABS,
        tab="bills",
        path=PATH,
        rows=rows[:SHOWN_MAX],
        kinds=KINDS,
        gpu=GPU,
        pools=sorted(services.registry.specs),
        last_month=f"{previous_start('month', services.clock.now()):%Y-%m}",
        who=who(services),
    )


async def show_bill(
    services: ServicesDep, session: SessionDep, *, actor: ActorDep, reconciliation: str
) -> Response:
    """One comparison, line by line.

    Raises:
        NotFound: there is none.
    """
    row = await get_reconciliation(session, reconciliation)
    result: dict[str, Any] = msgspec.json.decode(row.result)
    lines = [_line(line) for line in result["lines"]]
    off = [line for line in lines if line["gaps"]]
    return page(
        "bill.html",
        section="periods",
        actor=actor,
        tabs=TABS,
        tab="bills",
        path=PATH,
        row=row,
        is_gpu=row.kind == GPU,
        lines=(off or lines)[:LINES_MAX],
        lines_count=len(lines),
        off_count=len(off),
        classes={name: nanos_of(text) for name, text in result["classes"].items()},
        zones=result["zones_hours_ahead_of_utc"],
        tolerance=nanos_of(result["tolerance_usd_per_line"]),
        titles=GAPS,
        chart=_chart(row, lines),
        proposals=await proposals_of(session, row.id),
        who=who(services),
    )


def _line(line: dict[str, Any]) -> dict[str, Any]:
    return {
        **line,
        "day": (date(1970, 1, 1) + timedelta(days=line["day"])).isoformat(),
        "bill_usd": nanos_of(line["bill_usd"]),
        "ledger_usd": nanos_of(line["ledger_usd"]),
        "gaps": {name: nanos_of(text) for name, text in line["gaps"].items()},
    }


def _chart(row: Reconciliation, lines: list[dict[str, Any]]) -> Chart:
    days = sorted({line["day"] for line in lines})
    return Chart(
        id="bill",
        title=f"The bill and the ledger by day, USD, {row.period}",
        description="Two bars a day: what the bill says and what the ledger has.",
        across="Day, as the bill names it",
        labels=days,
        series=[
            Series("Bill", _by_day(lines, days, "bill_usd"), tone="wait"),
            Series("Ledger", _by_day(lines, days, "ledger_usd"), tone="accent"),
        ],
        unit="usd",
    )


def _by_day(lines: list[dict[str, Any]], days: list[str], name: str) -> list[int]:
    return [sum(line[name] for line in lines if line["day"] == day) for day in days]
