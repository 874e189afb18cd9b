"""Does every frozen bill add up? The statements of that invariant."""

from __future__ import annotations

from gateway.ledger.findings import Invariant, by_sql

_ADD_UP = by_sql(
    of="SELECT count(*) FROM supply_hours WHERE hour_start_ms >= :hour_ms",
    broken="""
SELECT h.pool AS pool, h.hour_start_ms, h.corrects_hour_ms, h.bill_usd_nanos,
  coalesce(l.total, 0) AS lines_usd_nanos
FROM supply_hours h LEFT JOIN (
  SELECT pool, hour_start_ms, corrects_hour_ms, sum(cost_usd_nanos) AS total
  FROM supply_lines WHERE hour_start_ms >= :hour_ms
  GROUP BY pool, hour_start_ms, corrects_hour_ms
) l ON l.pool = h.pool AND l.hour_start_ms = h.hour_start_ms AND l.corrects_hour_ms = h.corrects_hour_ms
WHERE h.hour_start_ms >= :hour_ms AND h.bill_usd_nanos <> coalesce(l.total, 0)
""",
)
_OF_A_BILL = by_sql(
    broken="""
SELECT l.pool AS pool, l.hour_start_ms, l.corrects_hour_ms, l.line, l.cost_usd_nanos
FROM supply_lines l LEFT JOIN supply_hours h
  ON l.pool = h.pool AND l.hour_start_ms = h.hour_start_ms AND l.corrects_hour_ms = h.corrects_hour_ms
WHERE l.hour_start_ms >= :hour_ms AND h.pool IS NULL
""",
)
# With its corrections an hour is one that could have been: no part of it is below zero, and as much time was
# shared as was busy.
_BELOW_ZERO = by_sql(
    broken="""
SELECT pool, corrects_hour_ms, line, tenant_id, task, sum(cost_usd_nanos) AS cost_usd_nanos
FROM supply_lines
WHERE corrects_hour_ms >= :hour_ms
GROUP BY pool, corrects_hour_ms, line, tenant_id, project_id, key_id, model_alias, task
HAVING sum(cost_usd_nanos) < 0 OR sum(engine_us) < 0
""",
)
_BUSY = by_sql(
    broken="""
SELECT h.pool AS pool, h.hour_start_ms, h.corrects_hour_ms, h.busy_ms, coalesce(l.total, 0) AS engine_us
FROM supply_hours h LEFT JOIN (
  SELECT pool, hour_start_ms, corrects_hour_ms, sum(engine_us) AS total
  FROM supply_lines WHERE hour_start_ms >= :hour_ms
  GROUP BY pool, hour_start_ms, corrects_hour_ms
) l ON l.pool = h.pool AND l.hour_start_ms = h.hour_start_ms AND l.corrects_hour_ms = h.corrects_hour_ms
WHERE h.hour_start_ms >= :hour_ms AND h.busy_ms * 1000 <> coalesce(l.total, 0)
""",
)
# Of a closed month that had no bill of it, what is found later is booked in an open one.
_IN_ORDER = by_sql(
    broken="""
SELECT h.pool AS pool, h.hour_start_ms, h.corrects_hour_ms
FROM supply_hours h LEFT JOIN supply_hours own
  ON own.pool = h.pool AND own.hour_start_ms = h.corrects_hour_ms
  AND own.corrects_hour_ms = h.corrects_hour_ms
WHERE h.hour_start_ms >= :hour_ms AND (
  h.corrects_hour_ms > h.hour_start_ms
  OR own.pool IS NULL AND h.corrects_hour_ms >= (SELECT coalesce(max(end_ms), 0) FROM closed_periods)
)
""",
)

SUPPLY = (
    Invariant(
        "I-22",
        "the lines of every pool-hour add up to its bill, and engine time to busy time",
        (_ADD_UP, _OF_A_BILL, _BELOW_ZERO, _BUSY, _IN_ORDER),
    ),
)
