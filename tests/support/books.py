"""Do the books agree with themselves, with the budgets, and with what the engines really did?

The questions here are asked in SQL of their own, apart from the product's: each finds what is wrong and must
find nothing. `tollgate audit` is asked too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from typer.testing import CliRunner

from gateway.cli import app as program
from tests.support.mock_process import MockVllm

Row = dict[str, Any]

QUESTIONS: Final[dict[str, str]] = {
    "a booking that does not add up to zero": """
        SELECT transaction_id, sum(amount_usd_nanos) AS total FROM journal_entries
        GROUP BY transaction_id HAVING sum(amount_usd_nanos) <> 0""",
    "a booking without lines, or one of another number of attempts than it says": """
        SELECT t.id, t.attempts, a.found, e.found AS lines FROM journal_transactions t
        LEFT JOIN (SELECT journal_id, count(*) AS found FROM attempts GROUP BY journal_id) a
          ON a.journal_id = t.id
        LEFT JOIN (SELECT transaction_id, count(*) AS found FROM journal_entries GROUP BY transaction_id) e
          ON e.transaction_id = t.id
        WHERE t.attempts <> coalesce(a.found, 0) OR e.found IS NULL""",
    "an account's lines of a booking that its attempts do not add up to": """
        SELECT * FROM
          (SELECT transaction_id, account, amount_usd_nanos FROM journal_entries
           WHERE account LIKE 'tenant:%' OR account = 'platform') e
        FULL JOIN
          (SELECT journal_id,
             CASE payer WHEN 'tenant' THEN 'tenant:' || tenant_id ELSE 'platform' END AS owner,
             sum(coalesce(charge_usd_nanos, 0)) AS charged FROM attempts GROUP BY 1, 2) a
        ON a.journal_id = e.transaction_id AND a.owner = e.account
        WHERE coalesce(e.amount_usd_nanos, 0) <> coalesce(a.charged, 0)""",
    "an attempt that is booked twice": """
        SELECT attempt_id FROM attempts GROUP BY attempt_id HAVING count(*) > 1""",
    "an attempt's number that is used twice": """
        SELECT request_id, attempt_number FROM attempts GROUP BY 1, 2 HAVING count(*) > 1""",
    "a charge beyond its hold": """
        SELECT attempt_id, hold_usd_nanos, charge_usd_nanos FROM attempts
        WHERE charge_usd_nanos > hold_usd_nanos""",
    "two payers of one request": """
        SELECT request_id FROM attempts WHERE payer = 'tenant' GROUP BY request_id HAVING count(*) > 1""",
    "a bucket that its postings do not add up to": """
        SELECT w.*, p.posted, p.overage FROM budget_windows w LEFT JOIN
          (SELECT budget_id, window_start_ms, sum(amount_usd_nanos) AS posted,
             sum(overage_usd_nanos) AS overage
           FROM budget_postings GROUP BY 1, 2) p USING (budget_id, window_start_ms)
        WHERE w.posted_usd_nanos <> coalesce(p.posted, 0) OR w.overage_usd_nanos <> coalesce(p.overage, 0)""",
    "a bucket that its slices do not add up to": """
        SELECT w.*, s.leased, s.lost FROM budget_windows w LEFT JOIN
          (SELECT budget_id, window_start_ms,
             sum(CASE WHEN is_unattributed THEN 0 ELSE amount_usd_nanos END) AS leased,
             sum(CASE WHEN is_unattributed THEN amount_usd_nanos ELSE 0 END) AS lost
           FROM budget_slices GROUP BY 1, 2) s USING (budget_id, window_start_ms)
        WHERE w.leased_usd_nanos <> coalesce(s.leased, 0)
          OR w.unattributed_usd_nanos <> coalesce(s.lost, 0)""",
    "a slice below nothing": "SELECT * FROM budget_slices WHERE amount_usd_nanos < 0",
    "a hard limit that is passed": """
        SELECT w.* FROM budget_windows w JOIN budgets b ON b.id = w.budget_id
        WHERE b.is_hard AND (w.overage_usd_nanos <> 0 OR w.limit_highest_usd_nanos
          < w.posted_usd_nanos + w.leased_usd_nanos + w.unattributed_usd_nanos)""",
    "a budget for good that its owner's attempts do not add up to": """
        SELECT w.budget_id, b.scope, w.posted_usd_nanos, sum(a.charge_usd_nanos) AS charged
        FROM budget_windows w JOIN budgets b ON b.id = w.budget_id
        LEFT JOIN attempts a ON a.payer = 'tenant' AND a.started_at_ms >= b.created_at_ms AND b.scope_id =
          CASE b.scope WHEN 'tenant' THEN a.tenant_id WHEN 'project' THEN a.project_id ELSE a.key_id END
        WHERE b."window" = 'total' AND b.scope <> 'tag'
        GROUP BY w.budget_id, b.scope, w.posted_usd_nanos
        HAVING w.posted_usd_nanos <> coalesce(sum(a.charge_usd_nanos), 0)""",
    "an hour that its attempts do not add up to": """
        SELECT * FROM
          (SELECT hour_start_ms, tenant_id, payer, sum(attempts) AS n, sum(charge_usd_nanos) AS charged,
             sum(input_tokens + cached_input_tokens + output_tokens) AS tokens
           FROM spend_hours GROUP BY 1, 2, 3) h
        FULL JOIN
          (SELECT started_at_ms - started_at_ms % 3600000 AS hour_start_ms, tenant_id, payer, count(*) AS n,
             sum(coalesce(charge_usd_nanos, 0)) AS charged,
             sum(input_tokens + cached_input_tokens + output_tokens) AS tokens
           FROM attempts GROUP BY 1, 2, 3) a
        USING (hour_start_ms, tenant_id, payer)
        WHERE h.n IS DISTINCT FROM a.n OR h.charged IS DISTINCT FROM a.charged
          OR h.tokens IS DISTINCT FROM a.tokens""",
}
"""What must find nothing, by what it would have found. For PostgreSQL."""


def query(url: str, statement: str, **values: object) -> list[Row]:
    """Rows of one statement; not from within an event loop."""

    async def ask() -> list[Row]:
        engine = create_async_engine(url)
        try:
            async with engine.begin() as connection:
                result = await connection.execute(text(statement), values)
                return [dict(row._mapping) for row in result] if result.returns_rows else []
        finally:
            await engine.dispose()

    return asyncio.run(ask())


def assert_books_are_right(settings: Mapping[str, str]) -> None:
    """Every question finds nothing, and `tollgate audit` ends with 0.

    Args:
        settings: the `TOLLGATE_…` variables of an installation on PostgreSQL.

    Raises:
        AssertionError: what is wrong, with the rows that show it.
    """
    url = settings["TOLLGATE_DATABASE_URL"]
    found = {name: rows[:5] for name, statement in QUESTIONS.items() if (rows := query(url, statement))}
    assert not found, found
    outcome = CliRunner().invoke(program, ["audit"], env=dict(settings))
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)


def tokens_served(engines: Iterable[MockVllm]) -> int:
    """What the engines read and wrote since their counts began."""
    stats = [engine.stats() for engine in engines]
    return sum(found["prompt_tokens"] + found["completion_tokens"] for found in stats)


def tokens_booked(rows: Sequence[Row]) -> int:
    """The same by the books."""
    meters = (
        "input_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
    )
    return sum(row[name] for row in rows for name in meters)


def highest_use(rows: Sequence[Row]) -> int:
    """The most that was held and spent at any moment, replayed from rows of attempts, nano-USD.

    An attempt's row lasts a little shorter than its hold, so that this is never above the truth: of what ends
    and begins in the same millisecond the end counts first.
    """
    changes: list[tuple[int, int, int]] = []
    for row in rows:
        held = row["hold_usd_nanos"]
        spent = row["charge_usd_nanos"] if row["payer"] == "tenant" else 0
        changes.append((row["started_at_ms"], 1, held))
        # One that ends in the millisecond of its start must not end first.
        ended_ms = max(row["ended_at_ms"], row["started_at_ms"])
        changes.append((ended_ms, 0 if ended_ms > row["started_at_ms"] else 2, spent - held))
    now = highest = 0
    for _, _, change in sorted(changes):
        now += change
        highest = max(highest, now)
    return highest
