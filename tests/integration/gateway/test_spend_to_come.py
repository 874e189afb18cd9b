"""What do people at a terminal read of forecasts, unusual spend, and what was told of it?"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, text

from gateway.cli import app as program
from gateway.errors import ConfigurationError
from gateway.forecasts.processes import ask_process
from gateway.ledger.tables import SpendHour
from tests.integration.gateway.terminal import Terminal
from tests.integration.ledger.accounts import DAYS_INTO
from tests.support.spend_shapes import hourly

# Nothing here depends on where rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

MS_PER_HOUR = 3_600_000
NANOS_PER_USD = 10**9


@pytest.fixture
def terminal(home: Path) -> Terminal:
    """With 60 days of spend, its last hours far above what is usual."""
    terminal = Terminal(home)
    end_ms = (int(time.time() * 1000) - 300_000) // MS_PER_HOUR * MS_PER_HOUR  # noqa: TID251 - as the program
    amounts = hourly(60, seed=4, noise=0.1, level=3)
    start_ms = end_ms - len(amounts) * MS_PER_HOUR
    rows = [
        _hour(start_ms + index * MS_PER_HOUR, amount * (12 if index >= len(amounts) - 6 else 1))
        for index, amount in enumerate(amounts)
    ]
    engine = create_engine(terminal.environment["TOLLGATE_DATABASE_URL"].replace("+aiosqlite", ""))
    with engine.begin() as connection:
        connection.execute(insert(SpendHour), rows)
        connection.execute(text(DAYS_INTO))
    engine.dispose()
    return terminal


def _hour(at_ms: int, usd: float) -> dict[str, Any]:
    counts = ("requests", "attempts", "failed_attempts", "unpriced_attempts", "cache_hits")
    tokens = ("input", "output", "cached_input", "cache_write", "reasoning")
    sums = dict.fromkeys((*counts, *(f"{name}_tokens" for name in tokens)), 1)
    texts = {"tenant_id": "ten_1", "project_id": "prj_1", "key_id": "key", "model_alias": "auto"}
    where = {"pool": "plain", "task": "qa", "payer": "tenant", "hour_start_ms": at_ms}
    return {**sums, **texts, **where, "charge_usd_nanos": round(usd * NANOS_PER_USD)}


def test_a_forecast_is_a_table_with_its_error(terminal: Terminal) -> None:
    told = terminal.text("report", "forecast", "--by", "pool")
    assert "Charges forecast by pool" in told
    assert "plain" in told
    assert "30 days USD" in told
    assert "30 days USD" not in terminal.text("report", "forecast", "--month")
    found = terminal.json("report", "forecast")
    assert found["by"] == "tenant"
    assert all(line["method"] for line in found["lines"])


def test_unusual_spend_is_told_with_what_explains_it(terminal: Terminal) -> None:
    assert "Nothing stood out." in terminal.text("report", "anomalies")
    told = terminal.text("report", "anomalies", "--now")
    assert "ten_1" in told
    (found, *_) = terminal.json("report", "anomalies", "--now")["anomalies"]
    assert float(found["charged_usd"]) > float(found["usual_usd"])
    wrong = terminal.refused("report", "anomalies", "--from", "2026-11-02", "--to", "2026-11-01")
    assert "after its start" in wrong


def test_alerts_are_tried_listed_and_have_a_key(terminal: Terminal) -> None:
    assert "Nobody was told anything yet." in terminal.text("alerts", "list")
    assert "No channel is set up" in terminal.refused("alerts", "test")
    assert "is 1 to 500" in terminal.refused("alerts", "list", "--limit", "0")
    with socket.socket() as nobody:  # bound, and nobody listens
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        environment = {**terminal.environment, "TOLLGATE_ALERTS__WEBHOOK_URLS": f'["{url}"]'}
        outcome = terminal.runner.invoke(program, ["alerts", "test"], env=environment)
    assert (outcome.exit_code, "did not take it: ConnectError" in outcome.output) == (1, True)
    assert "A test of Tollgate's alerts" in terminal.text("alerts", "list")
    assert terminal.json("alerts", "key")["key_hex"] in terminal.text("alerts", "key")


def test_a_process_that_fails_is_told(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="ended with status 1"):
        asyncio.run(ask_process("gateway.no_such_module", b"{}"))
