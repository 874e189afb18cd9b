"""What was spent, by whatever one wants to know it by?

The one report query that the command line, the API, the console, statements and exports share. Sums are
integers of nano-USD and tokens; instants are UTC, half-open. Days come from SQL and are folded to weeks and
months here, so that every database groups alike. `charge` is what tenants pay; what failed goes to
`platform`. Where hours and their dimensions are all that is asked for, the hourly sums answer; otherwise the
attempts do. Every report is footed: its rows, those that were added up as "others" included, are compared
with a sum of the ledger that knows nothing of the rows.

A closed month stays as it was closed: what was booked for it afterwards counts as a correction in the period
after the last closed one, on its first day (see `late_usage`). What two people agreed to credit or to correct
stands beside the charge as lines of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.errors import InvalidRequest
from gateway.inference import AttemptState, Payer
from gateway.ledger.adjustments import AdjustmentLine, adjustment_lines
from gateway.ledger.cuts import (
    PERIODS,
    YEARS,
    Cut,
    Filter,
    Late,
    check_dimensions,
    distinct_end_users,
    epoch_ms,
    is_tag,
    moment_of,
    next_start,
    numbered_period_text,
    period_bounds,
    period_text,
    previous_range,
    previous_start,
)
from gateway.ledger.late_usage import corrected_months, parts_of
from gateway.ledger.records import OURS
from gateway.ledger.report_facts import ReportFacts
from gateway.ledger.tables import Attempt

PLATFORM_TENANT = OURS
"""Whose attempts warm-ups, heartbeats and evaluations are: nobody's requests."""
NOT_SAID = "-"
"""Shown where an attempt has no such value."""
UNTAGGED = "untagged"
"""Shown where an attempt has no such tag."""
TOP_MAX = 10_000
Group = tuple[str, ...]
_Raw = tuple[str | None, ...]


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
    unpriced_attempts: int = 0
    """Attempts without a price: they are in no amount."""
    cache_hits: int = 0
    """Requests that were answered from the cache."""

    def __add__(self, other: SpendFigures) -> SpendFigures:
        """Both together."""
        return SpendFigures(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def times(self, factor: int) -> SpendFigures:
        """Each of them so many times."""
        return self if factor == 1 else SpendFigures(*(getattr(self, n) * factor for n in self.__slots__))

    @property
    def input_tokens_all(self) -> int:
        """Fresh, cached and written to a cache."""
        return self.input_tokens + self.cached_input_tokens + self.cache_write_tokens

    @property
    def output_tokens_all(self) -> int:
        """Reasoning included."""
        return self.output_tokens + self.reasoning_tokens


NOTHING = SpendFigures(0, 0, 0, 0, 0, 0, 0, 0, 0)
_MEASURES: dict[str, Callable[[SpendFigures], int]] = {
    "charge": lambda figures: figures.charge_usd_nanos,
    "platform": lambda figures: figures.platform_usd_nanos,
    "requests": lambda figures: figures.requests,
    "failed_attempts": lambda figures: figures.failed_attempts,
    "input_tokens": lambda figures: figures.input_tokens_all,
    "output_tokens": lambda figures: figures.output_tokens_all,
    "cache_hits": lambda figures: figures.cache_hits,
    "group": lambda _: 0,
}
ORDERS = tuple(_MEASURES)
"""What rows may be ordered by: the largest first, `group` by name or time."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which rows are wanted, and what beside them."""

    filters: tuple[Filter, ...] = ()
    order: str = "charge"
    top: int | None = None
    """Rows to show; the others are added up, but for what has no tag, which is always shown."""
    is_compared: bool = False
    """With the same figures of the period before."""
    counts_end_users: bool = False


AS_IT_IS = Shape()


@dataclass(frozen=True, slots=True)
class SpendReport:
    """Rows by group, dearest first, and their total."""

    group_by: Group
    start: datetime
    end: datetime
    rows: tuple[tuple[Group, SpendFigures], ...]
    facts: ReportFacts | None = None
    """Read by whoever shows it to somebody who signs."""
    control: SpendFigures = NOTHING
    """A sum of the ledger without any grouping."""
    others: SpendFigures = NOTHING
    others_count: int = 0
    """Rows that are added up in `others`."""
    before: tuple[datetime, datetime] | None = None
    """What `previous` is of; None: nothing is compared."""
    previous: Mapping[Group, SpendFigures] = field(default_factory=dict)
    previous_total: SpendFigures = NOTHING
    previous_others: SpendFigures = NOTHING
    end_users: Mapping[Group, int] | None = None
    """Distinct ones by group; None: not asked for."""
    end_users_total: int | None = None
    filters: tuple[Filter, ...] = ()
    corrections: Mapping[str, SpendFigures] = field(default_factory=dict)
    """Part of the rows: what came after its month was closed, by that month."""
    adjustments: tuple[AdjustmentLine, ...] = ()
    """Credits and corrections; no part of the rows."""

    @property
    def total(self) -> SpendFigures:
        """The sum of all rows, those that are not shown included."""
        return sum((figures for _, figures in self.rows), start=self.others)

    @property
    def adjustments_usd_nanos(self) -> int:
        """All of tenants' credits and corrections."""
        return sum(line.amount_usd_nanos for line in self.adjustments if line.tenant_id != PLATFORM_TENANT)

    @property
    def is_footed(self) -> bool:
        """The rows come to what the ledger has."""
        return self.total == self.control


async def spend_report(
    session: AsyncSession,
    *,
    group_by: Sequence[str],
    start: datetime,
    end: datetime,
    names: dict[str, dict[str, str]] | None = None,
    shape: Shape = AS_IT_IS,
) -> SpendReport:
    """Spend between two instants. All of its statements see one instant if the session does.

    Args:
        session: where to ask.
        group_by: dimensions, in the order of the report's columns.
        start: first instant that counts, aware.
        end: first instant that does not count any more, aware.
        names: what to show instead of ids, by dimension.
        shape: which rows, and what beside them.

    Raises:
        InvalidRequest: an unknown dimension or order, an end that is not after the start, or a comparison
            that makes no sense.
    """
    cut = cut_of(group_by, start, end, filters=shape.filters)
    _check_shape(shape)
    raw = await _folded(session, cut)
    labels = _Labels(cut.dimensions, names or {})
    before = _compared_range(cut, start, end) if shape.is_compared else None
    raw_before: dict[_Raw, SpendFigures] = {}
    if before is not None:
        raw_before = await _before(session, cut, before)
        for group in raw_before:
            raw.setdefault(group, NOTHING)
    _show_untagged(cut.dimensions, raw)
    labels.learn(raw)
    users, users_total = await _end_users(session, cut, labels) if shape.counts_end_users else (None, None)
    shown, rest = _ordered(cut.dimensions, raw, shape, labels=labels)
    return SpendReport(
        group_by=cut.dimensions,
        start=start,
        end=end,
        rows=tuple((labels.of(group), raw[group]) for group in shown),
        control=await control_total(session, cut),
        others=sum((raw[group] for group in rest), start=NOTHING),
        others_count=len(rest),
        before=before,
        previous={labels.of(group): raw_before.get(group, NOTHING) for group in shown},
        previous_total=NOTHING if before is None else await _total_before(session, cut, before),
        previous_others=sum((raw_before.get(group, NOTHING) for group in rest), start=NOTHING),
        end_users=users,
        end_users_total=users_total,
        filters=shape.filters,
        corrections=await _corrections(session, cut),
        adjustments=await adjustment_lines(session, cut),
    )


async def _corrections(session: AsyncSession, cut: Cut) -> dict[str, SpendFigures]:
    found = await corrected_months(session, cut, sums(cut.moved(Late.IN)))
    return {month: SpendFigures(*values) for month, values in found.items()}


def cut_of(
    group_by: Sequence[str], start: datetime, end: datetime, *, filters: tuple[Filter, ...] = ()
) -> Cut:
    """What is asked for, checked.

    Raises:
        InvalidRequest: an unknown dimension, or an end that is not after the start.
    """
    dimensions = check_dimensions(group_by)
    if end <= start:
        raise InvalidRequest("The end of the report must be after its start.", param="to")
    for moment, name in ((start, "from"), (end, "to")):
        if not YEARS[0] <= moment.year <= YEARS[1]:
            raise InvalidRequest(f"A report is of the years {YEARS[0]} to {YEARS[1]}.", param=name)
    return Cut(dimensions, filters, epoch_ms(start), epoch_ms(end))


async def control_total(session: AsyncSession, cut: Cut) -> SpendFigures:
    """The sum of everything that a report may be of, without its grouping.

    Of hours, where the bounds and filters allow it: what is cut by a tag foots to the hourly sums then.
    """
    whole = Cut((), cut.filters, cut.start_ms, cut.end_ms)
    total = NOTHING
    for sign, part in await parts_of(session, whole):
        (row,) = await session.execute(_query(part))
        total += SpendFigures(*(int(value or 0) for value in row)).times(sign)
    return total


async def used_total(session: AsyncSession, cut: Cut) -> SpendFigures:
    """The same of everything that was used in this time, whenever it counts."""
    (row,) = await session.execute(_query(Cut((), cut.filters, cut.start_ms, cut.end_ms)))
    return SpendFigures(*(int(value or 0) for value in row))


def _check_shape(shape: Shape) -> None:
    if shape.order not in ORDERS:
        raise InvalidRequest(
            f"Cannot order by {shape.order[:40]!r}. Known: {', '.join(ORDERS)}.", param="order"
        )
    if shape.top is not None and not 1 <= shape.top <= TOP_MAX:
        raise InvalidRequest(f"`top` is 1 to {TOP_MAX}.", param="top")


async def _folded(session: AsyncSession, cut: Cut) -> dict[_Raw, SpendFigures]:
    """Sums by group; of dimensions with ids the ids, of periods their texts."""
    folded: dict[_Raw, SpendFigures] = {}
    width = len(cut.dimensions)
    for sign, part in await parts_of(session, cut):
        for row in await session.execute(_query(part)):
            group = tuple(
                _folded_value(name, value) for name, value in zip(cut.dimensions, row, strict=False)
            )
            figures = SpendFigures(*(int(value or 0) for value in row[width:])).times(sign)
            folded[group] = folded.get(group, NOTHING) + figures
    return {group: figures for group, figures in folded.items() if figures != NOTHING}


def _folded_value(name: str, value: Any) -> str | None:
    if name in PERIODS:
        return period_text(name, int(value))
    return None if value is None else str(value)


def _query(cut: Cut) -> Any:
    keys = cut.keys()
    return select(*keys, *sums(cut)).where(*cut.conditions()).group_by(*keys)


def sums(cut: Cut) -> list[Any]:
    """The columns of SpendFigures, in its order; tokens are those that tenants are charged for."""
    table: Any = cut.table
    is_tenant = col(table.payer) == Payer.TENANT.value
    if table is not Attempt:
        requests, failed = col(table.requests), col(table.failed_attempts)
        unpriced, hits = col(table.unpriced_attempts), col(table.cache_hits)
    else:
        requests = _one_if(col(Attempt.attempt_number) == 1)
        failed = _one_if(col(Attempt.state) == AttemptState.FAILED.value)
        unpriced = _one_if(col(Attempt.charge_usd_nanos).is_(None))
        hits = _one_if(col(Attempt.cache) == "hit")

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
            unpriced,
            hits,
        )
    ]


def _one_if(condition: Any) -> Any:
    return case((condition, 1), else_=0)


# ------------------------------------------------------------------------------------------ the period before
def _compared_range(cut: Cut, start: datetime, end: datetime) -> tuple[datetime, datetime]:
    periods = [name for name in cut.dimensions if name in PERIODS]
    if len(periods) > 1:
        raise InvalidRequest("A comparison takes one of day, week and month at most.", param="compare")
    if any(each.name in PERIODS for each in cut.filters):
        raise InvalidRequest(
            "A comparison takes no filter by day, week or month: say `from` and `to`.", param="compare"
        )
    if not periods:
        return previous_range(start, end)
    (name,) = periods
    first = period_bounds(name, period_text(name, cut.start_ms // (24 * 3_600_000)))[0]
    if first != cut.start_ms:
        raise InvalidRequest(
            f"A comparison by {name} begins where a {name} does: say `from` accordingly.", param="compare"
        )
    return previous_start(name, moment_of(cut.start_ms)), end


async def _before(
    session: AsyncSession, cut: Cut, before: tuple[datetime, datetime]
) -> dict[_Raw, SpendFigures]:
    """What stood before, under the groups that it is compared with."""
    found = await _folded(session, _moved(cut, before))
    periods = [index for index, name in enumerate(cut.dimensions) if name in PERIODS]
    if not periods:
        return found
    index = periods[0]
    name = cut.dimensions[index]
    moved: dict[_Raw, SpendFigures] = {}
    for group, figures in found.items():
        start = moment_of(period_bounds(name, group[index] or "")[0])
        following = next_start(name, start)
        if epoch_ms(following) < cut.end_ms:
            text = period_text(name, epoch_ms(following) // (24 * 3_600_000))
            moved[*group[:index], text, *group[index + 1 :]] = figures
    return moved


async def _total_before(session: AsyncSession, cut: Cut, before: tuple[datetime, datetime]) -> SpendFigures:
    """Of the time before the whole report, whatever its rows are compared with."""
    start, end = before
    if any(name in PERIODS for name in cut.dimensions):
        start, end = previous_range(moment_of(cut.start_ms), moment_of(cut.end_ms))
    return await control_total(session, _moved(cut, (start, end)))


def _moved(cut: Cut, bounds: tuple[datetime, datetime]) -> Cut:
    return Cut(cut.dimensions, cut.filters, epoch_ms(bounds[0]), epoch_ms(bounds[1]))


# --------------------------------------------------------------------------------------- rows and their names
async def _end_users(session: AsyncSession, cut: Cut, labels: _Labels) -> tuple[dict[Group, int], int]:
    """Distinct end users by group, and of all: they do not add up, since one may be in several groups."""
    asked = Cut(cut.dimensions, cut.filters, cut.start_ms, cut.end_ms, wants_attempts=True)
    keys = asked.period_keys()
    conditions = [*asked.conditions(), col(Attempt.payer) == Payer.TENANT.value]
    found = await session.execute(select(*keys, distinct_end_users()).where(*conditions).group_by(*keys))
    counts: dict[Group, int] = {}
    for *values, count in found:
        group = tuple(
            numbered_period_text(name, int(value)) if name in PERIODS else _folded_value(name, value)
            for name, value in zip(cut.dimensions, values, strict=True)
        )
        counts[labels.of(group)] = counts.get(labels.of(group), 0) + int(count)
    total = await session.execute(select(distinct_end_users()).where(*conditions))
    return counts, int(total.scalar_one())


def _show_untagged(dimensions: Group, raw: dict[_Raw, SpendFigures]) -> None:
    """What has no tag is a row even where there is none of it: its absence is an answer."""
    if len(dimensions) == 1 and is_tag(dimensions[0]) and raw:
        raw.setdefault((None,), NOTHING)


def _ordered(
    dimensions: Group, raw: dict[_Raw, SpendFigures], shape: Shape, *, labels: _Labels
) -> tuple[list[_Raw], list[_Raw]]:
    """The groups to show, in their order, and those to add up."""
    measure = _MEASURES[shape.order]
    groups = sorted(raw, key=lambda group: (-measure(raw[group]), labels.of(group)))
    if shape.top is None or len(groups) <= shape.top:
        return groups, []
    kept = set(groups[: shape.top])
    for group in groups:
        if any(value is None and is_tag(name) for name, value in zip(dimensions, group, strict=True)):
            kept.add(group)
    return [each for each in groups if each in kept], [each for each in groups if each not in kept]


class _Labels:
    """What is shown instead of what is kept; two that would look alike are told apart by their ids."""

    def __init__(self, dimensions: Group, names: dict[str, dict[str, str]]) -> None:
        self._dimensions = dimensions
        self._names = names
        self._alike: list[set[str | None]] = [set() for _ in dimensions]
        self._known: dict[_Raw, Group] = {}

    def learn(self, groups: Mapping[_Raw, SpendFigures]) -> None:
        """Look at all values that will be shown."""
        for index in range(len(self._dimensions)):
            shown: dict[str, set[str | None]] = {}
            for value in {group[index] for group in groups}:
                shown.setdefault(self._plain(index, value), set()).add(value)
            self._alike[index] = {value for values in shown.values() if len(values) > 1 for value in values}
        self._known.clear()

    def of(self, group: _Raw) -> Group:
        """The group as it is shown."""
        found = self._known.get(group)
        if found is None:
            found = self._known[group] = tuple(
                self._told_apart(index, value) for index, value in enumerate(group)
            )
        return found

    def _told_apart(self, index: int, value: str | None) -> str:
        plain = self._plain(index, value)
        return f"{plain} ({value})" if value is not None and value in self._alike[index] else plain

    def _plain(self, index: int, value: str | None) -> str:
        name = self._dimensions[index]
        if value is None:
            return UNTAGGED if is_tag(name) else NOT_SAID
        return self._names.get(name, {}).get(value, value)
