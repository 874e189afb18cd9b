"""How are receipts kept and read? All SQL of the noun; flushes, never commits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import insert_ignoring_duplicates
from gateway.routing.tables import Receipt


async def insert_receipts(session: AsyncSession, rows: list[dict[str, Any]]) -> None:
    """Write receipts down; the ledger calls it in the transaction that books their attempts."""
    await insert_ignoring_duplicates(session, Receipt, rows)


async def find_receipt(session: AsyncSession, request_id: str, tenant_id: str) -> Receipt | None:
    """The receipt of a tenant's request; None where it has none of that id."""
    found = await session.execute(
        select(Receipt).where(col(Receipt.request_id) == request_id, col(Receipt.tenant_id) == tenant_id)
    )
    return found.scalars().first()
