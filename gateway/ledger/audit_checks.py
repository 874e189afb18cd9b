"""Is the audit as it was written, in the order in which it was written? See `audit_chain.py`."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit_chain import Head, breaks, count_links, head_of, leads_to
from gateway.ledger.findings import EXAMPLES_MAX, Example, Extent, Invariant, Seen


async def _chained(session: AsyncSession, extent: Extent) -> Seen:
    looked_at = await count_links(session, since_ms=extent.since_ms)
    count, examples = 0, list[Example]()
    async for one in breaks(session, since_ms=extent.since_ms):
        count += 1
        if len(examples) < EXAMPLES_MAX:
            examples.append({"number": one.number, "entry_id": one.entry_id, "reason": one.reason})
    return Seen(looked_at, count, tuple(examples), await _note(session))


async def _note(session: AsyncSession) -> str:
    head = await head_of(session)
    if head is None:
        return ""
    return (
        f"The chain's head is {head.number}:{head.hash}. Kept elsewhere, `tollgate audit --head` tells later"
        " whether all that is before it is still the same."
    )


async def lost_head(session: AsyncSession, head: Head) -> Example | None:
    """What is wrong, if the chain does not go through a link that was noted before; None: it does."""
    if await leads_to(session, head):
        return None
    return {"number": head.number, "entry_id": "", "reason": f"the chain does not lead to {head.hash}"}


CHAINED = "I-21"
AUDIT = (
    Invariant(
        CHAINED, "every entry of the audit is as it was written, in its order, and none is gone", (_chained,)
    ),
)
