"""Does `tollgate audit days` tell which days are wrong, and mend them when it is asked to?"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

from sqlalchemy import text

from gateway.cli import app as program
from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.ledger.posting import book
from gateway.routing.receipts import insert_receipts
from tests.integration.gateway.terminal import Terminal
from tests.support.spend_rows import attempt_row, ended_of

DAY = "2026-01-05"


def _lose_a_day(url: str) -> None:
    """Three requests, one without its part of the day."""

    async def fill() -> None:
        engine = create_engine(url)
        async with session_factory(engine)() as session:
            at_ms = int(datetime.fromisoformat(f"{DAY}T10:00:00Z").timestamp() * 1000)
            free = {"charge_usd_nanos": None, "price_version": "unpriced", "pool": "plain"}
            rows = [
                attempt_row(number, started_at_ms=at_ms + number, ended_at_ms=at_ms + 50, **free)
                for number in range(3)
            ]
            batch = [ended_of(each) for each in rows]
            now_ms = Clock().epoch_ms()
            await book(session, batch, owner_id="test", now_ms=now_ms, insert_receipts=insert_receipts)
            await session.execute(text("UPDATE spend_days SET attempts = attempts - 1"))
            await session.commit()
        await engine.dispose()

    asyncio.run(fill())


async def _run(url: str, statement: str) -> None:
    engine = create_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


def test_a_day_that_is_apart_is_told_and_made_again(home: Path) -> None:
    terminal = Terminal(home)
    assert "Every day is the sum of its attempts." in terminal.text("audit", "days")
    url = terminal.environment["TOLLGATE_DATABASE_URL"]
    _lose_a_day(url)

    def status(*arguments: str) -> tuple[int, str]:
        outcome = terminal.runner.invoke(program, arguments, env=terminal.environment)
        return outcome.exit_code, outcome.stdout

    code, said = status("audit")
    assert (code, "`tollgate audit days` shows every such day" in said) == (1, True), said
    code, said = status("audit", "days")
    assert code == 1, said
    assert "apart" in said
    assert "`tollgate audit days --rebuild` makes these again" in said
    assert terminal.json("audit", "days", "--from", "2026-01-06") == {
        "first_day": None,
        "last_day": None,
        "days": 0,
        "is_right": True,
        "apart": [],
    }
    made = terminal.json("audit", "days", "--from", DAY, "--to", "2026-01-06", "--rebuild")
    assert (made["first_day"], made["last_day"], made["is_right"]) == (DAY, DAY, True)
    (one,) = made["apart"]
    assert (one["day"], one["attempts_kept"], one["attempts"], one["outcome"]) == (DAY, 2, 3, "rebuilt")
    assert "Every day is the sum of its attempts." in terminal.text("audit", "days")
    asyncio.run(_run(url, "UPDATE spend_hours SET attempts = 5"))
    asyncio.run(_run(url, "DELETE FROM spend_days"))
    code, said = status("audit", "days", "--rebuild")
    assert (code, "hours wrong: left alone" in said) == (1, True), said
    asyncio.run(_run(url, "UPDATE spend_hours SET attempts = 3"))
    assert "rebuilt" in terminal.text("audit", "days", "--rebuild")
    assert "I-18 is broken" not in status("audit")[1]
    assert "--from takes a day" in terminal.refused("audit", "days", "--from", "2026-01-05T01:00:00Z")
