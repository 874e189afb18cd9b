"""Can every page of the console be measured on a filled ledger? How fast: `make proof`."""

import asyncio
from pathlib import Path

from gateway.console.navigation import SECTIONS
from gateway.migrate import upgrade
from tests.load.console_pages import fill, measure, write_summary


def test_every_page_answers_and_its_parts_follow(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'year.db'}"
    upgrade(url)
    asyncio.run(fill(url, 1200))
    figures = measure(url, tmp_path, times=1)
    assert {one.path for one in SECTIONS} <= set(figures["pages"])
    assert "/console/overview/forecast" in figures["later_ms"]
    write_summary(figures, tmp_path)
    assert "`/console/spend?" in (tmp_path / "console_pages.md").read_text()
