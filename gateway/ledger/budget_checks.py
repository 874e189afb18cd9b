"""Are limits kept, and is everything that was lent accounted for? The statements of those invariants.

Buckets are looked at all, whatever the extent; only sums over their postings keep to those buckets in which
something was booked lately.
"""

from __future__ import annotations

from gateway.ledger.findings import Invariant, by_sql

_WINDOWS = "SELECT count(*) FROM budget_windows"
_SLICES = "SELECT count(*) FROM budget_slices"

_WITHIN_LIMIT = by_sql(
    of="SELECT count(*) FROM budget_windows w JOIN budgets b ON b.id = w.budget_id WHERE b.is_hard",
    broken="""
SELECT w.budget_id, w.window_start_ms, w.posted_usd_nanos, w.leased_usd_nanos, w.unattributed_usd_nanos,
  w.overage_usd_nanos, w.limit_highest_usd_nanos
FROM budget_windows w JOIN budgets b ON b.id = w.budget_id
WHERE b.is_hard AND w.posted_usd_nanos + w.leased_usd_nanos + w.unattributed_usd_nanos - w.overage_usd_nanos
  > w.limit_highest_usd_nanos
""",
)

_POSTINGS = by_sql(
    of=_WINDOWS,
    broken="""
SELECT w.budget_id, w.window_start_ms,
  w.posted_usd_nanos, coalesce(sum(p.amount_usd_nanos), 0) AS postings_usd_nanos,
  w.overage_usd_nanos, coalesce(sum(p.overage_usd_nanos), 0) AS postings_overage_usd_nanos
FROM budget_windows w LEFT JOIN budget_postings p
  ON p.budget_id = w.budget_id AND p.window_start_ms = w.window_start_ms
WHERE EXISTS (
    SELECT 1 FROM journal_transactions t JOIN budget_postings r ON r.transaction_id = t.id
    WHERE t.at_ms >= :since_ms AND r.budget_id = w.budget_id AND r.window_start_ms = w.window_start_ms
  ) OR NOT EXISTS (
    SELECT 1 FROM budget_postings r WHERE r.budget_id = w.budget_id AND r.window_start_ms = w.window_start_ms
  )
GROUP BY w.budget_id, w.window_start_ms, w.posted_usd_nanos, w.overage_usd_nanos
HAVING w.posted_usd_nanos <> coalesce(sum(p.amount_usd_nanos), 0)
  OR w.overage_usd_nanos <> coalesce(sum(p.overage_usd_nanos), 0)
""",
)

_POSTED_TO_A_BUCKET = by_sql(
    broken="""
SELECT p.transaction_id AS booking, p.budget_id, p.window_start_ms, p.amount_usd_nanos
FROM journal_transactions t JOIN budget_postings p ON p.transaction_id = t.id
LEFT JOIN budget_windows w ON w.budget_id = p.budget_id AND w.window_start_ms = p.window_start_ms
WHERE t.at_ms >= :since_ms AND w.budget_id IS NULL
""",
)

# Not equal: what was reserved before there was the budget, or in another window, is not in it.
_WITHIN_BOOKING = by_sql(
    of="SELECT count(*) FROM journal_transactions t JOIN budget_postings p ON p.transaction_id = t.id"
    " WHERE t.at_ms >= :since_ms",
    broken="""
SELECT booking, budget_id, window_start_ms, amount_usd_nanos, overage_usd_nanos, tenants_usd_nanos
FROM (
  SELECT p.transaction_id AS booking, p.budget_id, p.window_start_ms, p.amount_usd_nanos,
    p.overage_usd_nanos, coalesce(sum(e.amount_usd_nanos), 0) AS tenants_usd_nanos
  FROM journal_transactions t JOIN budget_postings p ON p.transaction_id = t.id
  JOIN budgets b ON b.id = p.budget_id
  LEFT JOIN journal_entries e ON e.transaction_id = t.id AND (
    (b.tenant_id = 'platform' AND e.account = 'platform')
    OR (e.account LIKE 'tenant:%'
      AND (b.scope <> 'tenant' OR e.account = 'tenant:' || b.scope_id)
      AND (b.tenant_id IS NULL OR e.account = 'tenant:' || b.tenant_id))
  )
  WHERE t.at_ms >= :since_ms
  GROUP BY p.transaction_id, p.budget_id, p.window_start_ms, p.owner_id, p.amount_usd_nanos,
    p.overage_usd_nanos
) AS compared
WHERE amount_usd_nanos > tenants_usd_nanos OR overage_usd_nanos > amount_usd_nanos OR overage_usd_nanos < 0
""",
)

_ON_TIME = by_sql(
    of=_SLICES,
    broken="""
SELECT s.owner_id AS owner, s.budget_id, s.window_start_ms, s.amount_usd_nanos, s.expires_at_ms
FROM budget_slices s
WHERE NOT s.is_unattributed AND s.amount_usd_nanos > 0 AND s.expires_at_ms < :over_ms
""",
)

_LENT = by_sql(
    of=_WINDOWS,
    broken="""
SELECT budget_id, window_start_ms, sum(leased) AS leased_off_by_usd_nanos,
  sum(unattributed) AS unattributed_off_by_usd_nanos
FROM (
  SELECT budget_id, window_start_ms, leased_usd_nanos AS leased, unattributed_usd_nanos AS unattributed
  FROM budget_windows
  UNION ALL
  SELECT budget_id, window_start_ms, CASE WHEN is_unattributed THEN 0 ELSE -amount_usd_nanos END,
    CASE WHEN is_unattributed THEN -amount_usd_nanos ELSE 0 END
  FROM budget_slices
) AS sides
GROUP BY budget_id, window_start_ms
HAVING sum(leased) <> 0 OR sum(unattributed) <> 0
""",
)
_NOT_NEGATIVE = by_sql(
    broken="""
SELECT budget_id, window_start_ms, owner, amount_usd_nanos
FROM (
  SELECT budget_id, window_start_ms, owner_id AS owner, amount_usd_nanos FROM budget_slices
  UNION ALL
  SELECT budget_id, window_start_ms, 'posted', posted_usd_nanos FROM budget_windows
  UNION ALL
  SELECT budget_id, window_start_ms, 'leased', leased_usd_nanos FROM budget_windows
  UNION ALL
  SELECT budget_id, window_start_ms, 'unattributed', unattributed_usd_nanos FROM budget_windows
  UNION ALL
  SELECT budget_id, window_start_ms, 'overage', overage_usd_nanos FROM budget_windows
) AS amounts
WHERE amount_usd_nanos < 0
""",
)

# Records that turned up may have drawn on a slice since it was booked: it is less then, never more.
_SLICE_BOOKED = by_sql(
    of="SELECT count(*) FROM budget_slices WHERE is_unattributed",
    broken="""
SELECT s.owner_id AS owner, s.budget_id, s.window_start_ms, s.amount_usd_nanos,
  t.id AS booking, e.amount_usd_nanos AS booked_usd_nanos
FROM budget_slices s
LEFT JOIN journal_transactions t ON t.id = s.journal_id AND t.kind = 'unattributed'
LEFT JOIN journal_entries e ON e.transaction_id = t.id AND e.account = 'unattributed:' || s.budget_id
LEFT JOIN journal_transactions r ON r.reverses = t.id
WHERE s.is_unattributed
  AND (t.id IS NULL OR r.id IS NOT NULL OR e.amount_usd_nanos IS NULL
    OR e.amount_usd_nanos < s.amount_usd_nanos)
""",
)
_BOOKING_HAS_SLICE = by_sql(
    broken="""
SELECT t.id AS booking, t.at_ms
FROM journal_transactions t
LEFT JOIN journal_transactions r ON r.reverses = t.id
LEFT JOIN budget_slices s ON s.journal_id = t.id AND s.is_unattributed
WHERE t.at_ms >= :since_ms AND t.kind = 'unattributed' AND r.id IS NULL AND s.owner_id IS NULL
""",
)

BUDGETS = (
    Invariant(
        "I-5", "no hard budget holds more than its highest limit, but for its overage", (_WITHIN_LIMIT,)
    ),
    Invariant(
        "I-6",
        "what a budget has booked, and its overage, are the sums of its postings",
        (_POSTINGS, _POSTED_TO_A_BUCKET),
    ),
    Invariant(
        "I-6a",
        "no posting is more than what its booking charged to those whom the budget is for",
        (_WITHIN_BOOKING,),
    ),
    Invariant("I-8", "no slice stays lent when its process was silent for the grace period", (_ON_TIME,)),
    Invariant(
        "I-11",
        "what is lent and unattributed is the sum of the slices, and nothing is below zero",
        (_LENT, _NOT_NEGATIVE),
    ),
    Invariant(
        "I-11a",
        "every unattributed slice has its booking, and every such booking its slice or its reversal",
        (_SLICE_BOOKED, _BOOKING_HAS_SLICE),
    ),
)
