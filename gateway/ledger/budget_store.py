"""How are budgets kept? Their SQL; flushes, never commits.

Nothing is ever deleted: postings refer to it. What is not wanted any more is retired and binds nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway import audit
from gateway.audit import Act
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.inference import new_id
from gateway.ledger.buckets import BudgetRecord, Scope, Window, window_at
from gateway.ledger.tables import Budget, BudgetAlert, BudgetWindow
from gateway.money import NANOS_PER_USD, USD_MAX
from gateway.paging import Page, PageRequest, page_of, seek

TOPIC = "budgets"
"""Raised with every change to a budget."""
ALERT_PERCENTS = (50, 80, 100)
ALERTS_MAX = 10
NAME_CHARS = 128
WINDOWS_SHOWN = 12
"""A year of months."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose spending a budget shall count, looked up by whoever knows tenants, projects and keys."""

    scope: Scope
    scope_id: str
    tenant_id: str | None


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget and how much of it is used in the window of an instant."""

    budget: Budget
    window_start_ms: int
    window_end_ms: int | None
    posted_usd_nanos: int = 0
    leased_usd_nanos: int = 0
    unattributed_usd_nanos: int = 0
    overage_usd_nanos: int = 0

    @property
    def used_permille(self) -> int | None:
        """Thousandths of the limit that are booked, rounded down; None: the limit is 0."""
        limit = self.budget.limit_usd_nanos
        return None if not limit else self.posted_usd_nanos * 1000 // limit

    @property
    def left_usd_nanos(self) -> int:
        """What is neither booked nor lent; below zero if a soft limit is passed or a hard one was lowered."""
        used = self.posted_usd_nanos + self.leased_usd_nanos + self.unattributed_usd_nanos
        return self.budget.limit_usd_nanos - used


async def create_budget(
    session: AsyncSession,
    name: str,
    *,
    owner: Owner,
    window: Window,
    limit_usd_nanos: int,
    is_hard: bool,
    act: Act,
    alert_percents: Sequence[int] = ALERT_PERCENTS,
) -> Budget:
    """A new budget; it binds from the next request on, and what was spent before does not count.

    Raises:
        InvalidRequest: the name, the limit or the alerts are out of range.
        Conflict: the name is taken.
    """
    budget = Budget(
        id=new_id("bud_", act.at_ms),
        name=_checked_name(name),
        scope=owner.scope.value,
        scope_id=owner.scope_id,
        tenant_id=owner.tenant_id,
        window=window.value,
        limit_usd_nanos=_checked_limit(limit_usd_nanos),
        is_hard=is_hard,
        alert_percents=_checked_alerts(alert_percents),
        created_at_ms=act.at_ms,
    )
    taken = await session.execute(select(col(Budget.id)).where(col(Budget.name) == name))
    if taken.first() is not None:
        raise Conflict(_taken(name))
    await audit.write(session, act, "budget.create", row=budget, conflict=_taken(name))
    return budget


async def get_budget(session: AsyncSession, name_or_id: str, *, for_change: bool = False) -> Budget:
    """The budget of that name or id.

    Raises:
        NotFound: there is none.
    """
    statement = select(Budget).where((col(Budget.name) == name_or_id) | (col(Budget.id) == name_or_id))
    if for_change:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    budget = (await session.execute(statement)).scalars().first()
    if budget is None:
        raise NotFound(f"No budget {name_or_id[:128]!r}; `tollgate budgets list` shows the known ones.")
    return budget


async def update_budget(
    session: AsyncSession,
    name_or_id: str,
    *,
    act: Act,
    name: str | None = None,
    limit_usd_nanos: int | None = None,
    is_hard: bool | None = None,
    alert_percents: Sequence[int] | None = None,
) -> Budget:
    """Change what is given; None leaves it. A lowered limit binds new slices at once.

    Raises:
        NotFound: no such budget.
        Conflict: it is retired, or the new name is taken.
        InvalidRequest: a value is out of range.
    """
    budget = await get_budget(session, name_or_id, for_change=True)
    becomes_hard = bool(is_hard) and not budget.is_hard
    if budget.retired_at_ms is not None:
        raise Conflict(f"Budget {budget.name!r} is retired and cannot be changed; create a new one.")
    given: dict[str, Any] = {
        "name": None if name is None else _checked_name(name),
        "limit_usd_nanos": None if limit_usd_nanos is None else _checked_limit(limit_usd_nanos),
        "is_hard": is_hard,
        "alert_percents": None if alert_percents is None else _checked_alerts(alert_percents),
    }
    changes = {field: value for field, value in given.items() if value is not None}
    conflict = _taken(name or budget.name)
    await audit.write(session, act, "budget.update", row=budget, changes=changes, conflict=conflict)
    if limit_usd_nanos is not None:
        highest = col(BudgetWindow.limit_highest_usd_nanos)
        await session.execute(
            update(BudgetWindow)
            .where(col(BudgetWindow.budget_id) == budget.id)
            .values(
                limit_usd_nanos=limit_usd_nanos,
                limit_highest_usd_nanos=case((highest < limit_usd_nanos, limit_usd_nanos), else_=highest),
            )
        )
    if becomes_hard:
        # While it was soft there was no limit that held: what it came to by now is no overage.
        reached = (
            col(BudgetWindow.posted_usd_nanos)
            + col(BudgetWindow.leased_usd_nanos)
            + col(BudgetWindow.unattributed_usd_nanos)
            - col(BudgetWindow.overage_usd_nanos)
        )
        await session.execute(
            update(BudgetWindow)
            .where(
                col(BudgetWindow.budget_id) == budget.id, col(BudgetWindow.limit_highest_usd_nanos) < reached
            )
            .values(limit_highest_usd_nanos=reached)
        )
    return budget


async def retire_budget(session: AsyncSession, name_or_id: str, *, act: Act) -> Budget:
    """Let it bind nobody from now on; retiring twice keeps the first instant.

    Raises:
        NotFound: no such budget.
    """
    budget = await get_budget(session, name_or_id, for_change=True)
    if budget.retired_at_ms is None:
        await audit.write(session, act, "budget.retire", row=budget, changes={"retired_at_ms": act.at_ms})
    return budget


async def page_budgets(
    session: AsyncSession,
    page: PageRequest,
    *,
    now_ms: int,
    scope: Scope | None = None,
    scope_id: str | None = None,
    with_retired: bool = False,
) -> Page[BudgetState]:
    """Budgets and how they stand now, the oldest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = select(Budget)
    if scope is not None:
        statement = statement.where(col(Budget.scope) == scope.value)
    if scope_id is not None:
        statement = statement.where(col(Budget.scope_id) == scope_id)
    if not with_retired:
        statement = statement.where(col(Budget.retired_at_ms).is_(None))
    statement = seek(statement, page, at=col(Budget.created_at_ms), row_id=col(Budget.id))
    budgets = (await session.execute(statement)).scalars().all()
    states = [await state_of(session, budget, now_ms=now_ms) for budget in budgets]
    return page_of(states, page, lambda state: (state.budget.created_at_ms, state.budget.id))


async def state_of(session: AsyncSession, budget: Budget, *, now_ms: int) -> BudgetState:
    """How a budget stands in the window of an instant."""
    start_ms, end_ms = window_at(Window(budget.window), now_ms)
    found = await session.get(BudgetWindow, (budget.id, start_ms), populate_existing=True)
    if found is None:
        return BudgetState(budget, start_ms, end_ms)
    return BudgetState(
        budget,
        start_ms,
        end_ms,
        posted_usd_nanos=found.posted_usd_nanos,
        leased_usd_nanos=found.leased_usd_nanos,
        unattributed_usd_nanos=found.unattributed_usd_nanos,
        overage_usd_nanos=found.overage_usd_nanos,
    )


async def alerts_in(session: AsyncSession, budget: Budget, window_start_ms: int) -> list[BudgetAlert]:
    """What was told of a budget in one of its windows, the first first."""
    found = await session.execute(
        select(BudgetAlert)
        .where(col(BudgetAlert.budget_id) == budget.id, col(BudgetAlert.window_start_ms) == window_start_ms)
        .order_by(col(BudgetAlert.percent))
    )
    return list(found.scalars())


async def last_windows(
    session: AsyncSession, budget: Budget, *, count: int = WINDOWS_SHOWN
) -> list[BudgetWindow]:
    """The windows in which a budget was used, the newest first."""
    found = await session.execute(
        select(BudgetWindow)
        .where(col(BudgetWindow.budget_id) == budget.id)
        .order_by(col(BudgetWindow.window_start_ms).desc())
        .limit(count)
        .execution_options(populate_existing=True)
    )
    return list(found.scalars())


async def live_budgets(session: AsyncSession) -> list[BudgetRecord]:
    """Every budget that binds somebody, by id."""
    found = await session.execute(
        select(Budget).where(col(Budget.retired_at_ms).is_(None)).order_by(col(Budget.id))
    )
    return [record_of(budget) for budget in found.scalars()]


def record_of(budget: Budget) -> BudgetRecord:
    """A budget as serving processes know it."""
    return BudgetRecord(
        id=budget.id,
        name=budget.name,
        scope=Scope(budget.scope),
        scope_id=budget.scope_id,
        tenant_id=budget.tenant_id,
        window=Window(budget.window),
        limit_usd_nanos=budget.limit_usd_nanos,
        is_hard=budget.is_hard,
    )


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > NAME_CHARS or name.startswith("bud_"):
        raise InvalidRequest(
            f"A budget's name has 1 to {NAME_CHARS} characters and does not look like an id (bud_…).",
            param="name",
        )
    return name


def _checked_limit(limit_usd_nanos: int) -> int:
    if not 0 <= limit_usd_nanos <= USD_MAX * NANOS_PER_USD:
        raise InvalidRequest(f"A limit is between 0 and {USD_MAX} USD.", param="limit_usd")
    return limit_usd_nanos


def _checked_alerts(percents: Sequence[int]) -> list[int]:
    if len(percents) > ALERTS_MAX or not all(1 <= percent <= 1000 for percent in percents):  # noqa: PLR2004 - percent
        raise InvalidRequest(
            f"At most {ALERTS_MAX} alerts, each at 1 to 1000 percent.", param="alert_percents"
        )
    return sorted(set(percents))


def _taken(name: str) -> str:
    return f"There is a budget {name!r} already, perhaps a retired one; choose another name."
