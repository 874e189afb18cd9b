"""How do attempts get into the database? Inserts only; flushes, never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import insert_ignoring_duplicates
from gateway.ledger.tables import Attempt


async def insert_attempts(session: AsyncSession, rows: Sequence[dict[str, Any]]) -> None:
    """Book attempts; one that is there already stays as it is."""
    await insert_ignoring_duplicates(session, Attempt, rows)
