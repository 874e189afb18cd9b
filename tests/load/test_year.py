"""Does a small year close month by month, and do all periods come to the journal? How fast: `make proof`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.migrate import upgrade
from tests.load.year import MONTHS, measure
from tests.support.servers import postgres_server

ROWS = 6_000


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_small_year_is_closed_and_adds_up(database: str, tmp_path: Path) -> None:
    if database == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'year.db'}"
        upgrade(url)
        figures = asyncio.run(measure(url, ROWS))
    else:
        with postgres_server() as url:
            upgrade(url)
            figures = asyncio.run(measure(url, ROWS))
    assert figures["closed_months"] == len(MONTHS)
    assert figures["all_periods_usd"] == figures["journal_usd"]
    assert figures["attempts"] == ROWS + figures["late_attempts"]
