"""Which months are open and which are closed, and what must one know before closing one? `/console/periods`.

Closing, like every change, is a call of the admin API: the page shows the books' state before and what the
closing said afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.closing import Check, verify_period
from gateway.console.aside import Aside
from gateway.console.navigation import HOME
from gateway.console.pages import page
from gateway.console.spend import words
from gateway.db import database_ms
from gateway.dependencies import ActorDep, Services, ServicesDep, SessionDep
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.root_key import load_root_keys
from gateway.identity.store import tenant_names
from gateway.jobs.auditor import decoded
from gateway.jobs.leases import job_states
from gateway.jobs.scheduler import RECENT, WHOLE
from gateway.ledger.cuts import moment_of
from gateway.ledger.invariants import Report
from gateway.ledger.periods import Month, PeriodState, list_periods, month_named
from gateway.ledger.reports import Shape, SpendReport, cut_of, spend_report, used_total
from gateway.seals import Signer
from gateway.spend_names import read_names

PATH = f"{HOME}/periods"
TENANTS_MAX = 100
OPEN_MONTHS_READ = 3
"""Charges of so many open months are added up for the list; of others the month's own page tells."""

TABS = (
    ("months", "Months", ""),
    ("adjustments", "Adjustments", "/adjustments"),
    ("bills", "Bills", "/bills"),
)
"""Name, title, what their address has more."""


@dataclass(frozen=True, slots=True)
class MonthView:
    """A month and what was charged in it."""

    state: PeriodState
    report: SpendReport
    tenant_ids: dict[str, str]
    """By what tenants are called."""
    late_usd_nanos: int
    """Used in it and booked after it was closed: counts in a later one."""


class PeriodPages:
    """Months."""

    def __init__(self, aside: Aside) -> None:
        self._aside = aside

    async def show_months(self, services: ServicesDep, session: SessionDep, *, actor: ActorDep) -> Response:
        """All of them, the newest first."""
        states = await _states(session, services)
        return page(
            "periods.html",
            section="periods",
            actor=actor,
            tabs=TABS,
            tab="months",
            states=states,
            charges=await _open_charges(session, states),
            who=who(services),
        )

    async def show_month(
        self, request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep, period: str
    ) -> Response:
        """One of them: what was charged, whether the books are right, and what can be done now.

        Raises:
            NotFound: no month, one without usage, or one to come.
        """
        month = _month_of(period)
        state = next((one for one in await _states(session, services) if one.month.id == month.id), None)
        if state is None:
            raise NotFound(f"There is no period {month.id}: nothing was used in it, or it is still to come.")
        return page(
            "period.html",
            section="periods",
            actor=actor,
            tabs=TABS,
            tab="months",
            path=PATH,
            view=await _read_month(session, state),
            verdicts=await _verdicts(session),
            is_verifying=bool(request.query_params.get("verify")),
            grace_s=services.settings.periods.grace_s,
            who=who(services),
            **words(),
        )

    async def show_verification(self, services: ServicesDep, actor: ActorDep, period: str) -> Response:
        """Whether a closed month is what it was; reads every attempt of it.

        Raises:
            NotFound: no month.
        """
        month = _month_of(period)
        signer = Signer(load_root_keys(services.settings))

        async def work(session: AsyncSession) -> list[Check]:
            return await verify_period(session, month, signer)

        checks, error = [], ""
        try:
            checks = await self._aside.read(services, work)
        except NotFound as problem:
            error = problem.caller_detail
        return page("period_verification.html", actor=actor, checks=checks, error=error)


class Who:
    """What people call those who did something."""

    def __init__(self, services: Services) -> None:
        self._admins = services.admins

    def __call__(self, actor_id: str | None) -> str:
        """The name, or the id of whoever is not known any more."""
        if actor_id is None:
            return ""
        known = self._admins.actor_with_id(actor_id)
        return actor_id if known is None else known.name


def _month_of(period: str) -> Month:
    try:
        return month_named(period)
    except InvalidRequest as error:
        raise NotFound(error.caller_detail) from None


def who(services: Services) -> Who:
    """For templates."""
    return Who(services)


async def _states(session: AsyncSession, services: Services) -> list[PeriodState]:
    grace_ms = int(services.settings.periods.grace_s * 1000)
    now_ms = await database_ms(session, services.clock)
    return await list_periods(session, now_ms=now_ms, grace_ms=grace_ms)


async def _open_charges(session: AsyncSession, states: list[PeriodState]) -> dict[str, int]:
    """Charges of the newest open months, nano-USD, by month."""
    shown = [one.month for one in states if one.closed is None][:OPEN_MONTHS_READ]
    if not shown:
        return {}
    report = await spend_report(
        session, group_by=["month"], start=moment_of(shown[-1].start_ms), end=moment_of(shown[0].end_ms)
    )
    found = {group[0]: figures.charge_usd_nanos for group, figures in report.rows}
    return {month.id: found.get(month.id, 0) for month in shown}


async def _read_month(session: AsyncSession, state: PeriodState) -> MonthView:
    start, end = _bounds(state.month)
    report = await spend_report(
        session,
        group_by=["tenant"],
        start=start,
        end=end,
        names=await read_names(session),
        shape=Shape(top=TENANTS_MAX, is_compared=True),
    )
    late = 0
    if state.closed is not None:
        used = await used_total(session, cut_of((), start, end))
        brought = sum(figures.charge_usd_nanos for figures in report.corrections.values())
        late = used.charge_usd_nanos - (report.total.charge_usd_nanos - brought)
    ids = {name: tenant_id for tenant_id, name in (await tenant_names(session)).items()}
    return MonthView(state, report, ids, late)


def _bounds(month: Month) -> tuple[datetime, datetime]:
    return moment_of(month.start_ms).astimezone(UTC), moment_of(month.end_ms).astimezone(UTC)


async def _verdicts(session: AsyncSession) -> list[tuple[str, Report | None]]:
    """What the continuous audit found last, of everything and of the last hours."""
    states = await job_states(session)
    return [
        (title, decoded(states[job].last_result) if job in states else None)
        for job, title in ((WHOLE, "Everything"), (RECENT, "The last hours"))
    ]
