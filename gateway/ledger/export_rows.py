"""Where do the rows of an export come from, and do they come to its control total?

Two kinds: groups as in the spend report, in the order of their groups and of time, and attempts one by one
(`export_attempts`). Credits and corrections are rows of their own after them. Weeks and months are folded
from days as they come by, so that nothing is kept. A sink takes rows in pieces and knows a format of files,
nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, BinaryIO, Protocol

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.ledger.adjustments import adjustment_total, adjustments_in
from gateway.ledger.cuts import MS_PER_DAY, PERIODS, Cut, moment_of, parse_filters, period_text
from gateway.ledger.export_attempts import amounts_of, attempt_columns, attempt_pieces, count_attempts
from gateway.ledger.exports import (
    About,
    Amounts,
    Column,
    DoesNotFoot,
    Export,
    Exporter,
    Footing,
    Names,
    Piece,
    Stage,
)
from gateway.ledger.late_usage import parts_of
from gateway.ledger.period_tables import Adjustment
from gateway.ledger.report_facts import read_facts
from gateway.ledger.reports import NOTHING, SpendFigures, control_total, cut_of, sums

PIECE_ROWS = 5_000
WITH_IDS = ("tenant", "project", "key")
"""Dimensions that have an id and a name; both are columns."""
Row = tuple[Any, ...]

_FIGURES: tuple[tuple[Column, Callable[[SpendFigures], int]], ...] = (
    (Column("requests", "count", "requests, not attempts"), lambda sums: sums.requests),
    (Column("failed_attempts", "count", "attempts that failed"), lambda sums: sums.failed_attempts),
    (Column("unpriced_attempts", "count", "without a price"), lambda sums: sums.unpriced_attempts),
    (Column("cache_hits", "count", "requests that the cache answered"), lambda sums: sums.cache_hits),
    (Column("input_tokens", "count", "fresh input tokens"), lambda sums: sums.input_tokens),
    (Column("cached_input_tokens", "count", "found in a cache"), lambda sums: sums.cached_input_tokens),
    (Column("cache_write_tokens", "count", "written to a cache"), lambda sums: sums.cache_write_tokens),
    (Column("output_tokens", "count", "generated tokens"), lambda sums: sums.output_tokens),
    (Column("reasoning_tokens", "count", "generated reasoning tokens"), lambda sums: sums.reasoning_tokens),
    (Column("charge_usd", "usd", "what tenants pay"), lambda sums: sums.charge_usd_nanos),
    (Column("platform_usd", "usd", "on the platform's account"), lambda sums: sums.platform_usd_nanos),
)


class Sink(Protocol):
    """A file of one format that is being written."""

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, their values in the order of the columns; see `Column.kind`."""

    def finish(self) -> None:
        """Write what belongs at the end. The target stays open."""


SinkMaker = Callable[[BinaryIO, About, bool], Sink]
"""Of the target, what is exported, and whether formulas are made harmless."""


def exporter_of(sink: SinkMaker) -> Exporter:
    """The exporter of a format that is rows and nothing else."""

    async def export(session: AsyncSession, wanted: Export, stage: Stage) -> Footing:
        return await write_rows(session, wanted, stage, sink=sink)

    return export


async def write_rows(session: AsyncSession, wanted: Export, stage: Stage, *, sink: SinkMaker) -> Footing:
    """Write an export into a sink.

    Raises:
        InvalidRequest: what is wanted is not known.
        DoesNotFoot: the rows do not come to the control total.
    """
    # The command line and the API have put ids into the filters.
    filters = parse_filters(wanted.filters)
    group_by = wanted.group_by if wanted.rows == "groups" else ()
    cut = cut_of(group_by, moment_of(wanted.start_ms), moment_of(wanted.end_ms), filters=filters)
    by_attempts = wanted.rows == "attempts"
    facts = await read_facts(session, cut)
    about = About(
        title="Attempts" if by_attempts else f"Spend by {', '.join(group_by) or 'nothing'}",
        start_ms=wanted.start_ms,
        end_ms=wanted.end_ms,
        generated_at_ms=stage.now_ms,
        group_by=group_by,
        filters=wanted.filters,
        row_count=await count_attempts(session, cut) if by_attempts else None,
        amounts=await control_amounts(session, cut),
        high_water=stage.high_water(facts),
        price_versions=facts.price_versions,
        are_prices_used=facts.are_prices_used,
        period_state=stage.period_state,
        columns=attempt_columns() if by_attempts else _group_columns(group_by),
    )
    stage.told_about(about)
    file = sink(stage.target, about, wanted.is_formula_safe)
    pieces = attempt_pieces(session, cut, stage.names) if by_attempts else _groups(session, cut, stage.names)
    return await write_pieces(pieces, file, stage, about=about)


async def control_amounts(session: AsyncSession, cut: Cut) -> Amounts:
    """What the rows of a cut must come to, by sums that know nothing of rows."""
    spend, adjusted = await control_total(session, cut), await adjustment_total(session, cut)
    return Amounts(
        charge_usd_nanos=spend.charge_usd_nanos,
        platform_usd_nanos=spend.platform_usd_nanos,
        adjustments_usd_nanos=adjusted.tenants_usd_nanos,
        platform_adjustments_usd_nanos=adjusted.platform_usd_nanos,
    )


async def write_pieces(pieces: AsyncIterator[Piece], file: Sink, stage: Stage, *, about: About) -> Footing:
    """Write rows as they come, and the end of the file if they come to the control total.

    Raises:
        DoesNotFoot: they do not.
    """
    rows, amounts = 0, Amounts()
    async for piece, piece_amounts in pieces:
        file.add(piece)
        rows += len(piece)
        amounts += piece_amounts
        stage.told_rows(rows)
    if amounts != about.amounts:
        said = dict(about.amounts.lines())
        wrong = [
            f"{name} of the rows is {amount}, of the ledger {said[name]}"
            for name, amount in amounts.lines()
            if amount != said[name]
        ]
        raise DoesNotFoot(
            f"{'; '.join(wrong)}: nothing is exported. `tollgate audit` says which book is wrong."
        )
    file.finish()
    return Footing(rows=rows, amounts=amounts, high_water=about.high_water, period_state=about.period_state)


# ---------------------------------------------------------------------------------------------------- groups
_OF_ADJUSTMENTS = (
    Column("adjustment_usd", "usd", "a credit or correction that two people agreed on; no part of charges"),
    Column("line", "text", "usage, or the adjustment's kind"),
    Column("charge_month", "text", "the month that an adjustment is about"),
    Column("adjustment_id", "text", "of its proposal"),
    Column("reason", "text", "why it was agreed on"),
)


def _group_columns(group_by: Sequence[str]) -> tuple[Column, ...]:
    columns: list[Column] = []
    for name in group_by:
        if name in WITH_IDS:
            columns.append(Column(f"{name}_id", "text", "its id"))
        columns.append(Column(name, "text", "empty: there is none"))
    return (*columns, *(column for column, _ in _FIGURES), *_OF_ADJUSTMENTS)


async def _groups(session: AsyncSession, cut: Cut, names: Names) -> AsyncIterator[Piece]:
    piece: list[Row] = []
    charge = platform = 0
    async for group, figures in _folded(session, cut):
        values = _named(cut.dimensions, group, names)
        values += [of(figures) for _, of in _FIGURES]
        piece.append((*values, 0, "usage", None, None, None))
        charge += figures.charge_usd_nanos
        platform += figures.platform_usd_nanos
        if len(piece) == PIECE_ROWS:
            yield piece, Amounts(charge_usd_nanos=charge, platform_usd_nanos=platform)
            piece, charge, platform = [], 0, 0
    if piece:
        yield piece, Amounts(charge_usd_nanos=charge, platform_usd_nanos=platform)
    async for part in adjustments_in(session, cut):
        yield [_adjustment(each, cut, names) for each in part], amounts_of(part)


def _named(dimensions: Sequence[str], group: Sequence[str | None], names: Names) -> list[Any]:
    values: list[Any] = []
    for name, value in zip(dimensions, group, strict=True):
        values.append(value)
        if name in WITH_IDS:
            values.append(None if value is None else names.get(name, {}).get(value))
    return values


def _adjustment(each: Adjustment, cut: Cut, names: Names) -> Row:
    known = {"tenant": each.tenant_id, "pool": each.pool}
    group = [
        period_text(name, each.at_ms // MS_PER_DAY) if name in PERIODS else known.get(name)
        for name in cut.dimensions
    ]
    return (
        *_named(cut.dimensions, group, names),
        *(0 for _ in _FIGURES),
        *(each.amount_usd_nanos, each.kind, each.charge_month, each.id, each.reason),
    )


async def _folded(
    session: AsyncSession, cut: Cut
) -> AsyncIterator[tuple[tuple[str | None, ...], SpendFigures]]:
    """Groups as they come: days of one week or month stand together, since time is ordered by last."""
    keys = cut.keys()
    last = sorted(range(len(keys)), key=lambda index: (cut.dimensions[index] in PERIODS, index))
    statement = (
        select(*keys, *sums(cut))
        .where(*cut.conditions())
        .group_by(*keys)
        .order_by(*(keys[index] for index in last))
    )
    width = len(keys)
    open_group: tuple[str | None, ...] | None = None
    open_figures = NOTHING
    late = await _late(session, cut)
    found = await session.stream(statement, execution_options={"yield_per": PIECE_ROWS})
    async for row in found:
        group = tuple(
            period_text(name, int(value)) if name in PERIODS else value
            for name, value in zip(cut.dimensions, row, strict=False)
        )
        figures = SpendFigures(*(int(value or 0) for value in row[width:]))
        if group != open_group and open_group is not None:
            if (kept := _kept(open_group, open_figures, late)) is not None:
                yield open_group, kept
            open_figures = NOTHING
        open_group, open_figures = group, open_figures + figures
    if open_group is not None:
        kept = _kept(open_group, open_figures, late)
        if kept is not None and (kept != NOTHING or keys):
            yield open_group, kept
    for group, figures in late.items():  # groups that nothing but late usage has
        yield group, figures


def _kept(
    group: tuple[str | None, ...], figures: SpendFigures, late: dict[tuple[str | None, ...], SpendFigures]
) -> SpendFigures | None:
    """What a group has with what late usage moves; None: all of it counts elsewhere."""
    moved = late.pop(group, None)
    if moved is None:
        return figures
    return None if figures + moved == NOTHING else figures + moved


async def _late(session: AsyncSession, cut: Cut) -> dict[tuple[str | None, ...], SpendFigures]:
    """What late usage moves, by group: little, whatever is exported."""
    late: dict[tuple[str | None, ...], SpendFigures] = {}
    for sign, part in (await parts_of(session, cut))[1:]:
        keys = part.keys()
        statement = select(*keys, *sums(part)).where(*part.conditions()).group_by(*keys)
        for row in await session.execute(statement):
            group = tuple(
                period_text(name, int(value)) if name in PERIODS else value
                for name, value in zip(cut.dimensions, row, strict=False)
            )
            figures = SpendFigures(*(int(value or 0) for value in row[len(keys) :])).times(sign)
            late[group] = late.get(group, NOTHING) + figures
    return {group: figures for group, figures in late.items() if figures != NOTHING}
