"""Where do the rows of an export come from, and do they come to its control total?

Two kinds: groups as in the spend report, in the order of their groups and of time, and attempts one by one
in the order in which they began. Weeks and months are folded from days as they come by, so that nothing is
kept. A sink takes rows in pieces and knows a format of files and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, BinaryIO, Protocol

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import Payer
from gateway.ledger.cuts import PERIODS, Cut, moment_of, parse_filters, period_text
from gateway.ledger.exports import (
    About,
    Column,
    DoesNotFoot,
    Export,
    Exporter,
    Footing,
    Names,
    Stage,
    about_facts,
)
from gateway.ledger.report_facts import read_facts
from gateway.ledger.reports import NOTHING, SpendFigures, control_total, cut_of, sums
from gateway.ledger.tables import Attempt
from gateway.money import usd_text

PIECE_ROWS = 5_000
WITH_IDS = ("tenant", "project", "key")
"""Dimensions that have an id and a name; both are columns."""
Row = tuple[Any, ...]
_encode = msgspec.json.Encoder().encode

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

_ATTEMPT: tuple[tuple[Column, Any], ...] = (
    (Column("attempt_id", "text", "opaque id"), Attempt.attempt_id),
    (Column("request_id", "text", "as in x-request-id"), Attempt.request_id),
    (Column("attempt_number", "count", "1 for the first try; 0: a correction"), Attempt.attempt_number),
    (Column("started_at", "instant", "UTC"), Attempt.started_at_ms),
    (Column("ended_at", "instant", "UTC"), Attempt.ended_at_ms),
    (Column("tenant_id", "text", "whose request"), Attempt.tenant_id),
    (Column("project_id", "text", "where the spend is allocated"), Attempt.project_id),
    (Column("key_id", "text", "public id of the API key"), Attempt.key_id),
    (Column("end_user", "text", "HMAC of the end user"), Attempt.end_user),
    (Column("model", "text", "as the caller named it"), Attempt.model_alias),
    (Column("endpoint", "text", "path below /v1"), Attempt.endpoint),
    (Column("pool", "text", "pool that was tried"), Attempt.pool),
    (Column("task", "text", "task type"), Attempt.task),
    (Column("nature", "text", "predictable or creative"), Attempt.nature),
    (Column("policy_version", "text", "policy that decided"), Attempt.policy_version),
    (Column("price_version", "text", "price that was charged by"), Attempt.price_version),
    (Column("service_tier", "text", "latency class"), Attempt.service_tier),
    (Column("cache", "text", "hit, miss or bypass"), Attempt.cache),
    (Column("state", "text", "answered, failed, cancelled or interrupted"), Attempt.state),
    (Column("payer", "text", "tenant or platform"), Attempt.payer),
    (Column("usage_source", "text", "measured, estimated or none"), Attempt.usage_source),
    (Column("input_tokens", "count", "fresh input tokens"), Attempt.input_tokens),
    (Column("cached_input_tokens", "count", "found in a cache"), Attempt.cached_input_tokens),
    (Column("cache_write_tokens", "count", "written to a cache"), Attempt.cache_write_tokens),
    (Column("output_tokens", "count", "generated tokens"), Attempt.output_tokens),
    (Column("reasoning_tokens", "count", "generated reasoning tokens"), Attempt.reasoning_tokens),
    (Column("charge_usd", "usd", "what the payer is charged; empty: unpriced"), Attempt.charge_usd_nanos),
    (Column("status_code", "count", "HTTP status"), Attempt.status_code),
    (Column("error_code", "text", "why it failed"), Attempt.error_code),
    (Column("ttft_ms", "count", "to the first content"), Attempt.ttft_ms),
    (Column("total_ms", "count", "to the end"), Attempt.total_ms),
    (Column("journal_id", "text", "the booking"), Attempt.journal_id),
    (Column("tags", "text", "cost tags, JSON"), Attempt.tags),
)
_NAMED = {"tenant_id": "tenant", "project_id": "project", "key_id": "key"}


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
    control = await control_total(session, cut)
    by_attempts = wanted.rows == "attempts"
    about = About(
        title="Attempts" if by_attempts else f"Spend by {', '.join(group_by) or 'nothing'}",
        start_ms=wanted.start_ms,
        end_ms=wanted.end_ms,
        generated_at_ms=stage.now_ms,
        group_by=group_by,
        filters=wanted.filters,
        row_count=await _count_attempts(session, cut) if by_attempts else None,
        charge_usd_nanos=control.charge_usd_nanos,
        platform_usd_nanos=control.platform_usd_nanos,
        columns=_attempt_columns() if by_attempts else _group_columns(group_by),
        **about_facts(await read_facts(session, cut)),  # type: ignore[arg-type]  # its names are About's
    )
    stage.told_about(about)
    file = sink(stage.target, about, wanted.is_formula_safe)
    pieces = _attempts(session, cut, stage.names) if by_attempts else _groups(session, cut, stage.names)
    rows = charge = platform = 0
    async for piece, piece_charge, piece_platform in pieces:
        file.add(piece)
        rows += len(piece)
        charge += piece_charge
        platform += piece_platform
        stage.told_rows(rows)
    if (charge, platform) != (control.charge_usd_nanos, control.platform_usd_nanos):
        raise DoesNotFoot(
            f"The rows come to {usd_text(charge)} and {usd_text(platform)} USD, the ledger to"
            f" {usd_text(control.charge_usd_nanos)} and {usd_text(control.platform_usd_nanos)}: nothing is"
            " exported. `tollgate audit` says which book is wrong."
        )
    file.finish()
    return Footing(
        rows=rows, charge_usd_nanos=charge, platform_usd_nanos=platform, high_water=about.high_water
    )


_Piece = tuple[list[Row], int, int]
"""Rows, and what they come to: tenants' and the platform's nano-USD."""


# -------------------------------------------------------------------------------------------------- attempts
def _attempt_columns() -> tuple[Column, ...]:
    columns: list[Column] = []
    for column, _ in _ATTEMPT:
        columns.append(column)
        if column.name in _NAMED:
            columns.append(Column(_NAMED[column.name], "text", "its name"))
    return tuple(columns)


def _as_attempts(cut: Cut) -> Cut:
    return Cut((), cut.filters, cut.start_ms, cut.end_ms, wants_attempts=True)


async def _count_attempts(session: AsyncSession, cut: Cut) -> int:
    asked = _as_attempts(cut)
    found = await session.execute(select(func.count()).select_from(Attempt).where(*asked.conditions()))
    return int(found.scalar_one())


async def _attempts(session: AsyncSession, cut: Cut, names: Names) -> AsyncIterator[_Piece]:
    asked = _as_attempts(cut)
    statement = (
        select(*(column for _, column in _ATTEMPT))
        .where(*asked.conditions())
        .order_by(col(Attempt.started_at_ms), col(Attempt.attempt_id))
    )
    plan = [(index, _NAMED.get(column.name)) for index, (column, _) in enumerate(_ATTEMPT)]
    positions = {column.name: index for index, (column, _) in enumerate(_ATTEMPT)}
    charge_at, payer_at, tags_at = positions["charge_usd"], positions["payer"], positions["tags"]
    found = await session.stream(statement, execution_options={"yield_per": PIECE_ROWS})
    async for part in found.partitions():
        piece: list[Row] = []
        charge = platform = 0
        for row in part:
            values: list[Any] = []
            for index, named in plan:
                value = row[index]
                values.append(value)
                if named is not None:
                    values.append(names.get(named, {}).get(value))
            values[-1] = _encode(row[tags_at]).decode() if row[tags_at] else None
            piece.append(tuple(values))
            if row[payer_at] == Payer.TENANT.value:
                charge += row[charge_at] or 0
            else:
                platform += row[charge_at] or 0
        yield piece, charge, platform


# ---------------------------------------------------------------------------------------------------- groups
def _group_columns(group_by: Sequence[str]) -> tuple[Column, ...]:
    columns: list[Column] = []
    for name in group_by:
        if name in WITH_IDS:
            columns.append(Column(f"{name}_id", "text", "its id"))
        columns.append(Column(name, "text", "empty: there is none"))
    return (*columns, *(column for column, _ in _FIGURES))


async def _groups(session: AsyncSession, cut: Cut, names: Names) -> AsyncIterator[_Piece]:
    piece: list[Row] = []
    charge = platform = 0
    async for group, figures in _folded(session, cut):
        values: list[Any] = []
        for name, value in zip(cut.dimensions, group, strict=True):
            values.append(value)
            if name in WITH_IDS:
                values.append(None if value is None else names.get(name, {}).get(value))
        values += [of(figures) for _, of in _FIGURES]
        piece.append(tuple(values))
        charge += figures.charge_usd_nanos
        platform += figures.platform_usd_nanos
        if len(piece) == PIECE_ROWS:
            yield piece, charge, platform
            piece, charge, platform = [], 0, 0
    if piece:
        yield piece, charge, platform


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
    found = await session.stream(statement, execution_options={"yield_per": PIECE_ROWS})
    async for row in found:
        group = tuple(
            period_text(name, int(value)) if name in PERIODS else value
            for name, value in zip(cut.dimensions, row, strict=False)
        )
        figures = SpendFigures(*(int(value or 0) for value in row[width:]))
        if group != open_group and open_group is not None:
            yield open_group, open_figures
            open_figures = NOTHING
        open_group, open_figures = group, open_figures + figures
    if open_group is not None and (open_figures != NOTHING or keys):
        yield open_group, open_figures
