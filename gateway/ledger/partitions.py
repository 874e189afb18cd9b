"""Is there a partition for each month that is to come? PostgreSQL only; flushes, never commits.

Tables with a row per request are cut into calendar months (UTC), so that a month can be read, kept or
dropped by itself. The owner's function makes the partitions (migration 0006): the serving role may call it
and make nothing else. A row of a month without a partition goes to the default one: late work is untidy,
never lost.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

PARTITIONED = ("attempts", "receipts")


async def ensure_partitions(session: AsyncSession) -> None:
    """Make the partitions of this month and the next three, where they are missing."""
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text("SELECT tollgate_ensure_partitions()"))
