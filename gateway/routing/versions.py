"""How are policy versions kept? All SQL of the noun; flushes, never commits."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import insert_ignoring_duplicates
from gateway.routing.policy import Policy
from gateway.routing.tables import PolicyVersion


async def remember_version(session: AsyncSession, policy: Policy, *, now_ms: int) -> None:
    """Write the version down if it was never seen before."""
    row = {"version": policy.version, "name": policy.name, "text": policy.text, "first_seen_at_ms": now_ms}
    await insert_ignoring_duplicates(session, PolicyVersion, [row])
