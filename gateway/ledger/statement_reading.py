"""Where are the figures of a tenant's statement read: in the ledger, or in the closed report?

A month that is open is read from the ledger as it is now. Of a closed one everything comes from its report,
which was frozen, hashed and signed: amounts, names, prices, end users. So the statement of a closed month
says the same for ever. Either way a statement that does not foot is not made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import instant_text
from gateway.errors import GatewayError
from gateway.inference import Payer
from gateway.ledger.adjustments import adjustment_total, adjustments_in
from gateway.ledger.closed_report import nanos_of
from gateway.ledger.cuts import Filter, epoch_ms, previous_range
from gateway.ledger.exports import Names
from gateway.ledger.frozen import Frozen, OfTenant, closed_around, frozen_in
from gateway.ledger.period_tables import ClosedPeriod
from gateway.ledger.report_facts import read_facts
from gateway.ledger.reports import (
    NOTHING,
    Shape,
    SpendFigures,
    SpendReport,
    control_total,
    cut_of,
    spend_report,
)
from gateway.ledger.statement import TABLES, Adjusted, Subject, TenantMonth

LINES_MAX = 200
"""Of one table; the others are one line."""
_COLUMNS = {"project": "project_id", "model": "model_alias", "task": "task"}
_NO_TENANT = OfTenant(0, ())
_Lines = list[tuple[str, SpendFigures]]


class DoesNotAddUp(GatewayError):
    """A table of a statement does not come to what the ledger has: a book is wrong."""

    code = "does_not_add_up"
    status_code = 500


async def read_month(session: AsyncSession, subject: Subject, names: Names) -> TenantMonth:
    """A tenant's month, of the session's instant.

    Raises:
        DoesNotAddUp: a table does not come to what the ledger or the closed report has.
    """
    period = await closed_around(session, epoch_ms(subject.end))
    if period is not None and period.start_ms == epoch_ms(subject.start):
        return await _of_closed(session, subject, period)
    return await _of_ledger(session, subject, names)


# --------------------------------------------------------------------------------------------- the open month
async def _of_ledger(session: AsyncSession, subject: Subject, names: Names) -> TenantMonth:
    only = (Filter("tenant", (subject.tenant_id,)),)
    reports: dict[str, SpendReport] = {}
    for dimension, _ in TABLES:
        reports[dimension] = made = await spend_report(
            session,
            group_by=[dimension],
            start=subject.start,
            end=subject.end,
            names=names,
            shape=Shape(filters=only, top=LINES_MAX, counts_end_users=dimension == "project"),
        )
        if not made.is_footed:
            raise _wrong(f"The month by {dimension} does not come to what the ledger has")
    cut = cut_of((), subject.start, subject.end, filters=only)
    earlier = previous_range(subject.start, subject.end)
    before = replace(cut, start_ms=epoch_ms(earlier[0]), end_ms=cut.start_ms)
    was_charged = (await control_total(session, before)).charge_usd_nanos
    facts, by_project = await read_facts(session, cut), reports["project"]
    return TenantMonth(
        tenant=subject.tenant,
        tables={name: _with_others(made) for name, made in reports.items()},
        total=by_project.total,
        late_usd_nanos={month: late.charge_usd_nanos for month, late in by_project.corrections.items()},
        adjustments=[
            Adjusted(each.id, each.kind, each.charge_month, each.amount_usd_nanos, each.reason)
            async for part in adjustments_in(session, cut)
            for each in part
        ],
        before_usd_nanos=was_charged + (await adjustment_total(session, before)).tenants_usd_nanos,
        end_users=by_project.end_users_total or 0,
        high_water=facts.high_water,
        high_water_at=None if facts.high_water_at_ms is None else instant_text(facts.high_water_at_ms),
        price_versions=facts.price_versions,
        are_prices_used=facts.are_prices_used,
    )


def _with_others(made: SpendReport) -> _Lines:
    lines = [(group[0], figures) for group, figures in made.rows]
    return [*lines, (f"{made.others_count} others", made.others)] if made.others_count else lines


# ------------------------------------------------------------------------------------------- the closed month
class _Rows(msgspec.Struct, frozen=True):
    columns: list[str]
    rows: list[list[Any]]


class _Ledger(msgspec.Struct, frozen=True):
    usage: _Rows
    corrections: _Rows
    adjustments: list[dict[str, Any]]
    totals: dict[str, Any]


async def _of_closed(session: AsyncSession, subject: Subject, period: ClosedPeriod) -> TenantMonth:
    frozen, tenant_id = frozen_in(period), subject.tenant_id
    ledger = msgspec.json.decode(frozen.ledger, type=_Ledger)
    own = _own(ledger.usage, tenant_id)
    late = _own(ledger.corrections, tenant_id)
    late_by_month: defaultdict[str, int] = defaultdict(int)
    for row in late:
        late_by_month[row["used_on"][: len("2026-10")]] += _figures(row).charge_usd_nanos
    total = sum(map(_figures, [*own, *late]), start=NOTHING)
    adjustments = [
        Adjusted(each["id"], each["kind"], each["charge_month"], nanos_of(each["amount_usd"]), each["reason"])
        for each in ledger.adjustments
        if each["tenant_id"] == tenant_id
    ]
    due = total.charge_usd_nanos + sum(each.amount_usd_nanos for each in adjustments)
    if due != nanos_of(ledger.totals["by_tenant_usd"].get(tenant_id, "0.000000000")):
        raise _wrong("The closed report's rows do not come to its totals")
    kept = None if frozen.tenants is None else frozen.tenants.get(tenant_id, _NO_TENANT)
    return TenantMonth(
        tenant=frozen.names.get("tenant", {}).get(tenant_id, subject.tenant),
        tables={name: _table_of(name, [*own, *late], frozen) for name, _ in TABLES},
        total=total,
        late_usd_nanos=dict(sorted(late_by_month.items())),
        adjustments=adjustments,
        before_usd_nanos=await _due_before(session, period, tenant_id),
        end_users=None if kept is None else kept.end_users,
        high_water=frozen.ledger_high_water.journal_id,
        high_water_at=frozen.ledger_high_water.at,
        price_versions=frozen.price_versions if kept is None else kept.price_versions,
        are_prices_used=kept is not None or frozen.price_versions_are == "used",
        closed=(("Closed at", frozen.closed_at), ("Signed report, SHA-256", period.report_sha256)),
    )


def _own(rows: _Rows, tenant_id: str) -> list[dict[str, Any]]:
    at = rows.columns.index("tenant_id")
    return [dict(zip(rows.columns, row, strict=True)) for row in rows.rows if row[at] == tenant_id]


def _figures(row: Mapping[str, Any]) -> SpendFigures:
    """What a row of the closed report is in the spend report's terms; see `reports.sums`."""
    is_charged, amount = row["payer"] == Payer.TENANT.value, nanos_of(row["charge_usd"])
    return SpendFigures(
        requests=row["requests"],
        failed_attempts=row["failed_attempts"],
        input_tokens=is_charged * row["input_tokens"],
        cached_input_tokens=is_charged * row["cached_input_tokens"],
        cache_write_tokens=is_charged * row["cache_write_tokens"],
        output_tokens=is_charged * row["output_tokens"],
        reasoning_tokens=is_charged * row["reasoning_tokens"],
        charge_usd_nanos=is_charged * amount,
        platform_usd_nanos=(not is_charged) * amount,
        unpriced_attempts=row["unpriced_attempts"],
        cache_hits=row["cache_hits"],
    )


def _table_of(dimension: str, rows: Sequence[Mapping[str, Any]], frozen: Frozen) -> _Lines:
    sums: defaultdict[str, SpendFigures] = defaultdict(lambda: NOTHING)
    for row in rows:
        sums[row[_COLUMNS[dimension]]] += _figures(row)
    names = frozen.names.get(dimension, {})
    shown = [names.get(each, each) for each in sums]
    lines = [
        (f"{name} ({each})" if shown.count(name) > 1 else name, sums[each])
        for name, each in zip(shown, sums, strict=True)
    ]
    lines.sort(key=lambda line: (-line[1].charge_usd_nanos, line[0]))
    rest = lines[LINES_MAX:]
    if not rest:
        return lines
    return [*lines[:LINES_MAX], (f"{len(rest)} others", sum((each for _, each in rest), start=NOTHING))]


async def _due_before(session: AsyncSession, period: ClosedPeriod, tenant_id: str) -> int:
    """Periods are closed from the first month that has anything on: before the first there was nothing."""
    before = await closed_around(session, period.start_ms)
    if before is None:
        return 0
    totals = msgspec.json.decode(frozen_in(before).ledger, type=_Totals).totals
    return nanos_of(totals["by_tenant_usd"].get(tenant_id, "0.000000000"))


class _Totals(msgspec.Struct, frozen=True):
    totals: dict[str, Any]


def _wrong(what: str) -> DoesNotAddUp:
    return DoesNotAddUp(f"{what}: `tollgate audit` says which book is wrong. No statement is made.")
