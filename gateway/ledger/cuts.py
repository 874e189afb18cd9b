"""By what may spend be grouped and filtered, and what is that in SQL?

A cut is a choice of dimensions and filters. Where hours know all of them and the bounds are whole hours, the
hourly sums answer, otherwise the attempts do; the same values come from both. A filter is `dimension=value`;
several of one dimension mean any of them, several dimensions mean all of them, an empty value means "has
none". Days, weeks (from Monday, ISO 8601) and months are UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, String, and_, func, literal, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlmodel import col

from gateway.errors import InvalidRequest
from gateway.ledger.period_tables import LateHour
from gateway.ledger.tables import Attempt, SpendDay, SpendHour

MS_PER_HOUR = 3_600_000
MS_PER_DAY = 86_400_000
PERIODS = ("day", "week", "month")
TAG_PREFIX = "tag:"
TAG_CHARS = 64
DIMENSIONS_MAX = 8
FILTERS_MAX = 50
VALUE_CHARS = 640
YEARS = (1970, 2200)
"""What a report may be of; later than the first, earlier than the last."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MONDAY = 4
"""5 January 1970, in days since its first."""

_COLUMNS = {
    "tenant": Attempt.tenant_id,
    "project": Attempt.project_id,
    "key": Attempt.key_id,
    "end_user": Attempt.end_user,
    "model": Attempt.model_alias,
    "pool": Attempt.pool,
    "task": Attempt.task,
    "policy": Attempt.policy_version,
    "price": Attempt.price_version,
}
_HOUR_COLUMNS = {
    "tenant": SpendHour.tenant_id,
    "project": SpendHour.project_id,
    "key": SpendHour.key_id,
    "model": SpendHour.model_alias,
    "pool": SpendHour.pool,
    "task": SpendHour.task,
}
_DAY_COLUMNS = {
    "tenant": SpendDay.tenant_id,
    "project": SpendDay.project_id,
    "key": SpendDay.key_id,
    "model": SpendDay.model_alias,
    "pool": SpendDay.pool,
    "task": SpendDay.task,
}
DIMENSIONS = (*_COLUMNS, *PERIODS, "tag:<name>")
_LATE_COLUMNS = {
    "tenant": LateHour.tenant_id,
    "project": LateHour.project_id,
    "key": LateHour.key_id,
    "model": LateHour.model_alias,
    "pool": LateHour.pool,
    "task": LateHour.task,
}
_LATE = (
    select(col(LateHour.journal_id), col(LateHour.hour_start_ms), col(LateHour.billed_in_ms))
    .distinct()
    .subquery("late")
)
"""Attempts of these bookings and hours came after their month was closed."""
Table = type[SpendHour] | type[SpendDay] | type[LateHour] | type[Attempt]


class Late(StrEnum):
    """What of late usage is asked for (see `late_usage`)."""

    AWAY = "away"
    """What the months of its use do not have any more."""
    IN = "in"
    """What the periods have in which it counts."""


class TagValue(FunctionElement[str]):
    """The value of a tag in a column of tags; null where there is none."""

    inherit_cache = True
    type = String()


@compiles(TagValue)
def _by_operator(element: TagValue, compiler: SQLCompiler, **options: Any) -> str:
    tags, name = element.clauses
    return f"({compiler.process(tags, **options)} ->> {compiler.process(name, **options)})"


@compiles(TagValue, "sqlite")
def _by_looking(element: TagValue, compiler: SQLCompiler, **options: Any) -> str:
    # SQLite 3.40's paths know no escapes: a name with a quote or a backslash is never found by one.
    tags, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(SELECT value FROM json_each({tags}) WHERE key = {name})"  # noqa: S608 - two parameters


@dataclass(frozen=True, slots=True)
class Filter:
    """What a row must have; ids where a dimension has ids."""

    name: str
    values: tuple[str, ...]
    """Any of these; an empty one means that there is none."""


def is_tag(name: str) -> bool:
    """The dimension is somebody's cost tag."""
    return name.startswith(TAG_PREFIX)


def check_dimensions(names: Sequence[str], *, param: str = "group_by") -> tuple[str, ...]:
    """The names, known and without repeats.

    Raises:
        InvalidRequest: an unknown dimension, or too many; names the known ones.
    """
    for name in names:
        tag = name.removeprefix(TAG_PREFIX)
        is_good_tag = is_tag(name) and 0 < len(tag) <= TAG_CHARS and "\x00" not in tag
        if name not in _COLUMNS and name not in PERIODS and not is_good_tag:
            verb = "group" if param == "group_by" else "filter"
            raise InvalidRequest(
                f"Cannot {verb} by {name[:80]!r}. Known: {', '.join(DIMENSIONS)}.", param=param
            )
    known = tuple(dict.fromkeys(names))
    if len(known) > DIMENSIONS_MAX:
        raise InvalidRequest(f"At most {DIMENSIONS_MAX} dimensions at once.", param=param)
    return known


def parse_filters(texts: Sequence[str]) -> tuple[Filter, ...]:
    """Filters as people write them, `pool=plain` or `tag:team=search`.

    Raises:
        InvalidRequest: one has no `=`, names an unknown dimension, or no such period.
    """
    if len(texts) > FILTERS_MAX:
        raise InvalidRequest(f"At most {FILTERS_MAX} filters at once.", param="filter")
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidRequest(
                f"A filter is written dimension=value, such as pool=plain or tag:team=search,"
                f" not {text[:80]!r}.",
                param="filter",
            )
        (name,) = check_dimensions([name.strip()], param="filter")
        if len(value) > VALUE_CHARS or "\x00" in value:
            raise InvalidRequest(f"No value of {name!r} looks like {value[:40]!r}.", param="filter")
        if name in PERIODS:
            period_bounds(name, value)
        values.setdefault(name, []).append(value)
    return tuple(Filter(name, tuple(dict.fromkeys(found))) for name, found in values.items())


@dataclass(frozen=True, slots=True)
class Cut:
    """What is asked for, in SQL: from which table, by what, between which instants (epoch ms, half-open)."""

    dimensions: tuple[str, ...]
    filters: tuple[Filter, ...]
    start_ms: int
    end_ms: int
    wants_attempts: bool = False
    """Even where hours could answer."""
    late: Late | None = None
    """Only late usage; None: everything, by when it was used."""

    def moved(self, late: Late) -> Cut:
        """The same of late usage alone."""
        return replace(self, late=late)

    @property
    def is_hourly(self) -> bool:
        """The hourly sums can answer."""
        names = (*self.dimensions, *(each.name for each in self.filters))
        return not (self.wants_attempts or self.start_ms % MS_PER_HOUR or self.end_ms % MS_PER_HOUR) and all(
            name in _HOUR_COLUMNS or name in PERIODS for name in names
        )

    @property
    def is_daily(self) -> bool:
        """The daily sums can answer: far fewer rows."""
        is_whole = not (self.start_ms % MS_PER_DAY or self.end_ms % MS_PER_DAY)
        return is_whole and self.late is None and self.is_hourly

    @property
    def table(self) -> Table:
        """Where the figures are."""
        if not self.is_hourly:
            return Attempt
        if self.late is not None:
            return LateHour
        return SpendDay if self.is_daily else SpendHour

    @property
    def instant(self) -> Any:
        """The column by which rows belong to the report."""
        if self.late is Late.IN:
            return col(LateHour.billed_in_ms) if self.is_hourly else _LATE.c.billed_in_ms
        return self.used_at

    @property
    def used_at(self) -> Any:
        """When it was used, whenever it counts."""
        if not self.is_hourly:
            return col(Attempt.started_at_ms)
        if self.late is not None:
            return col(LateHour.hour_start_ms)
        return col(SpendDay.day_start_ms) if self.is_daily else col(SpendHour.hour_start_ms)

    def keys(self) -> list[Any]:
        """A labelled expression for each dimension; of periods the day."""
        return [self._expression(name).label(f"group_{index}") for index, name in enumerate(self.dimensions)]

    def period_keys(self) -> list[Any]:
        """The same, with a number of its own for every week and month: what counting the distinct needs."""
        day = self.instant // MS_PER_DAY
        numbers = {"week": (day - _FIRST_MONDAY) // 7, "month": _month_number(day)}
        return [
            numbers.get(name, self._expression(name)).label(f"group_{index}")
            for index, name in enumerate(self.dimensions)
        ]

    def conditions(self) -> list[ColumnElement[bool]]:
        """What rows must meet."""
        return [
            self.instant >= self.start_ms,
            self.instant < self.end_ms,
            *(self._condition(each) for each in self.filters),
            *self._lateness(),
        ]

    def _lateness(self) -> list[ColumnElement[bool]]:
        if self.late is None or self.is_hourly:
            return []
        started = col(Attempt.started_at_ms)
        return [
            col(Attempt.journal_id) == _LATE.c.journal_id,
            started >= _LATE.c.hour_start_ms,
            started < _LATE.c.hour_start_ms + MS_PER_HOUR,
        ]

    def _expression(self, name: str) -> Any:
        if name in PERIODS:
            # Floor division: with `/` PostgreSQL divides exactly and a cast then rounds, noon being tomorrow.
            return self.instant // MS_PER_DAY
        if self.is_hourly:
            if self.late is not None:
                return _LATE_COLUMNS[name]
            return (_DAY_COLUMNS if self.is_daily else _HOUR_COLUMNS)[name]
        if is_tag(name):
            # An empty tag or end user is none.
            return func.nullif(TagValue(col(Attempt.tags), literal(name.removeprefix(TAG_PREFIX))), "")
        if name == "end_user":
            return func.nullif(col(Attempt.end_user), "")
        return _COLUMNS[name]

    def _condition(self, wanted: Filter) -> ColumnElement[bool]:
        if wanted.name in PERIODS:
            bounds = [period_bounds(wanted.name, value) for value in wanted.values]
            return or_(*(and_(self.instant >= start, self.instant < end) for start, end in bounds))
        expression = self._expression(wanted.name)
        named = [value for value in wanted.values if value]
        ways: list[ColumnElement[bool]] = [expression.in_(named)] if named else []
        if len(named) < len(wanted.values):
            ways.append(expression.is_(None))
        return or_(*ways)


def _month_number(day: Any) -> Any:
    """Months since the year 0 of a day since 1970, in whole numbers, the same on every database.

    After Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (civil_from_days).
    """
    shifted = day + 719_468
    era = shifted // 146_097
    of_era = shifted - era * 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    return (year + era * 400) * 12 + (5 * of_year + 2) // 153 + 2


def period_text(name: str, day_number: int) -> str:
    """The day, the Monday of the week or the month around a day since 1970."""
    day = date(1970, 1, 1) + timedelta(days=day_number)
    if name == "month":
        return f"{day:%Y-%m}"
    return (day - timedelta(days=day.weekday())).isoformat() if name == "week" else day.isoformat()


def numbered_period_text(name: str, number: int) -> str:
    """The same of the numbers of `period_keys`."""
    if name == "month":
        return f"{number // 12:04d}-{number % 12 + 1:02d}"
    return period_text(name, number * 7 + _FIRST_MONDAY if name == "week" else number)


def period_bounds(name: str, text: str) -> tuple[int, int]:
    """First instant of a period as people write it, and of the next one, epoch ms.

    Raises:
        InvalidRequest: it is none, or a week that does not begin on a Monday.
    """
    try:
        start = datetime.fromisoformat(f"{text}-01" if name == "month" else text).replace(tzinfo=UTC)
        is_right = len(text) == len("2026-11" if name == "month" else "2026-11-01")
        is_right = is_right and YEARS[0] <= start.year < YEARS[1]
    except ValueError:
        is_right = False
    if not is_right or (name == "week" and start.weekday()):
        looks = {"day": "2026-11-05", "week": "2026-11-02, its Monday", "month": "2026-11"}[name]
        raise InvalidRequest(f"A {name} is written {looks}; not {text[:40]!r}.", param="filter")
    return epoch_ms(start), epoch_ms(next_start(name, start))


def next_start(name: str, start: datetime) -> datetime:
    """Where the next day, week or month begins."""
    if name == "month":
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1)
    return start + timedelta(days=7 if name == "week" else 1)


def previous_start(name: str, start: datetime) -> datetime:
    """Where the one before begins."""
    if name == "month":
        return (start.replace(day=1) - timedelta(days=1)).replace(day=1)
    return start - timedelta(days=7 if name == "week" else 1)


def month_of(moment: datetime) -> tuple[datetime, datetime]:
    """The UTC calendar month around an instant, half-open."""
    start = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, next_start("month", start)


def previous_range(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """As many calendar months before, if it is whole months; otherwise as long a time before."""
    first, last = start.astimezone(UTC), end.astimezone(UTC)
    if month_of(first)[0] == first and month_of(last)[0] == last:
        months = (last.year - first.year) * 12 + last.month - first.month
        before = first.year * 12 + first.month - 1 - months
        return first.replace(year=before // 12, month=before % 12 + 1), first
    return first - (last - first), first


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def moment_of(at_ms: int) -> datetime:
    """The instant, aware UTC."""
    return _EPOCH + timedelta(milliseconds=at_ms)


def distinct_end_users() -> Any:
    """How many end users there are among attempts that tenants pay for."""
    return func.count(func.distinct(func.nullif(col(Attempt.end_user), "")))
