"""A month of a busy company's attempts, made in the database, and the hourly sums that belong to them.

The rows are plausible where it matters for reports: 20 tenants, three projects each, 200 keys that use few
models, pools and tasks, more by day than by night. The sums are made by SQL of its own, not by the product.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.ledger.accounts import DAYS_INTO, HOURS_FROM_ATTEMPTS, KEYS, SUMS

START = datetime(2026, 12, 1, tzinfo=UTC)
END = datetime(2027, 1, 1, tzinfo=UTC)
MONTH_MS = (END - START).days * 86_400_000
START_MS = int(START.timestamp()) * 1000
PARTITION = "attempts_2026_12"

# Row n is key n·7919 mod 200; a key has one model in two, one or two pools and one or two tasks. Squares of
# the position within a day put more into its middle.
_MAKE = f"""
INSERT INTO attempts (
  attempt_id, started_at_ms, request_id, attempt_number, tenant_id, project_id, key_id, endpoint, model_alias,
  is_streaming, pool, replica, task, task_source, nature, policy_version, price_version, tags, cache,
  hold_usd_nanos, state, payer, usage_source, input_tokens, cached_input_tokens, cache_write_tokens,
  output_tokens, reasoning_tokens, charge_usd_nanos, status_code, ttft_ms, total_ms, journal_id, ended_at_ms
)
SELECT 'att_' || lpad(to_hex(n), 32, '0'), at, 'req_' || lpad(to_hex(n), 32, '0'), 1,
  'ten_' || lpad((key % 20)::text, 32, '0'), 'prj_' || lpad((key % 60)::text, 32, '0'),
  'key' || lpad(key::text, 7, '0'), 'chat/completions',
  (ARRAY['auto', 'fast', 'careful', 'large'])[1 + (key + (n / 200 % 8) / 7) % 4], n % 3 = 0,
  (ARRAY['speculative', 'plain', 'long'])[1 + (key + (n / 200 % 10) / 9) % 3], 'replica-0',
  (ARRAY['extraction', 'chat', 'code', 'summarization', 'classification', 'creative'])
    [1 + (key + (n / 200 % 4) / 3) % 6], 'declared', 'predictable', 'default@95e26ebfaedb',
  'plain@0123456789ab', '{{"feature": "search"}}', 'miss', 1500000, state,
  CASE state WHEN 'failed' THEN 'platform' ELSE 'tenant' END, 'measured', 200 + n % 900, n % 4 * 64, 0,
  20 + n % 300, 0, (200 + n % 900) * 150 + (n % 4 * 64) * 30 + (20 + n % 300) * 600, 200, 90, 1200,
  'jtx_scale', at + 1200
FROM (
  SELECT n, (n * 7919 % 200)::int AS key, CASE n % 97 WHEN 0 THEN 'failed' ELSE 'answered' END AS state,
    {START_MS} + n * 1000003 % {MONTH_MS} AS at
  FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
) AS drawn
"""
_SUM = f"INSERT INTO spend_hours (hour_start_ms, {KEYS}, {', '.join(SUMS)}) {HOURS_FROM_ATTEMPTS}"
CHUNK = 500_000


async def make_month(engine: AsyncEngine, rows: int, *, tells: bool = False) -> None:
    """Fill `attempts` and `spend_hours` of a migrated, empty PostgreSQL database.

    Args:
        engine: its.
        rows: how many attempts.
        tells: print how far it is.
    """
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL client_min_messages = warning"))
        await connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {PARTITION} PARTITION OF attempts"
                f" FOR VALUES FROM ({START_MS}) TO ({START_MS + MONTH_MS})"
            )
        )
    for first in range(1, rows + 1, CHUNK):
        async with engine.begin() as connection:
            await connection.execute(
                text("SET LOCAL synchronous_commit = off")  # a test's data may be lost with its server
            )
            last = min(first + CHUNK - 1, rows)
            await connection.execute(text(_MAKE), {"first": first, "last": last})
        if tells:
            print(f"  {last:,} of {rows:,} attempts", flush=True)
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL work_mem = '256MB'"))
        await connection.execute(text(_SUM))
        await connection.execute(text(DAYS_INTO))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"VACUUM ANALYZE {PARTITION}"))
        await connection.execute(text("VACUUM ANALYZE spend_hours"))
        await connection.execute(text("VACUUM ANALYZE spend_days"))
