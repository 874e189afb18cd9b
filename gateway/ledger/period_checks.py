"""Is what was corrected booked, once, and does what came late count in a later period? The statements."""

from __future__ import annotations

from gateway.ledger.findings import Invariant, by_sql

_ADJUSTED = by_sql(
    of="SELECT count(*) FROM adjustments WHERE at_ms >= :since_ms",
    broken="""
SELECT a.id AS adjustment, a.journal_id AS booking, a.amount_usd_nanos,
  coalesce(e.amount_usd_nanos, 0) AS booked_usd_nanos
FROM adjustments a
LEFT JOIN journal_entries e ON e.transaction_id = a.journal_id
  AND e.account = CASE a.tenant_id WHEN 'platform' THEN 'platform' ELSE 'tenant:' || a.tenant_id END
WHERE a.at_ms >= :since_ms AND a.amount_usd_nanos <> coalesce(e.amount_usd_nanos, 0)
""",
)
_BOOKED = by_sql(
    broken="""
SELECT t.id AS booking FROM journal_transactions t LEFT JOIN adjustments a ON a.journal_id = t.id
WHERE t.at_ms >= :since_ms AND t.kind = 'adjustment' AND a.id IS NULL
""",
)
_AGREED = by_sql(
    broken="""
SELECT a.id AS adjustment, p.proposed_by AS proposed_by, p.decided_by AS decided_by
FROM adjustments a LEFT JOIN adjustment_proposals p ON p.id = a.id
WHERE a.at_ms >= :since_ms AND (p.id IS NULL OR p.state <> 'approved' OR p.decided_by = p.proposed_by
  OR p.amount_usd_nanos <> a.amount_usd_nanos OR p.tenant_id <> a.tenant_id)
""",
)
# A booking's hours of closed months, all of them and no others, whatever else it books.
_LATE = by_sql(
    of="SELECT count(*) FROM late_hours WHERE billed_in_ms >= :since_ms",
    broken="""
SELECT l.journal_id AS booking, l.hour_start_ms, l.billed_in_ms, l.attempts, count(a.attempt_id) AS found
FROM late_hours l
LEFT JOIN attempts a ON a.journal_id = l.journal_id AND a.started_at_ms >= l.hour_start_ms
  AND a.started_at_ms < l.hour_start_ms + 3600000 AND a.tenant_id = l.tenant_id
  AND a.project_id = l.project_id AND a.key_id = l.key_id AND a.model_alias = l.model_alias
  AND a.pool = l.pool AND a.task = l.task AND a.payer = l.payer
WHERE l.billed_in_ms >= :since_ms
GROUP BY l.journal_id, l.hour_start_ms, l.billed_in_ms, l.attempts, l.charge_usd_nanos, l.tenant_id,
  l.project_id, l.key_id, l.model_alias, l.pool, l.task, l.payer
HAVING count(a.attempt_id) <> l.attempts OR coalesce(sum(a.charge_usd_nanos), 0) <> l.charge_usd_nanos
  OR l.billed_in_ms <= l.hour_start_ms
""",
)

PERIODS = (
    Invariant(
        "I-23",
        "every adjustment is booked once, and two people agreed to it",
        (_ADJUSTED, _BOOKED, _AGREED),
    ),
    Invariant(
        "I-15", "what came after its month was closed counts in a later period, as it was booked", (_LATE,)
    ),
)
