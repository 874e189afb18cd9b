"""Is what policies refuse counted once, and kept while it cannot be written?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from gateway.db import create_engine, session_factory
from gateway.migrate import upgrade
from gateway.refusals import UNITS_MAX, Refusals
from gateway.routing.refusal_store import refusals_between, refused_units
from gateway.routing.split import Unit
from tests.support.clock import MovableClock

HOUR_MS = 3_600_000


async def test_sums_by_hour_and_units_once(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'books.db'}"
    engine = create_engine(url)
    sessions, clock = session_factory(engine), MovableClock()
    refusals, others = (Refusals(clock) for _ in range(2))
    noon_ms = clock.epoch_ms()
    refusals.saw("no_target", version="a@1", tenant_id="ten_1")
    refusals.saw("no_target", version="b@1", tenant_id="ten_1", unit=Unit(3, 255))
    refusals.saw("no_target", version="b@1", tenant_id="ten_1", unit=Unit(3, 255))
    refusals.saw("budget_exceeded", version="a@1", tenant_id="ten_2", unit=Unit(3, 7))
    others.saw("unpriced", version="b@1", tenant_id="ten_1", unit=Unit(3, 255))
    with pytest.raises(OperationalError):  # there is no such table yet
        await refusals.write(sessions)
    await asyncio.to_thread(upgrade, url)
    clock.move(1)
    for each in (refusals, others, refusals):
        await each.write(sessions)
    assert refusals.seen == {
        ("a@1", "no_target"): 1,
        ("b@1", "no_target"): 2,
        ("a@1", "budget_exceeded"): 1,
    }
    async with sessions() as session:
        assert await refusals_between(session, from_ms=noon_ms, to_ms=noon_ms + HOUR_MS) == {
            "no_target": 3,
            "budget_exceeded": 1,
            "unpriced": 1,
        }
        assert await refusals_between(session, from_ms=noon_ms - HOUR_MS, to_ms=noon_ms) == {}
        found = await refused_units(session, 3, ["a@1", "b@1"], written_until_ms=noon_ms)
        assert [(one.unit, one.version, one.at_ms) for one in found] == [
            ("0000000000000007", "a@1", noon_ms),
            ("00000000000000ff", "b@1", noon_ms),
        ]
        assert {one.written_at_ms for one in found} == {noon_ms + 1000}
        assert await refused_units(session, 3, ["c@1"], written_until_ms=noon_ms) == []
        assert await refused_units(session, 3, ["a@1"], written_until_ms=noon_ms + 61_001) == []
    await engine.dispose()


def test_units_that_wait_are_bounded() -> None:
    refusals = Refusals(MovableClock())
    for key in range(UNITS_MAX + 3):
        refusals.saw("no_target", version="a@1", tenant_id="t", unit=Unit(1, key))
    assert refusals.unwritten == 3
