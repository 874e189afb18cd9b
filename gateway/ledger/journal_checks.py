"""Do attempts, journal and hourly sums say the same? The statements of those invariants."""

from __future__ import annotations

from gateway.ledger.findings import Invariant, Look, by_sql
from gateway.ledger.posting import HOUR_SUMS

_BOOKINGS = "SELECT count(*) FROM journal_transactions WHERE at_ms >= :since_ms"
_USAGE = "SELECT count(*) FROM journal_transactions WHERE at_ms >= :since_ms AND kind = 'usage'"
_ATTEMPTS = "SELECT count(*) FROM attempts WHERE started_at_ms >= :since_ms"


def _by_request(columns: str, *, wrong: str, where: str = "1 = 1") -> Look:
    """A look at the attempts of each request together.

    What looks wrong among the recent ones is looked at again with all attempts of its request: the first of
    them may be older.
    """
    groups = f"FROM attempts WHERE {where} AND {{}} GROUP BY request_id HAVING {wrong}"
    suspects = f"SELECT request_id {groups.format('started_at_ms >= :since_ms')}"
    return by_sql(
        of=_ATTEMPTS,
        broken=f"SELECT request_id AS request, {columns} {groups.format(f'request_id IN ({suspects})')}",
    )


_ADD_UP = by_sql(
    of=_BOOKINGS,
    broken="""
SELECT t.id AS booking, count(e.account) AS entries,
  coalesce(sum(e.amount_usd_nanos), 0) AS off_by_usd_nanos
FROM journal_transactions t LEFT JOIN journal_entries e ON e.transaction_id = t.id
WHERE t.at_ms >= :since_ms
GROUP BY t.id
HAVING coalesce(sum(e.amount_usd_nanos), 0) <> 0 OR count(e.account) = 0
""",
)

# Both sides as rows of one list: no database needs a full join for it.
_LINES = by_sql(
    of=_USAGE,
    broken="""
SELECT booking, account, sum(line) AS journal_usd_nanos, sum(came_to) AS attempts_usd_nanos
FROM (
  SELECT t.id AS booking, e.account AS account, e.amount_usd_nanos AS line, 0 AS came_to
  FROM journal_transactions t JOIN journal_entries e ON e.transaction_id = t.id
  WHERE t.at_ms >= :since_ms AND t.kind = 'usage' AND e.account <> 'usage'
  UNION ALL
  SELECT t.id, CASE a.payer WHEN 'tenant' THEN 'tenant:' || a.tenant_id ELSE 'platform' END,
    0, coalesce(a.charge_usd_nanos, 0)
  FROM journal_transactions t JOIN attempts a ON a.journal_id = t.id
  WHERE t.at_ms >= :since_ms AND t.kind = 'usage'
) AS sides
GROUP BY booking, account
HAVING sum(line) <> sum(came_to)
""",
)

_COUNTS = by_sql(
    broken="""
SELECT t.id AS booking, t.attempts AS attempts_said, count(a.attempt_id) AS attempts_found
FROM journal_transactions t LEFT JOIN attempts a ON a.journal_id = t.id
WHERE t.at_ms >= :since_ms
GROUP BY t.id, t.attempts
HAVING t.attempts <> count(a.attempt_id)
""",
)

_BOOKED = by_sql(
    of=_ATTEMPTS,
    broken="""
SELECT a.attempt_id AS attempt, a.journal_id AS booking, a.charge_usd_nanos
FROM attempts a LEFT JOIN journal_transactions t ON t.id = a.journal_id AND t.kind = 'usage'
WHERE a.started_at_ms >= :since_ms AND t.id IS NULL
""",
)

_REVERSES = by_sql(
    of="SELECT count(*) FROM journal_transactions WHERE at_ms >= :since_ms AND kind = 'reversal'",
    broken="""
SELECT r.id AS booking, r.reverses AS reverses
FROM journal_transactions r LEFT JOIN journal_transactions t ON t.id = r.reverses
WHERE r.at_ms >= :since_ms
  AND ((r.kind = 'reversal' AND (t.id IS NULL OR t.kind = 'reversal'))
    OR (r.kind <> 'reversal' AND r.reverses IS NOT NULL))
""",
)
_NEGATIVE = by_sql(
    broken="""
SELECT booking, account, sum(amount) AS off_by_usd_nanos
FROM (
  SELECT r.id AS booking, e.account AS account, e.amount_usd_nanos AS amount
  FROM journal_transactions r JOIN journal_entries e ON e.transaction_id = r.id
  WHERE r.at_ms >= :since_ms AND r.kind = 'reversal'
  UNION ALL
  SELECT r.id, e.account, e.amount_usd_nanos
  FROM journal_transactions r JOIN journal_entries e ON e.transaction_id = r.reverses
  WHERE r.at_ms >= :since_ms AND r.kind = 'reversal'
) AS both_sides
GROUP BY booking, account
HAVING sum(amount) <> 0
""",
)
_ONCE = by_sql(
    broken="""
SELECT t.reverses AS booking, count(*) AS reversals
FROM journal_transactions t
WHERE t.reverses IN (SELECT reverses FROM journal_transactions WHERE at_ms >= :since_ms)
GROUP BY t.reverses
HAVING count(*) > 1
""",
)

_ONE_ID = by_sql(
    of=_ATTEMPTS,
    broken="""
SELECT attempt_id AS attempt, count(*) AS times
FROM attempts
WHERE started_at_ms >= :since_ms
GROUP BY attempt_id
HAVING count(*) > 1
""",
)

_ONE_ANSWER = _by_request(
    "count(*) AS answers, sum(charge_usd_nanos) AS charge_usd_nanos",
    wrong="count(*) > 1",
    where="state = 'answered' AND payer = 'tenant'",
)
_NUMBERED = _by_request(
    "count(*) AS attempts, min(attempt_number) AS first_number, max(attempt_number) AS last_number",
    wrong="min(attempt_number) <> 1 OR max(attempt_number) <> count(*)"
    " OR count(DISTINCT attempt_number) <> count(*)",
)
_ONE_OWNER = _by_request(
    "min(tenant_id) AS tenant, max(tenant_id) AS other_tenant, min(key_id) AS key_id,"
    " max(key_id) AS other_key_id",
    wrong="min(tenant_id) <> max(tenant_id) OR min(project_id) <> max(project_id)"
    " OR min(key_id) <> max(key_id)",
)

_HOUR_KEYS = "hour_start_ms, tenant_id, project_id, key_id, model_alias, pool, task, payer"
_COUNTED = {
    "requests": "CASE a.attempt_number WHEN 1 THEN 1 ELSE 0 END",
    "attempts": "1",
    "failed_attempts": "CASE a.state WHEN 'failed' THEN 1 ELSE 0 END",
    "unpriced_attempts": "CASE WHEN a.charge_usd_nanos IS NULL THEN 1 ELSE 0 END",
    "charge_usd_nanos": "coalesce(a.charge_usd_nanos, 0)",
    "cache_hits": "CASE a.cache WHEN 'hit' THEN 1 ELSE 0 END",
}
"""What an attempt adds to an hour; every other sum is of the column of its name."""
_HOURS = by_sql(
    of="SELECT count(*) FROM spend_hours WHERE hour_start_ms >= :hour_ms",
    broken=f"""
SELECT hour_start_ms, tenant_id, pool, task, payer,
  sum(attempts) AS attempts_off_by, sum(charge_usd_nanos) AS charge_off_by_usd_nanos
FROM (
  SELECT {_HOUR_KEYS}, {", ".join(HOUR_SUMS)} FROM spend_hours WHERE hour_start_ms >= :hour_ms
  UNION ALL
  SELECT a.started_at_ms - a.started_at_ms % 3600000, a.tenant_id, a.project_id, a.key_id, a.model_alias,
    a.pool, a.task, a.payer, {", ".join(f"-({_COUNTED.get(name, f'a.{name}')})" for name in HOUR_SUMS)}
  FROM attempts a WHERE a.started_at_ms >= :hour_ms
) AS sides
GROUP BY {_HOUR_KEYS}
HAVING {" OR ".join(f"sum({name}) <> 0" for name in HOUR_SUMS)}
""",  # noqa: S608 - ours
)

_DAY_KEYS = _HOUR_KEYS.removeprefix("hour_start_ms, ")
_DAYS = by_sql(
    of="SELECT count(*) FROM spend_days WHERE day_start_ms >= :day_ms",
    broken=f"""
SELECT day_start_ms, tenant_id, pool, task, payer,
  sum(attempts) AS attempts_off_by, sum(charge_usd_nanos) AS charge_off_by_usd_nanos
FROM (
  SELECT day_start_ms, {_DAY_KEYS}, {", ".join(HOUR_SUMS)} FROM spend_days WHERE day_start_ms >= :day_ms
  UNION ALL
  SELECT hour_start_ms - hour_start_ms % 86400000, {_DAY_KEYS}, {", ".join(f"-{name}" for name in HOUR_SUMS)}
  FROM spend_hours WHERE hour_start_ms >= :day_ms
) AS sides
GROUP BY day_start_ms, {_DAY_KEYS}
HAVING {" OR ".join(f"sum({name}) <> 0" for name in HOUR_SUMS)}
""",  # noqa: S608 - ours
)

# What an answer came to beyond its hold is told where it did harm: as overage of a budget.
_WITHIN_HOLD = by_sql(
    of=_ATTEMPTS,
    broken="""
SELECT a.attempt_id AS attempt, a.state AS state, a.charge_usd_nanos, a.hold_usd_nanos
FROM attempts a
WHERE a.started_at_ms >= :since_ms AND a.charge_usd_nanos > a.hold_usd_nanos
  AND NOT (a.state = 'answered' AND EXISTS (
    SELECT 1 FROM budget_postings p
    WHERE p.transaction_id = a.journal_id AND p.overage_usd_nanos >= a.charge_usd_nanos - a.hold_usd_nanos
  ))
""",
)
_REFUSED = by_sql(
    of=_ATTEMPTS,
    broken="""
SELECT attempt_id AS attempt, error_code AS error_code, charge_usd_nanos
FROM attempts
WHERE started_at_ms >= :since_ms AND error_code IN (
  'budget_exceeded', 'rate_limited', 'permission_denied', 'no_target', 'unpriced', 'invalid_api_key'
)
""",
)

_COUNTS_OF_TOKENS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_TOKENS = by_sql(
    of=_ATTEMPTS,
    broken=f"""
SELECT attempt_id AS attempt, {", ".join(_COUNTS_OF_TOKENS)}
FROM attempts
WHERE started_at_ms >= :since_ms AND ({" OR ".join(f"{name} < 0" for name in _COUNTS_OF_TOKENS)})
""",  # noqa: S608 - ours
)

JOURNAL = (
    Invariant("I-1", "the entries of every booking add up to zero", (_ADD_UP,)),
    Invariant("I-1a", "every booking of usage is what its attempts came to", (_LINES, _COUNTS)),
    Invariant("I-1b", "every attempt is in a booking of usage", (_BOOKED,)),
    Invariant(
        "I-1c",
        "every reversal takes back one booking, exactly, and no booking is taken back twice",
        (_REVERSES, _NEGATIVE, _ONCE),
    ),
)
ATTEMPTS = (
    Invariant("I-3", "no two attempts have the same id", (_ONE_ID,)),
    Invariant("I-4", "a tenant pays for one answer to a request at most", (_ONE_ANSWER,)),
    Invariant("I-4a", "the attempts at a request are numbered from 1 without gaps", (_NUMBERED,)),
    Invariant("I-13", "no count of tokens is below zero", (_TOKENS,)),
    Invariant("I-18", "every hour is the sum of its attempts, every day of its hours", (_HOURS, _DAYS)),
    Invariant("I-19", "no attempt came to more than what was held for it", (_WITHIN_HOLD,)),
    Invariant("I-19a", "what was refused is not in the books", (_REFUSED,)),
    Invariant("I-20", "the attempts at a request are one key's of one project of one tenant", (_ONE_OWNER,)),
)
