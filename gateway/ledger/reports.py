"""What was spent, by whatever one wants to know it by?

The one report query that the command line, the console and the exports share. Sums are integers of
nano-USD and tokens; instants are UTC, half-open. Days come from SQL and are folded to weeks and months here,
so that every database groups alike. `charge` is what tenants pay; what failed goes to `platform`. Where
hours and their dimensions are all that is asked for, the hourly sums answer; otherwise the attempts do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.errors import InvalidRequest
from gateway.inference import AttemptState, Payer
from gateway.ledger.tables import Attempt, SpendHour

MS_PER_DAY = 86_400_000
PERIODS = ("day", "week", "month")
TAG_PREFIX = "tag:"
PLATFORM_TENANT = "platform"
"""Whose attempts warm-ups and heartbeats are: nobody's requests."""
NOT_SAID = "-"
"""Shown where an attempt has no such value."""

_COLUMNS = {
    "tenant": Attempt.tenant_id,
    "project": Attempt.project_id,
    "key": Attempt.key_id,
    "end_user": Attempt.end_user,
    "model": Attempt.model_alias,
    "pool": Attempt.pool,
    "task": Attempt.task,
    "policy": Attempt.policy_version,
}
_HOUR_COLUMNS = {
    "tenant": SpendHour.tenant_id,
    "project": SpendHour.project_id,
    "key": SpendHour.key_id,
    "model": SpendHour.model_alias,
    "pool": SpendHour.pool,
    "task": SpendHour.task,
}
MS_PER_HOUR = 3_600_000
DIMENSIONS = (*_COLUMNS, *PERIODS, "tag:<name>")


@dataclass(frozen=True, slots=True)
class SpendFigures:
    """The sums of one row."""

    requests: int
    """Requests, not attempts: a fallback does not count twice."""
    failed_attempts: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charge_usd_nanos: int
    """What tenants pay."""
    platform_usd_nanos: int
    """What failed or interrupted attempts come to; on the platform's account."""

    def __add__(self, other: SpendFigures) -> SpendFigures:
        """Both together."""
        return SpendFigures(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


NOTHING = SpendFigures(0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class SpendReport:
    """Rows by group, dearest first, and their total."""

    group_by: tuple[str, ...]
    start: datetime
    end: datetime
    rows: tuple[tuple[tuple[str, ...], SpendFigures], ...]

    @property
    def total(self) -> SpendFigures:
        """The sum of all rows."""
        return sum((figures for _, figures in self.rows), start=NOTHING)


def month_of(moment: datetime) -> tuple[datetime, datetime]:
    """The UTC calendar month around an instant, half-open."""
    start = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, (start + timedelta(days=32)).replace(day=1)


def check_dimensions(names: Sequence[str]) -> tuple[str, ...]:
    """The names, known and without repeats.

    Raises:
        InvalidRequest: an unknown dimension; names the known ones.
    """
    for name in names:
        is_tag = name.startswith(TAG_PREFIX) and len(name) > len(TAG_PREFIX)
        if name not in _COLUMNS and name not in PERIODS and not is_tag:
            raise InvalidRequest(
                f"Cannot group by {name!r}. Known: {', '.join(DIMENSIONS)}.", param="group_by"
            )
    return tuple(dict.fromkeys(names))


async def spend_report(
    session: AsyncSession,
    *,
    group_by: Sequence[str],
    start: datetime,
    end: datetime,
    names: dict[str, dict[str, str]] | None = None,
) -> SpendReport:
    """Spend between two instants.

    Args:
        session: where to ask.
        group_by: dimensions, in the order of the report's columns.
        start: first instant that counts, aware.
        end: first instant that does not count any more, aware.
        names: what to show instead of ids, by dimension.

    Raises:
        InvalidRequest: an unknown dimension, or an end that is not after the start.
    """
    dimensions = check_dimensions(group_by)
    if end <= start:
        raise InvalidRequest("The end of the report must be after its start.", param="to")
    query = _query(dimensions, _epoch_ms(start), _epoch_ms(end))
    folded: dict[tuple[str, ...], SpendFigures] = {}
    for row in await session.execute(query):
        values = row[: len(dimensions)]
        group = tuple(
            _shown(name, value, names or {}) for name, value in zip(dimensions, values, strict=True)
        )
        figures = SpendFigures(*(int(value or 0) for value in row[len(dimensions) :]))
        if figures != NOTHING:
            folded[group] = folded.get(group, NOTHING) + figures
    rows = sorted(folded.items(), key=lambda item: (-item[1].charge_usd_nanos, item[0]))
    return SpendReport(group_by=dimensions, start=start, end=end, rows=tuple(rows))


def _query(dimensions: tuple[str, ...], start_ms: int, end_ms: int) -> Any:
    is_hourly = not (start_ms % MS_PER_HOUR or end_ms % MS_PER_HOUR) and all(
        name in _HOUR_COLUMNS or name in PERIODS for name in dimensions
    )
    table: type[SpendHour | Attempt] = SpendHour if is_hourly else Attempt
    instant = col(SpendHour.hour_start_ms) if is_hourly else col(Attempt.started_at_ms)
    keys = [
        _expression(name, table, instant).label(f"group_{index}") for index, name in enumerate(dimensions)
    ]
    counts = (
        (col(SpendHour.requests), col(SpendHour.failed_attempts))
        if is_hourly
        else (
            case((col(Attempt.attempt_number) == 1, 1), else_=0),
            case((col(Attempt.state) == AttemptState.FAILED.value, 1), else_=0),
        )
    )
    return select(*keys, *_sums(table, *counts)).where(instant >= start_ms, instant < end_ms).group_by(*keys)


def _sums(table: type[SpendHour | Attempt], requests: Any, failed: Any) -> list[Any]:
    """The columns of SpendFigures, in its order; tokens are those that tenants are charged for."""
    is_tenant = col(table.payer) == Payer.TENANT.value

    def of_tenant(column: Any) -> Any:
        return case((is_tenant, column), else_=0)

    return [
        func.sum(column)
        for column in (
            case((col(table.tenant_id) == PLATFORM_TENANT, 0), else_=requests),
            failed,
            of_tenant(table.input_tokens),
            of_tenant(table.cached_input_tokens),
            of_tenant(table.cache_write_tokens),
            of_tenant(table.output_tokens),
            of_tenant(table.reasoning_tokens),
            of_tenant(table.charge_usd_nanos),
            case((is_tenant, 0), else_=table.charge_usd_nanos),
        )
    ]


def _expression(name: str, table: type[SpendHour | Attempt], instant: Any) -> Any:
    if name in PERIODS:
        # Floor division: with `/` PostgreSQL divides exactly and a cast then rounds, noon being tomorrow.
        return instant // MS_PER_DAY
    if table is SpendHour:
        return _HOUR_COLUMNS[name]
    if name.startswith(TAG_PREFIX):
        return Attempt.tags[name.removeprefix(TAG_PREFIX)].as_string()  # type: ignore[attr-defined]  # a JSON column
    return _COLUMNS[name]


def _shown(name: str, value: Any, names: dict[str, dict[str, str]]) -> str:
    if value is None:
        return NOT_SAID
    if name in PERIODS:
        day = date(1970, 1, 1) + timedelta(days=int(value))
        if name == "month":
            return f"{day:%Y-%m}"
        return (day - timedelta(days=day.weekday())).isoformat() if name == "week" else day.isoformat()
    return names.get(name, {}).get(str(value), str(value))


def _epoch_ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
