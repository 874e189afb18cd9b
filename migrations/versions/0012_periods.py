"""periods: months that are closed, what came for them afterwards, credits, corrections and bills.

Revision: 0012
Follows: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    for table in (_closed_periods, _late_hours, _adjustments, _adjustment_proposals, _reconciliations):
        table()


def _closed_periods() -> None:
    op.create_table(
        "closed_periods",
        sa.Column("id", sa.String(length=7), nullable=False, comment="the month, such as 2026-10"),
        sa.Column("name", sa.String(length=7), nullable=False, comment="the same"),
        sa.Column("start_ms", sa.BigInteger(), nullable=False, comment="its first instant, epoch ms"),
        sa.Column(
            "end_ms", sa.BigInteger(), nullable=False, comment="the first instant that is not in it, epoch ms"
        ),
        sa.Column("report", sa.LargeBinary(), nullable=False, comment="the closed report, deflated (zlib)"),
        sa.Column(
            "report_bytes", sa.BigInteger(), nullable=False, comment="size of the report as it is shown"
        ),
        sa.Column(
            "report_sha256", sa.String(length=64), nullable=False, comment="of the report as it is shown"
        ),
        sa.Column(
            "seal",
            sa.String(length=4096),
            nullable=False,
            comment="what is signed: the report's hash, the seal before, who closed it, and when",
        ),
        sa.Column(
            "seal_sha256",
            sa.String(length=64),
            nullable=False,
            comment="of the seal; the next period's seal names it",
        ),
        sa.Column(
            "signature", sa.String(length=128), nullable=False, comment="Ed25519 over the seal, hexadecimal"
        ),
        sa.Column(
            "public_key",
            sa.String(length=64),
            nullable=False,
            comment="that verifies it, hexadecimal; derived from the secret key",
        ),
        sa.Column("closed_at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        sa.Column("closed_by", sa.String(length=160), nullable=False, comment="who, as the audit knows them"),
        sa.Column("high_water", sa.String(length=64), nullable=True, comment="the last booking that it knew"),
        sa.Column(
            "charge_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="what tenants are charged, corrections included, nano-USD",
        ),
        sa.Column(
            "platform_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="on the platform's account, nano-USD",
        ),
        sa.Column(
            "adjustments_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="credits and corrections by hand, nano-USD",
        ),
        sa.Column(
            "supply_usd_nanos", sa.BigInteger(), nullable=False, comment="bills of the pools, nano-USD"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_closed_periods")),
        sa.UniqueConstraint("start_ms", name=op.f("uq_closed_periods_start_ms")),
    )


def _late_hours() -> None:
    op.create_table(
        "late_hours",
        sa.Column("journal_id", sa.String(length=64), nullable=False, comment="the booking"),
        sa.Column(
            "hour_start_ms",
            sa.BigInteger(),
            nullable=False,
            comment="the hour in which the requests were made, epoch ms",
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
            "billed_in_ms",
            sa.BigInteger(),
            nullable=False,
            comment="first instant of the period in which it counts, epoch ms",
        ),
        sa.Column("requests", sa.BigInteger(), nullable=False, comment="first attempts"),
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
        sa.Column(
            "cache_hits",
            sa.BigInteger(),
            nullable=False,
            comment="requests that were answered from the cache, free of charge",
        ),
        sa.ForeignKeyConstraint(
            ["journal_id"],
            ["journal_transactions.id"],
            name=op.f("fk_late_hours_journal_id_journal_transactions"),
        ),
        sa.PrimaryKeyConstraint(
            "journal_id",
            "hour_start_ms",
            "tenant_id",
            "project_id",
            "key_id",
            "model_alias",
            "pool",
            "task",
            "payer",
            name=op.f("pk_late_hours"),
        ),
    )
    op.create_index("ix_late_hours_billed_in", "late_hours", ["billed_in_ms"])
    op.create_index("ix_late_hours_hour", "late_hours", ["hour_start_ms"])


def _adjustments() -> None:
    op.create_table(
        "adjustments",
        sa.Column("id", sa.String(length=64), nullable=False, comment="that of its proposal, adj_…"),
        sa.Column("journal_id", sa.String(length=64), nullable=False, comment="its booking"),
        sa.Column(
            "kind", sa.String(length=16), nullable=False, comment="credit, correction or reconciliation"
        ),
        sa.Column(
            "tenant_id", sa.String(length=64), nullable=False, comment="whose account; platform: our own"
        ),
        sa.Column(
            "amount_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="nano-USD; negative: the account owes less",
        ),
        sa.Column(
            "charge_month",
            sa.String(length=7),
            nullable=True,
            comment="the month that it is about, such as 2026-10",
        ),
        sa.Column("pool", sa.String(length=64), nullable=True, comment="the pool that it is about"),
        sa.Column("reason", sa.String(length=512), nullable=False, comment="why, for people"),
        sa.Column(
            "at_ms",
            sa.BigInteger(),
            nullable=False,
            comment="when it was booked; its month is the period in which it counts, epoch ms",
        ),
        sa.ForeignKeyConstraint(
            ["journal_id"],
            ["journal_transactions.id"],
            name=op.f("fk_adjustments_journal_id_journal_transactions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjustments")),
        sa.UniqueConstraint("journal_id", name=op.f("uq_adjustments_journal_id")),
    )
    op.create_index("ix_adjustments_at", "adjustments", ["at_ms"])


def _adjustment_proposals() -> None:
    op.create_table(
        "adjustment_proposals",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, adj_…"),
        sa.Column("name", sa.String(length=128), nullable=False, comment="what it is, in a few words"),
        sa.Column(
            "kind", sa.String(length=16), nullable=False, comment="credit, correction or reconciliation"
        ),
        sa.Column(
            "tenant_id", sa.String(length=64), nullable=False, comment="whose account; platform: our own"
        ),
        sa.Column(
            "amount_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="nano-USD; negative: the account owes less",
        ),
        sa.Column("charge_month", sa.String(length=7), nullable=True, comment="the month that it is about"),
        sa.Column("pool", sa.String(length=64), nullable=True, comment="the pool that it is about"),
        sa.Column("reason", sa.String(length=512), nullable=False, comment="why, for people"),
        sa.Column(
            "reconciliation_id",
            sa.String(length=64),
            nullable=True,
            comment="the comparison that it comes from",
        ),
        sa.Column("state", sa.String(length=16), nullable=False, comment="proposed, approved or rejected"),
        sa.Column(
            "proposed_by", sa.String(length=160), nullable=False, comment="who, as the audit knows them"
        ),
        sa.Column("proposed_at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        sa.Column("decided_by", sa.String(length=160), nullable=True, comment="the second person"),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=True, comment="when, epoch ms"),
        sa.Column("journal_id", sa.String(length=64), nullable=True, comment="its booking"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjustment_proposals")),
    )


def _reconciliations() -> None:
    op.create_table(
        "reconciliations",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, rec_…"),
        sa.Column("name", sa.String(length=128), nullable=False, comment="the file's name"),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="provider or gpu"),
        sa.Column("period", sa.String(length=7), nullable=False, comment="the month, such as 2026-10"),
        sa.Column("file_sha256", sa.String(length=64), nullable=False, comment="of the file"),
        sa.Column(
            "bill_usd_nanos", sa.BigInteger(), nullable=False, comment="what the bill comes to, nano-USD"
        ),
        sa.Column(
            "ledger_usd_nanos", sa.BigInteger(), nullable=False, comment="what the ledger says, nano-USD"
        ),
        sa.Column("result", sa.LargeBinary(), nullable=False, comment="every line, as JSON"),
        sa.Column("made_by", sa.String(length=160), nullable=False, comment="who, as the audit knows them"),
        sa.Column("made_at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reconciliations")),
    )


def downgrade() -> None:
    for table in ("reconciliations", "adjustment_proposals", "adjustments", "late_hours", "closed_periods"):
        op.drop_table(table)
