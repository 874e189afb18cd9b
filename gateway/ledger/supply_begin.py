"""Since when is a pool paid for?

Since its first replica was seen; what a file declares (reserved, or counted as declared) since the file says,
or else since a gateway first read that. A pool that is added later owes nothing for the time before, and no
hour of a closed month is billed any more: `SupplyBooks` books what was seen then as a correction.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.ledger.late_usage import closed_until
from gateway.ledger.supply import MS_PER_HOUR, Terms
from gateway.ledger.supply_tables import PoolDeclaration, ReplicaPhase


async def standing_declarations(session: AsyncSession) -> dict[str, int]:
    """Pools that are paid for unseen, and since when gateways know it, epoch ms."""
    found = await session.execute(
        select(col(PoolDeclaration.pool), col(PoolDeclaration.declared_at_ms)).where(
            col(PoolDeclaration.withdrawn_at_ms).is_(None)
        )
    )
    return {pool: int(at_ms) for pool, at_ms in found}


async def note_declarations(session: AsyncSession, terms: Mapping[str, Terms], *, now_ms: int) -> None:
    """Write down what files declare from now on, and what they declare no more; the caller commits."""
    standing = await standing_declarations(session)
    declared = {pool for pool, one in terms.items() if one.is_declared}
    new = sorted(declared - set(standing))
    if new:
        rows = [{"pool": pool, "declared_at_ms": now_ms, "withdrawn_at_ms": None} for pool in new]
        await session.execute(insert(PoolDeclaration), rows)
    for pool in sorted(set(standing) - declared):
        await session.execute(
            update(PoolDeclaration)
            .where(col(PoolDeclaration.pool) == pool, col(PoolDeclaration.withdrawn_at_ms).is_(None))
            .values(withdrawn_at_ms=now_ms)
        )


async def are_declarations_noted(session: AsyncSession, terms: Mapping[str, Terms]) -> bool:
    """Nothing is left for `note_declarations`."""
    return {pool for pool, one in terms.items() if one.is_declared} == set(
        await standing_declarations(session)
    )


async def first_instants(session: AsyncSession, terms: Mapping[str, Terms]) -> dict[str, int]:
    """Since when there is anything to pay for, epoch ms, of the pools where there is.

    What is declared begins in the first open month at the earliest; what was seen does not care.
    """
    found = await session.execute(
        select(col(ReplicaPhase.pool), func.min(ReplicaPhase.at_ms)).group_by(col(ReplicaPhase.pool))
    )
    firsts = {pool: int(at_ms) for pool, at_ms in found if pool in terms}
    standing, open_ms = await standing_declarations(session), await closed_until(session)
    for pool, at_ms in standing.items():
        if pool in terms and terms[pool].is_declared:
            from_ms = max(terms[pool].declared_from_ms(at_ms), open_ms)
            firsts[pool] = min(from_ms, firsts.get(pool, from_ms))
    return firsts


async def returns(session: AsyncSession, terms: Mapping[str, Terms]) -> dict[str, int]:
    """Pools that were declared, then not, and are again: since when they are paid for anew, epoch ms."""
    earlier = set(
        (
            await session.execute(
                select(col(PoolDeclaration.pool)).where(col(PoolDeclaration.withdrawn_at_ms).is_not(None))
            )
        ).scalars()
    )
    standing = await standing_declarations(session)
    return {
        pool: terms[pool].declared_from_ms(at_ms) // MS_PER_HOUR * MS_PER_HOUR
        for pool, at_ms in standing.items()
        if pool in earlier and pool in terms and terms[pool].is_declared
    }
