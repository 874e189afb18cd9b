"""Which attempts count in a stretch of time, one by one, as rows of an export?

Those that were made in it and booked before their month was closed, in the order in which they began; then
what came late and counts in it, each with its own instants; then credits and corrections. So a file of a
closed month has the same rows for ever, and every file comes to what the report of its time says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import Payer
from gateway.ledger.adjustments import adjustment_total, adjustments_in
from gateway.ledger.cuts import MS_PER_DAY, Cut, period_text
from gateway.ledger.exports import Amounts, Column, Names, Piece
from gateway.ledger.late_usage import counted_parts
from gateway.ledger.period_tables import Adjustment
from gateway.ledger.posting import PLATFORM
from gateway.ledger.tables import Attempt

PIECE_ROWS = 5_000
_encode = msgspec.json.Encoder().encode

_ATTEMPT: tuple[tuple[Column, Any], ...] = (
    (Column("attempt_id", "text", "opaque id; of adjustments theirs"), Attempt.attempt_id),
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
_AFTER = (
    Column("line", "text", "usage, late usage, or an adjustment's kind"),
    Column("charge_month", "text", "of late usage and adjustments: the month that they are about"),
    Column("adjustment_usd", "usd", "a credit or correction that two people agreed on; no part of charges"),
    Column("reason", "text", "why it was agreed on"),
)


def attempt_columns() -> tuple[Column, ...]:
    """The columns, in their order."""
    columns: list[Column] = []
    for column, _ in _ATTEMPT:
        columns.append(column)
        if column.name in _NAMED:
            columns.append(Column(_NAMED[column.name], "text", "its name"))
    return (*columns, *_AFTER)


async def count_attempts(session: AsyncSession, cut: Cut) -> int:
    """How many rows there are."""
    count = (await adjustment_total(session, cut)).count
    for _, conditions in await counted_parts(session, cut):
        found = await session.execute(select(func.count()).select_from(Attempt).where(*conditions))
        count += int(found.scalar_one())
    return count


async def attempt_pieces(session: AsyncSession, cut: Cut, names: Names) -> AsyncIterator[Piece]:
    """The rows, in the order of the columns."""
    for part, conditions in await counted_parts(session, cut):
        statement = (
            select(*(column for _, column in _ATTEMPT))
            .where(*conditions)
            .order_by(col(Attempt.started_at_ms), col(Attempt.attempt_id))
        )
        found = await session.stream(statement, execution_options={"yield_per": PIECE_ROWS})
        async for rows in found.partitions():
            yield _piece(rows, names, is_late=part.late is not None)
    async for adjusted in adjustments_in(session, cut):
        yield [_adjustment(each, names) for each in adjusted], amounts_of(adjusted)


def amounts_of(adjustments: Sequence[Adjustment]) -> Amounts:
    """What adjustments come to."""
    ours = sum(each.amount_usd_nanos for each in adjustments if each.tenant_id == PLATFORM)
    return Amounts(
        adjustments_usd_nanos=sum(each.amount_usd_nanos for each in adjustments) - ours,
        platform_adjustments_usd_nanos=ours,
    )


_PLAN = [(index, _NAMED.get(column.name)) for index, (column, _) in enumerate(_ATTEMPT)]
_AT = {column.name: index for index, (column, _) in enumerate(_ATTEMPT)}
_CHARGE_AT, _PAYER_AT, _TAGS_AT, _STARTED_AT = (
    _AT[name] for name in ("charge_usd", "payer", "tags", "started_at")
)


def _piece(rows: Sequence[Any], names: Names, *, is_late: bool) -> Piece:
    piece: list[tuple[Any, ...]] = []
    charge = platform = 0
    for row in rows:
        values: list[Any] = []
        for index, named in _PLAN:
            value = row[index]
            values.append(value)
            if named is not None:
                values.append(names.get(named, {}).get(value))
        values[-1] = _encode(row[_TAGS_AT]).decode() if row[_TAGS_AT] else None
        if is_late:
            values += ("late usage", period_text("month", row[_STARTED_AT] // MS_PER_DAY), None, None)
        else:
            values += ("usage", None, None, None)
        piece.append(tuple(values))
        if row[_PAYER_AT] == Payer.TENANT.value:
            charge += row[_CHARGE_AT] or 0
        else:
            platform += row[_CHARGE_AT] or 0
    return piece, Amounts(charge_usd_nanos=charge, platform_usd_nanos=platform)


def _adjustment(each: Adjustment, names: Names) -> tuple[Any, ...]:
    payer = Payer.PLATFORM if each.tenant_id == PLATFORM else Payer.TENANT
    known: dict[str, Any] = {
        "attempt_id": each.id,
        "started_at": each.at_ms,
        "ended_at": each.at_ms,
        "tenant_id": each.tenant_id,
        "tenant": names.get("tenant", {}).get(each.tenant_id),
        "pool": each.pool,
        "payer": payer.value,
        "charge_usd": 0,
        "journal_id": each.journal_id,
        "line": each.kind,
        "charge_month": each.charge_month,
        "adjustment_usd": each.amount_usd_nanos,
        "reason": each.reason,
    }
    return tuple(known.get(column.name) for column in attempt_columns())
