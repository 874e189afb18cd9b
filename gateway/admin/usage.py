"""What was spent? GET /admin/v1/reports/spend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query

from gateway.admin.burn_views import BurnDownsView, burn_downs
from gateway.admin.spend import as_json, period
from gateway.dependencies import ServicesDep, SessionDep
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.reports import ORDERS
from gateway.spend_asked import Asked, make_report

router = APIRouter(prefix="/admin/v1", tags=["reports"])

Since = Annotated[str | None, Query(alias="from", description="ISO 8601; default: this month's start")]
Until = Annotated[str | None, Query(alias="to", description="ISO 8601; default: this month's end")]
GroupBy = Annotated[
    str,
    Query(
        description="comma list of tenant, project, key, end_user, model, pool, task, policy, price,"
        " tag:<name>, day, week, month; empty: the total alone"
    ),
]
Filters = Annotated[
    list[str] | None,
    Query(
        alias="filter",
        description="dimension=value, such as pool=plain or tag:team=search; several of one dimension mean"
        " any of them, an empty value means none",
    ),
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report is asked for in a query."""

    group_by: GroupBy = "tenant"
    since: Since = None
    until: Until = None
    filters: Filters = None
    order: Annotated[str, Query(description=f"one of {', '.join(ORDERS)}")] = "charge"
    top: Annotated[int | None, Query(description="rows to show; the others are added up")] = None
    compare: Annotated[Literal["previous"] | None, Query(description="with the period before")] = None
    end_users: Annotated[bool, Query(description="count distinct end users; reads every attempt")] = False


@router.get("/reports/spend", summary="Spend by any combination of dimensions")
async def spend(
    services: ServicesDep, session: SessionDep, wanted: Annotated[Wanted, Depends()]
) -> dict[str, Any]:
    """The report as JSON, money as decimal strings in USD; it foots to the ledger to the nano-dollar.

    Raises:
        InvalidRequest: an unknown dimension, filter or order, or an unreadable instant.
        NotFound: a filter names a tenant, project or key that does not exist.
    """
    start, end = period(wanted.since, wanted.until, services.clock.now())
    report = await make_report(
        session,
        Asked(
            group_by=dimensions_of(wanted.group_by),
            start=start,
            end=end,
            filters=wanted.filters or (),
            order=wanted.order,
            top=wanted.top,
            is_compared=wanted.compare is not None,
            counts_end_users=wanted.end_users,
        ),
    )
    return as_json(report, generated_at_ms=services.clock.epoch_ms())


def dimensions_of(text: str) -> list[str]:
    """The names of a comma list."""
    return [name.strip() for name in text.split(",")] if text.strip() else []


@router.get("/reports/budgets", summary="How fast budgets burn down, and when they run out")
async def budgets(services: ServicesDep, session: SessionDep) -> BurnDownsView:
    """Every budget in force, at its pace of late; the first to run out first."""
    await take_snapshot(session)
    return BurnDownsView(budgets=await burn_downs(session, now_ms=services.clock.epoch_ms()))
