"""Who answered first what the record answers from the cache, if that was before the record begins?

A hit leaves no tokens of its own; what it would have used without a cache is what its original used. Only the
day before the record is looked through, and no more than a number of rows: what is not found there stays
unknown, and is said to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import metadata
from gateway.inference import AttemptState, Payer
from gateway.ledger.tables import Attempt
from gateway.routing.receipts import read_receipt_body
from gateway.routing.tables import Receipt

LOOKBACK_MS: Final = 86_400_000
ROWS_MAX: Final = 100_000
PAGE_ROWS: Final = 2_000
Slot = tuple[str, str]
"""Tenant, and part of the key in the answer cache."""


async def rows_of_donors(
    session: AsyncSession, wanted: Iterable[Slot], *, columns: Iterable[str], before_ms: int
) -> dict[Slot, Any]:
    """The last answer before an instant to each of these slots, as its row; those that are not found lack.

    Args:
        session: where they are.
        wanted: which.
        columns: of `attempts`, `attempt_id` and `started_at_ms` among them.
        before_ms: first instant that does not count, epoch ms.
    """
    missing, found = set(wanted), dict[Slot, Any]()
    table, started, number = metadata.tables["attempts"], col(Attempt.started_at_ms), col(Attempt.attempt_id)
    after, read = (before_ms, ""), 0
    tenants = {tenant for tenant, _ in missing}
    while missing and read < ROWS_MAX:
        statement = (
            select(*(table.c[name] for name in columns), col(Receipt.body))
            .select_from(Attempt)
            .join(
                Receipt,
                (col(Receipt.request_id) == col(Attempt.request_id))
                & (col(Receipt.started_at_ms) == started),
            )
            .where(
                started >= before_ms - LOOKBACK_MS,
                started <= after[0],
                tuple_(started, number) < after,
                col(Attempt.cache) == "miss",  # nothing else is kept
                col(Attempt.state) == AttemptState.ANSWERED,
                col(Attempt.payer) == Payer.TENANT,
                col(Attempt.tenant_id).in_(tenants),
            )
            .order_by(started.desc(), number.desc())
            .limit(PAGE_ROWS)
        )
        rows = list(await session.execute(statement))
        for row in rows:
            asked = read_receipt_body(row.body).asked
            slot = (row.tenant_id, "" if asked is None else asked.slot or "")
            if slot in missing:
                found[slot] = row
                missing.discard(slot)
        if len(rows) < PAGE_ROWS:
            break
        after, read = (rows[-1].started_at_ms, rows[-1].attempt_id), read + len(rows)
    return found
