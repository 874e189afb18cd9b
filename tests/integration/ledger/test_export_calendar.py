"""When is a scheduled file written, as provisional and as final, and is a final one left alone?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.replica_time import Phase, PhaseChange, Run
from gateway.errors import ConfigurationError
from gateway.jobs.export_targets import Delivery, deliver
from gateway.jobs.export_work import beside
from gateway.ledger.cuts import MS_PER_DAY
from gateway.ledger.export_schedules import (
    DELAY_S,
    DueFile,
    NewSchedule,
    create_schedule,
    due_files,
    files_of,
    note_file,
)
from gateway.ledger.exports import Export, Footing
from gateway.ledger.focus_terms import FocusTerms
from gateway.ledger.periods import month_named
from gateway.ledger.supply import MS_PER_HOUR
from gateway.ledger.supply_count import counted
from gateway.ledger.supply_store import book_hour, record_runs
from gateway.ledger.supply_terms import terms_of
from tests.integration.ledger.site import Site
from tests.integration.ledger.test_periods import Year
from tests.support.factories import make_act, make_pool_spec

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
JANUARY, FEBRUARY = month_named("2026-01"), month_named("2026-02")
DELAY_MS = DELAY_S * 1000


@pytest.fixture
async def year(site: Site) -> Year:
    made = Year(site)
    await made.price()
    return made


async def scheduled(year: Year, folder: Path, *, every: str = "month", **wanted: Any) -> str:
    export = Export(start_ms=0, end_ms=1, **{"format": "csv", "rows": "attempts", **wanted})
    new = NewSchedule("finance", every, export, str(folder), since_ms=JANUARY.start_ms)
    async with year.site.sessions() as session:
        row = await create_schedule(session, new, act=make_act())
        await session.commit()
    return row.id


async def due(year: Year, at_ms: int, **terms: Any) -> list[DueFile]:
    async with year.site.sessions() as session:
        return await due_files(session, now_ms=at_ms, **terms)


async def written(year: Year, each: DueFile, at_ms: int) -> Footing:
    to = Delivery(target=each.schedule.target, name=each.file_name, is_final=each.is_final)
    async with year.site.sessions() as session:
        footing = await deliver(session, each.export, to, now_ms=at_ms)
    async with year.site.sessions() as session:
        await note_file(session, each, footing, now_ms=at_ms)
        await session.commit()
    return footing


def names(found: list[DueFile]) -> list[str]:
    return [each.file_name for each in found]


async def test_a_month_is_provisional_until_it_is_closed_and_final_once(year: Year, tmp_path: Path) -> None:
    schedule_id = await scheduled(year, tmp_path)
    await year.book(year.row("2026-01"))
    begins_ms = JANUARY.start_ms + MS_PER_DAY + DELAY_MS
    assert await due(year, begins_ms - 1) == []
    (first,) = await due(year, begins_ms)
    assert (first.file_name, first.is_final) == ("finance-2026-01.provisional.csv", False)
    said = await written(year, first, begins_ms)
    assert (said.rows, said.period_state) == (1, "open")
    assert await due(year, begins_ms + 10 * MS_PER_DAY) == [], "nothing was booked since"
    await year.book(year.row("2026-01"))
    assert await due(year, begins_ms + MS_PER_DAY - 1) == [], "once a day is enough"
    (again,) = await due(year, begins_ms + MS_PER_DAY)
    assert again.file_name == first.file_name
    assert (await written(year, again, begins_ms + MS_PER_DAY)).rows == 2
    await year.close("2026-01")
    after_ms = JANUARY.end_ms + DELAY_MS
    (final,) = await due(year, after_ms)
    assert (final.file_name, final.is_final) == ("finance-2026-01.csv", True)
    assert (await written(year, final, after_ms)).period_state == "closed"
    about = msgspec.json.decode(beside(tmp_path / final.file_name).read_bytes())
    assert (about["period_state"], about["row_count"], about["control_total_usd"]) == (
        "closed",
        2,
        about["control_total_charge_usd"],
    )
    assert about["generated_at"].startswith("2026-02-01")
    await year.book(year.row("2026-01"))
    assert names(await due(year, FEBRUARY.start_ms + MS_PER_DAY + DELAY_MS)) == [
        "finance-2026-02.provisional.csv"
    ], "what came late is the next month's"
    async with year.site.sessions() as session:
        files = await files_of(session, [schedule_id])
    assert [(each.is_final, each.rows) for each in files] == [(True, 2), (False, 2), (False, 1)]


async def test_a_final_file_is_never_written_over(year: Year, tmp_path: Path) -> None:
    await scheduled(year, tmp_path, format="parquet")
    await year.book(year.row("2026-01"))
    path = tmp_path / "finance-2026-01.parquet"
    path.write_bytes(b"of an older version, which did not say whether it was final")
    await year.close("2026-01")
    (final,) = await due(year, JANUARY.end_ms + DELAY_MS)
    first = await written(year, final, 1)
    content = path.read_bytes()
    assert content.startswith(b"PAR1")
    # It was written, and whoever wrote it died before it was noted.
    to = Delivery(target=str(tmp_path), name=final.file_name, is_final=True)
    async with year.site.sessions() as session:
        again = await deliver(session, final.export, to, now_ms=2)
    assert again == msgspec.structs.replace(first, residue_usd_picos=None)
    assert path.read_bytes() == content
    path.write_bytes(b"changed")
    async with year.site.sessions() as session:
        with pytest.raises(ConfigurationError, match="never written over: move both away"):
            await deliver(session, final.export, to, now_ms=3)
    assert path.read_bytes() == b"changed"


async def test_days_are_final_when_their_month_is(year: Year, tmp_path: Path) -> None:
    await scheduled(year, tmp_path, every="day", rows="groups")
    await year.book(year.row("2026-01"))
    now_ms = JANUARY.start_ms + 3 * MS_PER_DAY + DELAY_MS
    assert names(await due(year, now_ms)) == [f"finance-2026-01-0{day}.provisional.csv" for day in (1, 2, 3)]
    await year.close("2026-01")
    found = await due(year, now_ms)
    assert {each.is_final for each in found} == {True}
    assert names(found)[0] == "finance-2026-01-01.csv"


async def test_the_supply_side_waits_for_its_last_hour(year: Year, tmp_path: Path) -> None:
    await scheduled(year, tmp_path, every="day", format="focus", focus=FocusTerms(side="supply"))
    terms = terms_of({"plain": make_pool_spec()})
    hour_ms = JANUARY.start_ms + 23 * MS_PER_HOUR
    changes = (
        PhaseChange(1, "plain", "plain-0", Phase.STARTING, hour_ms),
        PhaseChange(2, "plain", "plain-0", Phase.SERVING, hour_ms + 60_000),
    )
    run = Run("a" * 20, hour_ms + MS_PER_HOUR, True, changes)
    async with year.site.sessions() as session:
        await record_runs(session, [run], source="driver")
        await session.commit()
    now_ms = hour_ms + MS_PER_HOUR + DELAY_MS
    assert await due(year, now_ms, terms=terms) == []
    async with year.site.sessions() as session:
        bill = await counted(session, terms["plain"], hour_ms)
        await book_hour(session, terms["plain"], bill, booked_in_ms=hour_ms, booked_before_ms=1, now_ms=1)
        await session.commit()
    (one,) = await due(year, now_ms, terms=terms)
    assert one.file_name == "finance-2026-01-01.provisional.csv"
    said = await written(year, one, now_ms)
    assert said.amounts.platform_usd_nanos == bill.bill_usd_nanos > 0
