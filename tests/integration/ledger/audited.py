"""Does the product's own auditor find the books of a site right?"""

from __future__ import annotations

from gateway.clock import Clock
from gateway.db import database_ms
from gateway.ledger.findings import Extent
from gateway.ledger.invariants import examine, take_snapshot
from gateway.settings import BudgetSettings
from tests.integration.ledger.site import Site


async def audit(site: Site) -> int:
    """What `tollgate audit` looks at, in one snapshot of a site that may be busy; how much that was.

    Raises:
        AssertionError: an invariant is broken.
    """
    looked_at = 0
    async with site.sessions() as session:
        await take_snapshot(session)
        now_ms = await database_ms(session, Clock())
        extent = Extent(since_ms=0, now_ms=now_ms, grace_ms=int(BudgetSettings().slice_grace_s * 1000))
        async for finding in examine(session, extent):
            assert not finding.breaches, finding
            looked_at += finding.looked_at
    return looked_at
