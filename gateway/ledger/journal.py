"""How is something booked? Only by adding; what was wrong is taken back by a booking that names it.

Accounts: `tenant:<id>` and `platform` owe what attempts came to, `usage` is their counterpart;
`unattributed:<budget>` and `suspense:<budget>` hold what was lent to processes that died. Flushes, never
commits.
"""

from __future__ import annotations

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import metadata
from gateway.ledger.tables import JournalEntry


async def write_transaction(
    session: AsyncSession,
    journal_id: str,
    *,
    kind: str,
    owed: dict[str, int],
    now_ms: int,
    note: str,
    attempts: int = 0,
    reverses: str | None = None,
) -> None:
    """Add one booking to the journal.

    Args:
        session: the caller's.
        journal_id: its id.
        kind: usage, unattributed or reversal.
        owed: amounts by account, nano-USD.
        now_ms: epoch milliseconds.
        note: why, for people.
        attempts: how many it books.
        reverses: the booking that it takes back.

    Raises:
        ValueError: the amounts do not add up to zero.
    """
    if sum(owed.values()):
        raise ValueError(f"a booking that does not add up to zero: {owed}")
    transaction = {"id": journal_id, "kind": kind, "at_ms": now_ms, "attempts": attempts}
    await session.execute(
        insert(metadata.tables["journal_transactions"]), [{**transaction, "reverses": reverses, "note": note}]
    )
    lines = [
        {"transaction_id": journal_id, "account": account, "amount_usd_nanos": amount}
        for account, amount in sorted(owed.items())
    ]
    await session.execute(insert(metadata.tables["journal_entries"]), lines)


async def amount_of(session: AsyncSession, journal_id: str, account: str) -> int:
    """What a booking put on an account, nano-USD.

    Raises:
        NoResultFound: it has no such line.
    """
    found = await session.execute(
        select(col(JournalEntry.amount_usd_nanos)).where(
            col(JournalEntry.transaction_id) == journal_id, col(JournalEntry.account) == account
        )
    )
    return found.scalar_one()
