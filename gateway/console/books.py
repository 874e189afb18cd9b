"""What does the database tell the overview: this month's spend and the API keys?

Read in one go and kept for ten times as long as the reading took: however many people watch, and however
large the ledger, the console takes at most a tenth of one database connection, and small installations
always see the newest figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from gateway.console.charts import Chart, Series
from gateway.dependencies import Services
from gateway.identity.key_store import KeyRecord, KeyState, list_keys
from gateway.identity.store import tenant_names
from gateway.ledger.burn_down import BurnDown, burn_down
from gateway.ledger.cuts import month_of
from gateway.ledger.latency import ClassLatency, latency_by_class
from gateway.ledger.reports import NOTHING, SpendFigures, spend_report

ROWS_MAX = 20
"""Rows of one table; the others are added up in a last one."""
KEYS_MAX = 200
KEPT_TIMES = 10
LATENCY_MS = 3_600_000
"""How far back latency is looked at."""

_TABLES = {"tenant": "Tenant", "pool": "Pool", "task": "Task"}


@dataclass(frozen=True, slots=True)
class SpendTable:
    """Spend by one dimension, dearest first."""

    title: str
    rows: tuple[tuple[str, SpendFigures], ...]


@dataclass(frozen=True, slots=True)
class Books:
    """What the database said at one moment."""

    read_at: datetime
    start: datetime
    end: datetime
    tables: tuple[SpendTable, ...]
    total: SpendFigures
    today: SpendFigures
    chart: Chart
    burning: tuple[BurnDown, ...]
    """Budgets in force and where their pace leads, the first to run out first."""
    latency: tuple[ClassLatency, ...]
    """Of the last hour."""
    keys: tuple[tuple[KeyRecord, KeyState, int | None], ...]
    """With their states and since when; valid ones first, the newest first; at most KEYS_MAX."""
    keys_left_out: int


class BookKeeper:
    """Reads the books for everyone who asks, one reading at a time."""

    def __init__(self) -> None:
        self._books: Books | None = None
        self._kept_until_s = 0.0
        self._turn = asyncio.Lock()

    async def books(self, services: Services) -> Books:
        """The newest that may be had; raises what the database raises."""
        async with self._turn:
            start_s = services.clock.monotonic_s()
            if self._books is None or start_s >= self._kept_until_s:
                self._books = await read_books(services)
                end_s = services.clock.monotonic_s()
                self._kept_until_s = end_s + KEPT_TIMES * (end_s - start_s)
            return self._books


async def read_books(services: Services) -> Books:
    """Ask the database."""
    now = services.clock.now()
    start, end = month_of(now)
    async with services.sessions() as session:
        tenants = await tenant_names(session)
        reports = {
            dimension: await spend_report(
                session, group_by=[dimension], start=start, end=end, names={"tenant": tenants}
            )
            for dimension in (*_TABLES, "day")
        }
        keys = await list_keys(session)
        burning = await burn_down(session, now_ms=services.clock.epoch_ms())
        latency = await latency_by_class(session, since_ms=services.clock.epoch_ms() - LATENCY_MS)
    days = {date.fromisoformat(group[0]): figures.charge_usd_nanos for group, figures in reports["day"].rows}
    now_ms = services.clock.epoch_ms()
    keys.sort(key=lambda key: (key.state(now_ms) is not KeyState.ACTIVE, -key.created_at_ms))
    return Books(
        read_at=now,
        start=start,
        end=end,
        tables=tuple(
            SpendTable(title, _shortened([(group[0], figures) for group, figures in reports[name].rows]))
            for name, title in _TABLES.items()
        ),
        total=reports["tenant"].total,
        today=dict(reports["day"].rows).get((now.date().isoformat(),), NOTHING),
        burning=tuple(burning),
        latency=tuple(latency),
        chart=_month_chart(start.date(), end.date(), days, today=now.date()),
        keys=tuple((key, key.state(now_ms), _since(key, now_ms)) for key in keys[:KEYS_MAX]),
        keys_left_out=max(0, len(keys) - KEYS_MAX),
    )


def _month_chart(start: date, end: date, charges: Mapping[date, int], *, today: date) -> Chart:
    days = [start + timedelta(days=offset) for offset in range((end - start).days)]
    values = [charges.get(day, 0) if day <= today else None for day in days]
    return Chart(
        id="month",
        title=f"Charge per day in {start:%B %Y}, USD, UTC",
        description=f"Bars of the charge per day in {start:%B %Y}; the table below has the figures.",
        across="Day (UTC)",
        labels=[str(day.day) for day in days],
        series=[Series("Charge", values)],
        unit="usd",
    )


def _since(key: KeyRecord, now_ms: int) -> int | None:
    retired_at_ms = key.tenant_retired_at_ms or key.project_retired_at_ms
    return {
        KeyState.ACTIVE: None,
        KeyState.REVOKED: key.revoked_at_ms,
        KeyState.RETIRED: retired_at_ms,
        KeyState.EXPIRED: key.expires_at_ms,
    }[key.state(now_ms)]


def _shortened(rows: list[tuple[str, SpendFigures]]) -> tuple[tuple[str, SpendFigures], ...]:
    shown, others = rows[:ROWS_MAX], rows[ROWS_MAX:]
    if others:
        shown.append((f"{len(others)} others", sum((figures for _, figures in others), start=NOTHING)))
    return tuple(shown)
