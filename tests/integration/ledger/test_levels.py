"""Is what every bucket has used read whole, a page at a time and by an index?"""

from __future__ import annotations

from sqlalchemy import text
from sqlmodel import col, select

from gateway.ledger.buckets import Bucket
from gateway.ledger.levels import booked_in
from gateway.ledger.tables import BudgetWindow
from tests.integration.ledger.site import Site


async def test_all_pages_are_read_and_other_windows_are_not(site: Site) -> None:
    names = [(await site.budget(100, name=f"budget-{number}")).id for number in range(5)]
    async with site.sessions() as session:
        for number, name in enumerate(names):
            for start_ms in (1_000, 2_000, 3_000):
                session.add(
                    BudgetWindow(budget_id=name, window_start_ms=start_ms, posted_usd_nanos=number + start_ms)
                )
        await session.commit()
        expected = {
            Bucket(name, start_ms): number + start_ms
            for number, name in enumerate(names)
            for start_ms in (1_000, 3_000)
        }
        for page_rows in (1, 2, 5, 100):
            assert await booked_in(session, [1_000, 3_000], page_rows=page_rows) == expected
        if site.engine.dialect.name == "sqlite":
            statement = select(BudgetWindow).where(col(BudgetWindow.window_start_ms) == 1_000)
            query = str(statement.compile(compile_kwargs={"literal_binds": True}))
            plan = await session.execute(text(f"EXPLAIN QUERY PLAN {query}"))
            assert "ix_budget_windows_start" in " ".join(str(row) for row in plan)
