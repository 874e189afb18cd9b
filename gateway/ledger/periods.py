"""Which months are open, over, or closed, and may one be closed now? All SQL of it.

A period is a UTC month. It is *open* until it ends, then *ending* for a grace in which late usage is still
its own, and *closed* by a person. Periods are closed one after the other from the first month that has any
usage, so that everything before an instant is closed and everything after it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.clock import instant_text
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.ledger.cuts import epoch_ms, moment_of, month_of, period_bounds, period_text, previous_start
from gateway.ledger.late_usage import SETTLING_MS, closed_until
from gateway.ledger.period_tables import Adjustment, ClosedPeriod
from gateway.ledger.supply import MS_PER_HOUR, Terms
from gateway.ledger.supply_begin import first_instants
from gateway.ledger.supply_store import frontiers
from gateway.ledger.supply_tables import SupplyHour
from gateway.ledger.tables import Attempt, BudgetSlice, SpendHour

_MS_PER_DAY = 24 * MS_PER_HOUR


@dataclass(frozen=True, slots=True)
class Month:
    """A UTC month."""

    id: str
    """Such as 2026-10."""
    start_ms: int
    end_ms: int


def month_named(text: str) -> Month:
    """The month as people write it.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        start_ms, end_ms = period_bounds("month", text)
    except InvalidRequest:
        raise InvalidRequest(
            f"A period is a UTC month, written 2026-10; not {text[:40]!r}.", param="period"
        ) from None
    return Month(text, start_ms, end_ms)


def month_at(moment: datetime) -> Month:
    """The month around an instant."""
    start, end = month_of(moment)
    return Month(f"{start:%Y-%m}", epoch_ms(start), epoch_ms(end))


async def first_month(session: AsyncSession) -> Month | None:
    """The first one in which anything was used, paid for or adjusted; None: nothing was."""
    found = [
        (await session.execute(select(func.min(column)))).scalar_one()
        for column in (SpendHour.hour_start_ms, SupplyHour.hour_start_ms, Adjustment.at_ms)
    ]
    known = [int(value) for value in found if value is not None]
    return month_at(moment_of(min(known))) if known else None


async def read_closed(session: AsyncSession, month: Month) -> ClosedPeriod | None:
    """The closed period of that month; None: it is not closed."""
    found = await session.execute(select(ClosedPeriod).where(col(ClosedPeriod.id) == month.id))
    return found.scalar_one_or_none()


async def require_closed(session: AsyncSession, month: Month) -> ClosedPeriod:
    """The same.

    Raises:
        NotFound: it is not closed.
    """
    closed = await read_closed(session, month)
    if closed is None:
        raise NotFound(f"{month.id} is not closed: `tollgate period close {month.id}` does that.")
    return closed


async def closed_periods(session: AsyncSession) -> list[ClosedPeriod]:
    """All of them, the oldest first."""
    found = await session.execute(select(ClosedPeriod).order_by(col(ClosedPeriod.start_ms)))
    return list(found.scalars())


async def require_in_order(session: AsyncSession, month: Month) -> None:
    """Nothing before it is open.

    Raises:
        Conflict: another month comes first, or it is before everything.
    """
    until_ms = await closed_until(session)
    first = await first_month(session)
    if until_ms:
        wanted = month_at(moment_of(until_ms))
    elif first is None:
        return
    else:
        wanted = first
    if month.start_ms > wanted.start_ms:
        raise Conflict(f"{wanted.id} comes first: periods are closed one after the other.")
    if until_ms and month.start_ms < wanted.start_ms:
        raise Conflict(f"{month.id} is before the first closed period: its usage, if any, counts later.")


def require_over(month: Month, *, now_ms: int, grace_ms: int, is_early: bool) -> None:
    """It has ended, and long enough ago.

    Raises:
        Conflict: says until when to wait, and what may be done instead.
    """
    # Twice: who booked without the months' lock took the time before it waited for others.
    settled_ms = month.end_ms + 2 * SETTLING_MS
    if now_ms < settled_ms:
        raise Conflict(
            f"{month.id} ends at {instant_text(month.end_ms)}, and what was under way then has until"
            f" {instant_text(settled_ms)} to be booked: close it then."
        )
    if not is_early and now_ms < month.end_ms + grace_ms:
        raise Conflict(
            f"{month.id} is ending: usage may still arrive until {instant_text(month.end_ms + grace_ms)}."
            " Wait, or close it `--now`: what arrives later becomes a correction in the next period."
        )


async def missing_supply(session: AsyncSession, terms: Mapping[str, Terms], month: Month) -> dict[str, int]:
    """Hours of the month that are not frozen yet, by pool."""
    known, firsts = await frontiers(session), await first_instants(session, terms)
    missing: dict[str, int] = {}
    for pool in terms:
        if pool not in firsts:
            continue
        begin_ms = known[pool][0] + MS_PER_HOUR if pool in known else firsts[pool]
        begin_ms = max(begin_ms // MS_PER_HOUR * MS_PER_HOUR, month.start_ms)
        if begin_ms < month.end_ms:
            missing[pool] = (month.end_ms - begin_ms) // MS_PER_HOUR
    return missing


async def lent_and_lost(session: AsyncSession, month: Month) -> int:
    """What was lent in the month to processes that died and whose records are missing, nano-USD."""
    start = col(BudgetSlice.window_start_ms)
    found = await session.execute(
        select(func.sum(col(BudgetSlice.amount_usd_nanos))).where(
            col(BudgetSlice.is_unattributed).is_(True),
            start < month.end_ms,
            or_(start == 0, start >= month.start_ms - 7 * _MS_PER_DAY),
        )
    )
    return int(found.scalar_one() or 0)


async def unbooked(session: AsyncSession, attempt_ids: set[str]) -> set[str]:
    """Those attempts that the ledger does not have."""
    known: set[str] = set()
    ids = sorted(attempt_ids)
    for first in range(0, len(ids), 500):
        found = await session.execute(
            select(col(Attempt.attempt_id)).where(col(Attempt.attempt_id).in_(ids[first : first + 500]))
        )
        known |= set(found.scalars())
    return attempt_ids - known


@dataclass(frozen=True, slots=True)
class PeriodState:
    """How a month stands."""

    month: Month
    state: str
    """open, ending, due or closed."""
    closed: ClosedPeriod | None = None


async def list_periods(session: AsyncSession, *, now_ms: int, grace_ms: int) -> list[PeriodState]:
    """Every month since the first one with usage, the newest first."""
    closed = {each.id: each for each in await closed_periods(session)}
    first = await first_month(session)
    current = month_at(moment_of(now_ms))
    begin_ms = min(
        [current.start_ms, *(each.start_ms for each in closed.values()), *([first.start_ms] if first else [])]
    )
    states = []
    month = current
    while month.start_ms >= begin_ms:
        states.append(
            PeriodState(month, _state(month, closed, now_ms=now_ms, grace_ms=grace_ms), closed.get(month.id))
        )
        start = previous_start("month", moment_of(month.start_ms))
        month = Month(period_text("month", epoch_ms(start) // _MS_PER_DAY), epoch_ms(start), month.start_ms)
    return states


def _state(month: Month, closed: Mapping[str, ClosedPeriod], *, now_ms: int, grace_ms: int) -> str:
    if month.id in closed:
        return "closed"
    if now_ms < month.end_ms:
        return "open"
    return "ending" if now_ms < month.end_ms + grace_ms else "due"
