"""What does the report of a closed month say?

Every cut that finance asks for can be added up from it: sums by day, tenant, project, key, model, pool, task
and payer; what came late for earlier months, with its own day; credits and corrections; and the bills of
pools with who used them. Integers of tokens, decimal strings of USD, days in UTC. It is read from the hourly
sums when a month is closed, and from the attempts, one by one, when it is verified: both must say the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import AttemptState
from gateway.ledger.cuts import MS_PER_DAY, Cut, Late
from gateway.ledger.period_tables import Adjustment
from gateway.ledger.posting import HOUR_SUMS
from gateway.ledger.supply_tables import SupplyHour, SupplyLine
from gateway.ledger.tables import Attempt
from gateway.money import usd_text

KEYS: Final = ("tenant_id", "project_id", "key_id", "model_alias", "pool", "task", "payer")
COUNTS: Final = tuple(name for name in HOUR_SUMS if name != "charge_usd_nanos")
_SUPPLY_KEYS: Final = ("pool", "line", "tenant_id", "project_id", "key_id", "model_alias", "task")
_CHARGE_AT: Final = HOUR_SUMS.index("charge_usd_nanos")
Key = tuple[Any, ...]
"""Day since 1970, then the keys."""
Sums = dict[Key, list[int]]


async def ledger_section(
    session: AsyncSession, *, start_ms: int, end_ms: int, by_attempts: bool = False
) -> dict[str, Any]:
    """All that the ledger says of a month; the same for ever once it is closed.

    Args:
        session: of one instant.
        start_ms: its first instant, epoch ms.
        end_ms: the first that is not in it.
        by_attempts: from attempts, not from hourly sums.
    """
    cut = Cut((), (), start_ms, end_ms, wants_attempts=by_attempts)
    used = await sums_of(session, cut)
    take_away(used, await sums_of(session, cut.moved(Late.AWAY)))
    late = await sums_of(session, cut.moved(Late.IN))
    adjustments = await _adjustments(session, start_ms, end_ms)
    supply = await _supply(session, start_ms, end_ms)
    return {
        "usage": {"columns": ["day", *KEYS, *COUNTS, "charge_usd"], "rows": usage_rows(used)},
        "corrections": {"columns": ["used_on", *KEYS, *COUNTS, "charge_usd"], "rows": usage_rows(late)},
        "adjustments": adjustments,
        "supply": supply,
        "totals": _totals(used, late, adjustments=adjustments, supply=supply),
    }


async def sums_of(session: AsyncSession, cut: Cut) -> Sums:
    """Every sum by day and keys, of the table that the cut is read from."""
    table = cut.table
    day = (cut.used_at // MS_PER_DAY).label("day")
    keys = [getattr(table, name) for name in KEYS]
    figures = _of_attempts() if table is Attempt else {name: getattr(table, name) for name in HOUR_SUMS}
    statement = (
        select(day, *keys, *(func.sum(figures[name]) for name in HOUR_SUMS))
        .where(*cut.conditions())
        .group_by(day, *keys)
    )
    width = 1 + len(KEYS)
    found = await session.execute(statement)
    return {tuple(row[:width]): [int(value or 0) for value in row[width:]] for row in found}


def _of_attempts() -> dict[str, Any]:
    """What an attempt adds to each sum of its hour."""

    def one_if(condition: Any) -> Any:
        return case((condition, 1), else_=0)

    special = {
        "requests": one_if(col(Attempt.attempt_number) == 1),
        "attempts": 1,
        "failed_attempts": one_if(col(Attempt.state) == AttemptState.FAILED.value),
        "unpriced_attempts": one_if(col(Attempt.charge_usd_nanos).is_(None)),
        "cache_hits": one_if(col(Attempt.cache) == "hit"),
    }
    return {name: special.get(name, getattr(Attempt, name, None)) for name in HOUR_SUMS}


def take_away(sums: Sums, late: Sums) -> None:
    """Leave what did not come late; in place."""
    for key, values in late.items():
        left = [was - gone for was, gone in zip(sums[key], values, strict=True)]
        if any(left):
            sums[key] = left
        else:
            del sums[key]


def _day(number: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=int(number))).isoformat()


def usage_rows(sums: Sums) -> list[list[Any]]:
    """As a report has them: day, keys, counts, charge."""
    return [
        [
            _day(key[0]),
            *key[1:],
            *(values[HOUR_SUMS.index(name)] for name in COUNTS),
            usd_text(values[_CHARGE_AT]),
        ]
        for key, values in sorted(sums.items())
    ]


async def _adjustments(session: AsyncSession, start_ms: int, end_ms: int) -> list[dict[str, Any]]:
    at = col(Adjustment.at_ms)
    found = await session.execute(
        select(Adjustment).where(at >= start_ms, at < end_ms).order_by(at, col(Adjustment.id))
    )
    return [
        {
            "id": row.id,
            "journal_id": row.journal_id,
            "kind": row.kind,
            "tenant_id": row.tenant_id,
            "amount_usd": usd_text(row.amount_usd_nanos),
            "charge_month": row.charge_month,
            "pool": row.pool,
            "reason": row.reason,
            "at_ms": row.at_ms,
        }
        for row in found.scalars()
    ]


async def _supply(session: AsyncSession, start_ms: int, end_ms: int) -> dict[str, Any]:
    hour = col(SupplyHour.hour_start_ms)
    bills = await session.execute(
        select(
            col(SupplyHour.pool),
            (hour // MS_PER_DAY).label("day"),
            (col(SupplyHour.corrects_hour_ms) // MS_PER_DAY).label("about"),
            func.sum(col(SupplyHour.bill_usd_nanos)),
            func.count(),
        )
        .where(hour >= start_ms, hour < end_ms)
        .group_by("pool", "day", "about")
        .order_by("pool", "day", "about")
    )
    of = col(SupplyLine.hour_start_ms)
    keys = [getattr(SupplyLine, name) for name in _SUPPLY_KEYS]
    days = ((of // MS_PER_DAY).label("day"), (col(SupplyLine.corrects_hour_ms) // MS_PER_DAY).label("about"))
    sums = [func.sum(getattr(SupplyLine, name)) for name in ("engine_us", "attempts", "cost_usd_nanos")]
    lines = await session.execute(
        select(*days, *keys, *sums).where(of >= start_ms, of < end_ms).group_by(*days, *keys)
    )
    return {
        "bills": [
            [pool, _day(day), _day(about), int(rows), usd_text(int(bill))]
            for pool, day, about, bill, rows in bills
        ],
        "bills_columns": ["pool", "day", "about_day", "pool_hours", "bill_usd"],
        "lines_columns": ["day", "about_day", *_SUPPLY_KEYS, "engine_us", "attempts", "cost_usd"],
        "lines": [
            [_day(day), _day(about), *rest[:-1], usd_text(rest[-1])]
            for day, about, *rest in sorted(
                (int(day), int(about), *names, int(engine), int(count), int(cost))
                for day, about, *names, engine, count, cost in lines
            )
        ],
    }


def _totals(
    used: Sums, late: Sums, *, adjustments: Sequence[Mapping[str, Any]], supply: Mapping[str, Any]
) -> dict[str, Any]:
    totals = totals_of(used, late)
    return {
        **{name: usd_text(amount) for name, amount in totals.items()},
        "adjustments_usd": usd_text(sum(nanos_of(each["amount_usd"]) for each in adjustments)),
        "supply_usd": usd_text(sum(nanos_of(bill[-1]) for bill in supply["bills"])),
        "by_tenant_usd": _by_tenant(used, late, adjustments),
    }


def totals_of(used: Sums, late: Sums) -> dict[str, int]:
    """What tenants and the platform come to, and how much of it came late, nano-USD."""
    found = dict.fromkeys(("charge_usd", "platform_usd", "late_charge_usd", "late_platform_usd"), 0)
    for sums, prefix in ((used, ""), (late, "late_")):
        for key, values in sums.items():
            kind = "charge_usd" if key[-1] == "tenant" else "platform_usd"
            found[kind] += values[_CHARGE_AT]
            if prefix:
                found[prefix + kind] += values[_CHARGE_AT]
    return found


def _by_tenant(used: Sums, late: Sums, adjustments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What each tenant owes for the month, adjustments included."""
    owed: defaultdict[str, int] = defaultdict(int)
    for sums in (used, late):
        for key, values in sums.items():
            if key[-1] == "tenant":
                owed[key[1]] += values[_CHARGE_AT]
    for each in adjustments:
        owed[each["tenant_id"]] += nanos_of(each["amount_usd"])
    return {tenant: usd_text(amount) for tenant, amount in sorted(owed.items())}


def nanos_of(text: str) -> int:
    """Nano-USD of what `usd_text` wrote."""
    return int(text.replace(".", ""))
