# ruff: noqa: S608 - the texts are put together from names that stand in this file
"""the books: journal, hourly sums, budgets, slices, receipts; attempts and receipts by month.

Revision: 0006
Follows: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_attempts_request": ["request_id"],
    "ix_attempts_started": ["started_at_ms"],
    "ix_attempts_tenant_started": ["tenant_id", "started_at_ms"],
}
_MIGRATED = "jtx_migrated"
"""The one booking of all attempts that were there before there was a journal."""


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    _make_tables()
    _remake_attempts()
    _make_receipts()
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_ENSURE_PARTITIONS)
        op.execute("SELECT tollgate_ensure_partitions()")
    _book_what_is_there()


def downgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    if is_postgresql:
        op.execute("DROP FUNCTION tollgate_ensure_partitions()")
    for name in (
        "receipts",
        "budget_alerts",
        "budget_postings",
        "budget_slices",
        "budget_windows",
        "budgets",
        "spend_hours",
        "journal_entries",
        "journal_transactions",
    ):
        op.drop_table(name)
    columns = [column for column in _attempt_columns() if column.name != "journal_id"]
    for column in columns:
        if column.name == "charge_usd_nanos":
            column.nullable = False
    unpriced = sa.text("SELECT count(*) FROM attempts WHERE charge_usd_nanos IS NULL")
    if op.get_bind().execute(unpriced).scalar_one():
        raise RuntimeError("there are unpriced attempts, of which the older schema would make free ones")
    _replace_attempts(columns, ["attempt_id"], partitioned=False)


def _remake_attempts() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    _replace_attempts(_attempt_columns(), ["attempt_id", "started_at_ms"], partitioned=is_postgresql)


def _replace_attempts(columns: list[sa.Column[object]], keys: list[str], *, partitioned: bool) -> None:
    """A new table in the place of the old one, with its rows."""
    for name in _INDEXES:
        op.drop_index(name, table_name="attempts")
    op.rename_table("attempts", "attempts_before")
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    if is_postgresql:
        op.execute("ALTER INDEX pk_attempts RENAME TO pk_attempts_before")
    options = {"postgresql_partition_by": "RANGE (started_at_ms)"} if partitioned else {}
    op.create_table("attempts", *columns, sa.PrimaryKeyConstraint(*keys, name=op.f("pk_attempts")), **options)
    if partitioned:
        op.execute("CREATE TABLE attempts_default PARTITION OF attempts DEFAULT")
    names = ", ".join(column.name for column in columns if column.name != "journal_id")
    op.execute(f"INSERT INTO attempts ({names}) SELECT {names} FROM attempts_before")
    op.drop_table("attempts_before")
    for name, indexed in _INDEXES.items():
        op.create_index(name, "attempts", indexed)


def _make_receipts() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    options = {"postgresql_partition_by": "RANGE (started_at_ms)"} if is_postgresql else {}
    op.create_table(
        "receipts",
        sa.Column("request_id", sa.String(length=64), nullable=False, comment="as in x-request-id"),
        sa.Column(
            "started_at_ms",
            sa.BigInteger(),
            nullable=False,
            autoincrement=False,
            comment="epoch ms; months are partitions on PostgreSQL",
        ),
        sa.Column("tenant_id", sa.String(length=64), nullable=False, comment="who may read it"),
        sa.Column("body", sa.Text(), nullable=False, comment="the decision, JSON"),
        sa.PrimaryKeyConstraint("request_id", "started_at_ms", name=op.f("pk_receipts")),
        **options,
    )
    if is_postgresql:
        op.execute("CREATE TABLE receipts_default PARTITION OF receipts DEFAULT")


def _book_what_is_there() -> None:
    """Journal and hourly sums of the attempts that were booked before there were such."""
    count = op.get_bind().execute(sa.text("SELECT count(*) FROM attempts")).scalar_one()
    if not count:
        return
    now_ms = op.get_bind().execute(sa.text("SELECT max(ended_at_ms) FROM attempts")).scalar_one()
    op.execute(
        "INSERT INTO journal_transactions (id, kind, at_ms, attempts, note)"
        f" VALUES ('{_MIGRATED}', 'usage', {now_ms}, {count}, 'attempts from before the journal')"
    )
    op.execute(f"UPDATE attempts SET journal_id = '{_MIGRATED}'")
    op.execute(
        "INSERT INTO journal_entries (transaction_id, account, amount_usd_nanos)"
        f" SELECT '{_MIGRATED}', CASE payer WHEN 'tenant' THEN 'tenant:' || tenant_id ELSE 'platform' END,"
        " sum(charge_usd_nanos) FROM attempts GROUP BY 2"
    )
    op.execute(
        "INSERT INTO journal_entries (transaction_id, account, amount_usd_nanos)"
        f" SELECT '{_MIGRATED}', 'usage', -sum(charge_usd_nanos) FROM attempts"
    )
    op.execute(_SUM_HOURS)


_SUM_HOURS = """
INSERT INTO spend_hours (
  hour_start_ms, tenant_id, project_id, key_id, model_alias, pool, task, payer, requests, attempts,
  failed_attempts, unpriced_attempts, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
  reasoning_tokens, charge_usd_nanos
)
SELECT started_at_ms - started_at_ms % 3600000, tenant_id, project_id, key_id, model_alias, pool, task, payer,
  sum(CASE attempt_number WHEN 1 THEN 1 ELSE 0 END), count(*),
  sum(CASE state WHEN 'failed' THEN 1 ELSE 0 END), 0, sum(input_tokens), sum(cached_input_tokens),
  sum(cache_write_tokens), sum(output_tokens), sum(reasoning_tokens), sum(charge_usd_nanos)
FROM attempts GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
"""

# SECURITY DEFINER: the role that serves may call this and make no table of its own. A month that the default
# partition has rows of already cannot get one of its own; its rows stay where they are.
_ENSURE_PARTITIONS = """
CREATE FUNCTION tollgate_ensure_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET client_min_messages = warning AS $$
DECLARE
  parent text;
  first_day timestamp;
  made integer := 0;
  name text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('tollgate_partitions'));
  FOREACH parent IN ARRAY ARRAY['attempts', 'receipts'] LOOP
    FOR month IN 0..3 LOOP
      first_day := date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + make_interval(months => month);
      name := parent || to_char(first_day, '_YYYY_MM');
      CONTINUE WHEN to_regclass(name) IS NOT NULL;
      BEGIN
        EXECUTE format(
          'CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s)', name, parent,
          (extract(epoch FROM first_day) * 1000)::bigint,
          (extract(epoch FROM first_day + interval '1 month') * 1000)::bigint
        );
        made := made + 1;
      EXCEPTION WHEN check_violation THEN
        NULL;
      END;
    END LOOP;
  END LOOP;
  RETURN made;
END $$
"""


def _make_tables() -> None:
    op.create_table(
        "journal_transactions",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, jtx_…"),
        sa.Column(
            "kind",
            sa.String(length=16),
            nullable=False,
            comment="usage (a batch of attempts), unattributed, or reversal",
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it was booked, epoch ms"),
        sa.Column("attempts", sa.BigInteger(), nullable=False, comment="attempts that it books"),
        sa.Column("reverses", sa.String(length=64), nullable=True, comment="what it takes back"),
        sa.Column("note", sa.String(length=256), nullable=False, comment="why, for people"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_journal_transactions")),
        sa.ForeignKeyConstraint(
            ["reverses"],
            ["journal_transactions.id"],
            name=op.f("fk_journal_transactions_reverses_journal_transactions"),
        ),
        sa.UniqueConstraint("reverses", name=op.f("uq_journal_transactions_reverses")),
    )
    op.create_table(
        "journal_entries",
        sa.Column(
            "transaction_id", sa.String(length=64), nullable=False, comment="the booking that it is a line of"
        ),
        sa.Column(
            "account",
            sa.String(length=128),
            nullable=False,
            comment="tenant:<id>, platform, usage, unattributed:<budget> or suspense:<budget>",
        ),
        sa.Column(
            "amount_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="nano-USD; positive: the account owes it",
        ),
        sa.PrimaryKeyConstraint("transaction_id", "account", name=op.f("pk_journal_entries")),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["journal_transactions.id"],
            name=op.f("fk_journal_entries_transaction_id_journal_transactions"),
        ),
    )
    op.create_index("ix_journal_entries_account", "journal_entries", ["account"])
    op.create_table(
        "spend_hours",
        sa.Column(
            "hour_start_ms",
            sa.BigInteger(),
            nullable=False,
            autoincrement=False,
            comment="first instant of the hour, epoch ms",
        ),
        sa.Column("tenant_id", sa.String(length=64), nullable=False, comment="whose requests"),
        sa.Column("project_id", sa.String(length=64), nullable=False, comment="where the spend is allocated"),
        sa.Column("key_id", sa.String(length=64), nullable=False, comment="public id of the API key"),
        sa.Column(
            "model_alias", sa.String(length=128), nullable=False, comment="the model as callers named it"
        ),
        sa.Column("pool", sa.String(length=64), nullable=False, comment="pool that was tried"),
        sa.Column("task", sa.String(length=32), nullable=False, comment="task type"),
        sa.Column("payer", sa.String(length=16), nullable=False, comment="tenant or platform"),
        sa.Column(
            "requests",
            sa.BigInteger(),
            nullable=False,
            comment="first attempts, so that a fallback does not count twice",
        ),
        sa.Column("attempts", sa.BigInteger(), nullable=False, comment="all attempts"),
        sa.Column("failed_attempts", sa.BigInteger(), nullable=False, comment="attempts that failed"),
        sa.Column("unpriced_attempts", sa.BigInteger(), nullable=False, comment="attempts without a price"),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False, comment="fresh input tokens"),
        sa.Column(
            "cached_input_tokens", sa.BigInteger(), nullable=False, comment="input tokens found in a cache"
        ),
        sa.Column(
            "cache_write_tokens",
            sa.BigInteger(),
            nullable=False,
            comment="input tokens written to a billed cache",
        ),
        sa.Column(
            "output_tokens", sa.BigInteger(), nullable=False, comment="generated tokens, without reasoning"
        ),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False, comment="generated reasoning tokens"),
        sa.Column(
            "charge_usd_nanos", sa.BigInteger(), nullable=False, comment="what the payer is charged, nano-USD"
        ),
        sa.PrimaryKeyConstraint(
            "hour_start_ms",
            "tenant_id",
            "project_id",
            "key_id",
            "model_alias",
            "pool",
            "task",
            "payer",
            name=op.f("pk_spend_hours"),
        ),
    )
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, bud_…"),
        sa.Column("name", sa.String(length=128), nullable=False, comment="what people call it"),
        sa.Column("scope", sa.String(length=16), nullable=False, comment="tenant, project, key or tag"),
        sa.Column(
            "scope_id",
            sa.String(length=640),
            nullable=False,
            comment="id of the tenant, project or key; name=value of a fixed tag",
        ),
        sa.Column(
            "tenant_id",
            sa.String(length=64),
            nullable=True,
            comment="whose; of a tag's budget: empty for all tenants",
        ),
        sa.Column("window", sa.String(length=8), nullable=False, comment="day, week, month or total, in UTC"),
        sa.Column("limit_usd_nanos", sa.BigInteger(), nullable=False, comment="how much, nano-USD"),
        sa.Column(
            "is_hard",
            sa.Boolean(),
            nullable=False,
            comment="refuses what it cannot hold; soft ones only tell",
        ),
        sa.Column(
            "alert_percents",
            sa.JSON(),
            nullable=False,
            comment="shares of the limit at which to tell, percent",
        ),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
        sa.Column(
            "retired_at_ms", sa.BigInteger(), nullable=True, comment="epoch ms; since then it binds nobody"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint("name", name=op.f("uq_budgets_name")),
    )
    op.create_index("ix_budgets_scope", "budgets", ["scope", "scope_id"])
    op.create_table(
        "budget_windows",
        sa.Column("budget_id", sa.String(length=64), nullable=False, comment="the budget"),
        sa.Column(
            "window_start_ms",
            sa.BigInteger(),
            nullable=False,
            autoincrement=False,
            comment="first instant, epoch ms; 0 for a total",
        ),
        sa.Column("limit_usd_nanos", sa.BigInteger(), nullable=False, comment="the limit now, nano-USD"),
        sa.Column(
            "limit_highest_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="the highest limit that the window ever had, nano-USD",
        ),
        sa.Column("posted_usd_nanos", sa.BigInteger(), nullable=False, comment="booked, nano-USD"),
        sa.Column(
            "leased_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="lent to processes that serve: the sum of their slices, nano-USD",
        ),
        sa.Column(
            "unattributed_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="lent to processes that died and whose records are missing, nano-USD",
        ),
        sa.Column(
            "overage_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="part of what is booked that no slice covered, nano-USD",
        ),
        sa.Column(
            "recall_number",
            sa.BigInteger(),
            nullable=False,
            comment="grows when a process needs what others do not use",
        ),
        sa.PrimaryKeyConstraint("budget_id", "window_start_ms", name=op.f("pk_budget_windows")),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_windows_budget_id_budgets")
        ),
    )
    op.create_table(
        "budget_slices",
        sa.Column("budget_id", sa.String(length=64), nullable=False, comment="the budget"),
        sa.Column(
            "window_start_ms",
            sa.BigInteger(),
            nullable=False,
            autoincrement=False,
            comment="the bucket's window",
        ),
        sa.Column(
            "owner_id", sa.String(length=64), nullable=False, comment="the process: the name of its spool"
        ),
        sa.Column(
            "amount_usd_nanos", sa.BigInteger(), nullable=False, comment="lent and not booked yet, nano-USD"
        ),
        sa.Column(
            "is_unattributed",
            sa.Boolean(),
            nullable=False,
            comment="its process died long ago; see unattributed_usd_nanos",
        ),
        sa.Column("journal_id", sa.String(length=64), nullable=True, comment="the booking as unattributed"),
        sa.Column(
            "recall_seen", sa.BigInteger(), nullable=False, comment="the last recall that its process obeyed"
        ),
        sa.Column(
            "expires_at_ms",
            sa.BigInteger(),
            nullable=False,
            comment="until then it may be spent; the database's clock",
        ),
        sa.PrimaryKeyConstraint("budget_id", "window_start_ms", "owner_id", name=op.f("pk_budget_slices")),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_slices_budget_id_budgets")
        ),
    )
    op.create_index("ix_budget_slices_owner", "budget_slices", ["owner_id"])
    op.create_table(
        "budget_postings",
        sa.Column("transaction_id", sa.String(length=64), nullable=False, comment="the booking"),
        sa.Column("budget_id", sa.String(length=64), nullable=False, comment="the bucket's budget"),
        sa.Column(
            "window_start_ms",
            sa.BigInteger(),
            nullable=False,
            autoincrement=False,
            comment="the bucket's window",
        ),
        sa.Column("owner_id", sa.String(length=64), nullable=False, comment="whose slice was drawn on"),
        sa.Column("amount_usd_nanos", sa.BigInteger(), nullable=False, comment="booked, nano-USD"),
        sa.Column(
            "overage_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="part of it that the slice did not cover, nano-USD",
        ),
        sa.PrimaryKeyConstraint(
            "transaction_id", "budget_id", "window_start_ms", "owner_id", name=op.f("pk_budget_postings")
        ),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["journal_transactions.id"],
            name=op.f("fk_budget_postings_transaction_id_journal_transactions"),
        ),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("budget_id", sa.String(length=64), nullable=False, comment="the budget"),
        sa.Column(
            "window_start_ms",
            sa.BigInteger(),
            nullable=False,
            autoincrement=False,
            comment="the bucket's window",
        ),
        sa.Column(
            "percent", sa.Integer(), nullable=False, autoincrement=False, comment="the share that was reached"
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        sa.Column("posted_usd_nanos", sa.BigInteger(), nullable=False, comment="booked by then, nano-USD"),
        sa.PrimaryKeyConstraint("budget_id", "window_start_ms", "percent", name=op.f("pk_budget_alerts")),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_alerts_budget_id_budgets")
        ),
    )


def _attempt_columns() -> list[sa.Column[object]]:
    return [
        sa.Column(
            "attempt_id",
            sa.String(length=64),
            nullable=False,
            comment="opaque id, att_…; a correction's is rev_… of what it reverses",
        ),
        sa.Column(
            "started_at_ms",
            sa.BigInteger(),
            nullable=False,
            autoincrement=False,
            comment="epoch ms; months are partitions on PostgreSQL",
        ),
        sa.Column(
            "request_id",
            sa.String(length=64),
            nullable=False,
            comment="the request it belongs to, as in x-request-id",
        ),
        sa.Column("attempt_number", sa.Integer(), nullable=False, comment="1 for the first try"),
        sa.Column("tenant_id", sa.String(length=64), nullable=False, comment="whose request it was"),
        sa.Column("project_id", sa.String(length=64), nullable=False, comment="where the spend is allocated"),
        sa.Column("key_id", sa.String(length=64), nullable=False, comment="public id of the API key"),
        sa.Column(
            "end_user",
            sa.String(length=64),
            nullable=True,
            comment="HMAC of the end user under the tenant's secret",
        ),
        sa.Column(
            "client_request_id", sa.String(length=256), nullable=True, comment="the caller's own X-Request-Id"
        ),
        sa.Column("endpoint", sa.String(length=64), nullable=False, comment="path below /v1"),
        sa.Column(
            "model_alias", sa.String(length=128), nullable=False, comment="the model as the caller named it"
        ),
        sa.Column("is_streaming", sa.Boolean(), nullable=False, comment="answered as a stream"),
        sa.Column("pool", sa.String(length=64), nullable=False, comment="pool that was tried"),
        sa.Column("replica", sa.String(length=64), nullable=False, comment="replica that was tried"),
        sa.Column("task", sa.String(length=32), nullable=False, comment="task type"),
        sa.Column(
            "task_source",
            sa.String(length=16),
            nullable=False,
            comment="declared, signal, classifier or default",
        ),
        sa.Column("nature", sa.String(length=16), nullable=False, comment="predictable or creative"),
        sa.Column("policy_version", sa.String(length=80), nullable=False, comment="policy that decided"),
        sa.Column(
            "price_version",
            sa.String(length=80),
            nullable=False,
            comment="price that the charge was computed with",
        ),
        sa.Column("service_tier", sa.String(length=16), nullable=True, comment="latency class asked for"),
        sa.Column("tags", sa.JSON(), nullable=False, comment="the caller's cost tags"),
        sa.Column(
            "cache",
            sa.String(length=16),
            nullable=False,
            server_default="bypass",
            comment="hit (answered without a model, free of charge), miss or bypass",
        ),
        sa.Column(
            "hold_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="upper bound that was held while it ran, nano-USD",
        ),
        sa.Column(
            "state",
            sa.String(length=16),
            nullable=False,
            comment="answered, failed, cancelled or interrupted",
        ),
        sa.Column("payer", sa.String(length=16), nullable=False, comment="tenant or platform"),
        sa.Column(
            "usage_source", sa.String(length=16), nullable=False, comment="measured, estimated or none"
        ),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False, comment="fresh input tokens"),
        sa.Column(
            "cached_input_tokens", sa.BigInteger(), nullable=False, comment="input tokens found in a cache"
        ),
        sa.Column(
            "cache_write_tokens",
            sa.BigInteger(),
            nullable=False,
            comment="input tokens written to a billed cache",
        ),
        sa.Column(
            "output_tokens", sa.BigInteger(), nullable=False, comment="generated tokens, without reasoning"
        ),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False, comment="generated reasoning tokens"),
        sa.Column(
            "charge_usd_nanos",
            sa.BigInteger(),
            nullable=True,
            comment="what the payer is charged, nano-USD; empty: unpriced, never zero",
        ),
        sa.Column(
            "status_code",
            sa.Integer(),
            nullable=True,
            comment="HTTP status that the caller got or would have got",
        ),
        sa.Column("error_code", sa.String(length=64), nullable=True, comment="why it failed"),
        sa.Column("ttft_ms", sa.Integer(), nullable=True, comment="milliseconds to the first content"),
        sa.Column("total_ms", sa.Integer(), nullable=True, comment="milliseconds to the end"),
        sa.Column(
            "queue_ms",
            sa.Float(),
            nullable=True,
            comment="engine's queue time, milliseconds, as the engine says",
        ),
        sa.Column(
            "generation_ms",
            sa.Float(),
            nullable=True,
            comment="engine's generation time, milliseconds, as the engine says",
        ),
        sa.Column(
            "draft_steps", sa.Integer(), nullable=True, comment="verification steps, on a speculating engine"
        ),
        sa.Column("draft_tokens", sa.Integer(), nullable=True, comment="tokens that the draft proposed"),
        sa.Column(
            "accepted_tokens", sa.Integer(), nullable=True, comment="proposed tokens that were accepted"
        ),
        sa.Column(
            "journal_id",
            sa.String(length=64),
            nullable=True,
            comment="the journal's transaction that booked it",
        ),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
    ]
