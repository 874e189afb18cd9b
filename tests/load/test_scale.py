"""Do hourly sums and attempts give the same reports, over many rows? How fast is `make proof`'s matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.db import create_engine, session_factory
from gateway.ledger import reports
from gateway.migrate import upgrade
from tests.integration.ledger.accounts import HOURS_FROM_ATTEMPTS, HOURS_KEPT
from tests.load.spend_at_scale import END, START, make_month
from tests.support.servers import postgres_server

ROWS = 200_000


@pytest.fixture
async def month() -> AsyncIterator[AsyncEngine]:
    with postgres_server() as url:
        await asyncio.to_thread(upgrade, url)
        engine = create_engine(url)
        await make_month(engine, ROWS)
        yield engine
        await engine.dispose()


async def test_hourly_sums_say_what_the_attempts_say(month: AsyncEngine) -> None:
    async with month.connect() as connection:
        (missing,) = await connection.execute(
            text(f"SELECT count(*) FROM (({HOURS_KEPT}) EXCEPT ({HOURS_FROM_ATTEMPTS})) AS d")
        )
        (attempts,) = await connection.execute(text("SELECT sum(attempts) FROM spend_hours"))
    assert (missing[0], attempts[0]) == (0, ROWS)
    async with session_factory(month)() as session:
        for dimensions in (("tenant", "model"), ("key", "pool", "task"), ("project", "day"), ("week",)):
            by_hours = await reports.spend_report(session, group_by=dimensions, start=START, end=END)
            # A bound within an hour, before anything began, makes the report read the attempts.
            by_attempts = await reports.spend_report(
                session, group_by=dimensions, start=START - timedelta(milliseconds=1), end=END
            )
            assert by_hours.rows == by_attempts.rows
            assert by_hours.total.charge_usd_nanos > 0
