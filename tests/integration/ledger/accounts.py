"""Do all books say the same? Not asked through the product's own auditor: each may err."""

from __future__ import annotations

from typing import Any

from tests.integration.ledger.site import Site

SUMS = (
    "attempts",
    "requests",
    "failed_attempts",
    "unpriced_attempts",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "charge_usd_nanos",
    "cache_hits",
)
KEYS = "tenant_id, project_id, key_id, model_alias, pool, task, payer"
MS_PER_HOUR = 3_600_000

_FROM_ATTEMPTS = f"""
SELECT started_at_ms - started_at_ms % {MS_PER_HOUR} AS hour_start_ms, {KEYS}, count(*) AS attempts,
  sum(CASE attempt_number WHEN 1 THEN 1 ELSE 0 END) AS requests,
  sum(CASE state WHEN 'failed' THEN 1 ELSE 0 END) AS failed_attempts,
  sum(CASE WHEN charge_usd_nanos IS NULL THEN 1 ELSE 0 END) AS unpriced_attempts,
  {", ".join(f"sum({name}) AS {name}" for name in SUMS[4:-2])},
  sum(coalesce(charge_usd_nanos, 0)) AS charge_usd_nanos,
  sum(CASE cache WHEN 'hit' THEN 1 ELSE 0 END) AS cache_hits
FROM attempts GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
"""
HOURS_FROM_ATTEMPTS = f"SELECT hour_start_ms, {KEYS}, {', '.join(SUMS)} FROM ({_FROM_ATTEMPTS}) AS summed"
_DAY = "hour_start_ms - hour_start_ms % 86400000"
DAYS_FROM_HOURS = (
    f"SELECT {_DAY} AS day_start_ms, {KEYS}, {', '.join(f'sum({name})' for name in SUMS)} FROM spend_hours"
    f" GROUP BY {_DAY}, {KEYS}"
)
DAYS_KEPT = f"SELECT day_start_ms, {KEYS}, {', '.join(SUMS)} FROM spend_days"
DAYS_INTO = f"INSERT INTO spend_days (day_start_ms, {KEYS}, {', '.join(SUMS)}) {DAYS_FROM_HOURS}"
"""For who makes hours without the ledger."""
HOURS_KEPT = f"SELECT hour_start_ms, {KEYS}, {', '.join(SUMS)} FROM spend_hours"

WRONG = {
    "a booking of the journal adds up to zero": """
        SELECT transaction_id, sum(amount_usd_nanos) FROM journal_entries
        GROUP BY transaction_id HAVING sum(amount_usd_nanos) <> 0""",
    "a booking of usage is what its attempts come to": """
        SELECT t.id FROM journal_transactions t
        LEFT JOIN (SELECT journal_id, count(*) AS n, sum(coalesce(charge_usd_nanos, 0)) AS charge
                   FROM attempts GROUP BY journal_id) a ON a.journal_id = t.id
        JOIN journal_entries e ON e.transaction_id = t.id AND e.account = 'usage'
        WHERE t.kind = 'usage' AND (coalesce(a.n, 0) <> t.attempts OR a.charge <> -e.amount_usd_nanos)""",
    "what a window has booked is the sum of its postings": """
        SELECT w.budget_id, w.window_start_ms, w.posted_usd_nanos, w.overage_usd_nanos FROM budget_windows w
        LEFT JOIN (SELECT budget_id, window_start_ms, sum(amount_usd_nanos) AS posted,
                   sum(overage_usd_nanos) AS overage FROM budget_postings
                   GROUP BY budget_id, window_start_ms) p
          ON p.budget_id = w.budget_id AND p.window_start_ms = w.window_start_ms
        WHERE w.posted_usd_nanos <> coalesce(p.posted, 0) OR w.overage_usd_nanos <> coalesce(p.overage, 0)""",
    "what a window has lent is the sum of its slices": """
        SELECT w.budget_id, w.window_start_ms, w.leased_usd_nanos, w.unattributed_usd_nanos
        FROM budget_windows w
        LEFT JOIN (SELECT budget_id, window_start_ms,
                   sum(CASE WHEN is_unattributed THEN 0 ELSE amount_usd_nanos END) AS lent,
                   sum(CASE WHEN is_unattributed THEN amount_usd_nanos ELSE 0 END) AS lost
                   FROM budget_slices GROUP BY budget_id, window_start_ms) s
          ON s.budget_id = w.budget_id AND s.window_start_ms = w.window_start_ms
        WHERE w.leased_usd_nanos <> coalesce(s.lent, 0)
           OR w.unattributed_usd_nanos <> coalesce(s.lost, 0)""",
    "nothing is lent or booked beyond the highest limit but overage": """
        SELECT w.budget_id, w.window_start_ms FROM budget_windows w JOIN budgets b ON b.id = w.budget_id
        WHERE b.is_hard AND posted_usd_nanos + leased_usd_nanos + unattributed_usd_nanos
              > limit_highest_usd_nanos + overage_usd_nanos""",
}
"""What must hold, and a query for where it does not."""


async def check_books(site: Site) -> None:
    """Compare every book with every other.

    Raises:
        AssertionError: two differ; says where, with the end of the journal.
    """
    for rule, query in WRONG.items():
        found = await site.rows(query)
        assert not found, f"{rule}: not so for {found}\n{await journal_text(site)}"
    kept, summed = sorted(await site.rows(HOURS_KEPT)), sorted(await site.rows(HOURS_FROM_ATTEMPTS))
    assert kept == summed, await journal_text(site)
    kept, summed = sorted(await site.rows(DAYS_KEPT)), sorted(await site.rows(DAYS_FROM_HOURS))
    assert kept == summed, await journal_text(site)


async def journal_text(site: Site) -> str:
    """The last bookings, for whoever looks for what went wrong."""
    rows = await site.rows(
        "SELECT t.at_ms, t.id, t.kind, t.reverses, t.note, e.account, e.amount_usd_nanos"
        " FROM journal_transactions t JOIN journal_entries e ON e.transaction_id = t.id"
        " ORDER BY t.at_ms DESC, t.id, e.account LIMIT 60"
    )
    return "journal, newest first:\n" + "\n".join(" ".join(map(str, row)) for row in rows)


async def balances(site: Site) -> dict[str, Any]:
    """Every account of the journal that is not even, nano-USD."""
    found = await site.rows("SELECT account, sum(amount_usd_nanos) FROM journal_entries GROUP BY account")
    return {account: int(amount) for account, amount in found if amount}
