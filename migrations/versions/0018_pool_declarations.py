"""pool_declarations, budget_marks, spend_days (filled from the hours), adjustment_proposals.gap.

Revision: 0018
Follows: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "pool_declarations",
        sa.Column("pool", sa.String(length=64), autoincrement=False, nullable=False, comment="the pool"),
        sa.Column(
            "declared_at_ms",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="when a gateway first read so, epoch ms",
        ),
        sa.Column(
            "withdrawn_at_ms",
            sa.BigInteger(),
            nullable=True,
            comment="when no file said so any more, epoch ms",
        ),
        sa.PrimaryKeyConstraint("pool", "declared_at_ms", name=op.f("pk_pool_declarations")),
    )
    op.create_table(
        "budget_marks",
        sa.Column("budget_id", sa.String(length=64), nullable=False, comment="the bucket's budget"),
        sa.Column(
            "window_start_ms",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="the bucket's window",
        ),
        sa.Column("at_ms", sa.BigInteger(), autoincrement=False, nullable=False, comment="when, epoch ms"),
        sa.Column("posted_usd_nanos", sa.BigInteger(), nullable=False, comment="booked until then, nano-USD"),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_marks_budget_id_budgets")
        ),
        sa.PrimaryKeyConstraint("budget_id", "window_start_ms", "at_ms", name=op.f("pk_budget_marks")),
    )
    op.create_index("ix_budget_marks_at", "budget_marks", ["at_ms"])
    _create_spend_days()
    op.add_column(
        "adjustment_proposals",
        sa.Column(
            "gap", sa.String(length=32), nullable=True, comment="why the bill differs, of a comparison"
        ),
    )
    # What was proposed before said so in its reason only: "FILE: missing in ledger of POOL in MONTH".
    proposals = sa.table(
        "adjustment_proposals",
        *map(sa.column, ("gap", "reason", "pool", "charge_month", "reconciliation_id")),
    )
    for gap in ("missing_in_ledger", "missing_in_bill", "price", "quantity", "currency"):
        said = (
            sa.literal(f"%: {gap.replace('_', ' ')} of ")
            + proposals.c.pool
            + " in "
            + proposals.c.charge_month
        )
        op.execute(
            proposals.update()
            .where(proposals.c.reconciliation_id.is_not(None), proposals.c.reason.like(said))
            .values(gap=gap)
        )


_KEYS = {
    "tenant_id": (64, "whose requests"),
    "project_id": (64, "where the spend is allocated"),
    "key_id": (64, "public id of the API key"),
    "model_alias": (128, "the model as callers named it"),
    "pool": (64, "pool that was tried"),
    "task": (32, "task type"),
    "payer": (16, "tenant or platform"),
}
_SUMS = {
    "requests": "first attempts, so that a fallback does not count twice",
    "attempts": "all attempts",
    "failed_attempts": "attempts that failed",
    "unpriced_attempts": "attempts without a price",
    "input_tokens": "fresh input tokens",
    "cached_input_tokens": "input tokens found in a cache",
    "cache_write_tokens": "input tokens written to a billed cache",
    "output_tokens": "generated tokens, without reasoning",
    "reasoning_tokens": "generated reasoning tokens",
    "charge_usd_nanos": "what the payer is charged, nano-USD",
    "cache_hits": "requests that were answered from the cache, free of charge",
}
_MS_PER_DAY = 86_400_000


def _create_spend_days() -> None:
    keys = [
        sa.Column(name, sa.String(length=length), nullable=False, comment=comment)
        for name, (length, comment) in _KEYS.items()
    ]
    sums = [
        sa.Column(name, sa.BigInteger(), nullable=False, comment=comment) for name, comment in _SUMS.items()
    ]
    days = op.create_table(
        "spend_days",
        sa.Column(
            "day_start_ms",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="first instant of the day, epoch ms",
        ),
        *keys,
        *sums,
        sa.PrimaryKeyConstraint("day_start_ms", *_KEYS, name=op.f("pk_spend_days")),
    )
    hours = sa.table("spend_hours", *map(sa.column, ("hour_start_ms", *_KEYS, *_SUMS)))
    at = hours.c.hour_start_ms
    day = (at - at % _MS_PER_DAY).label("day")
    of_hours = sa.select(
        day, *(hours.c[name] for name in _KEYS), *(sa.func.sum(hours.c[name]) for name in _SUMS)
    ).group_by(day, *(hours.c[name] for name in _KEYS))
    op.execute(days.insert().from_select(["day_start_ms", *_KEYS, *_SUMS], of_hours))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.drop_column("adjustment_proposals", "gap")
    op.drop_table("spend_days")
    op.drop_index("ix_budget_marks_at", table_name="budget_marks")
    op.drop_table("budget_marks")
    op.drop_table("pool_declarations")
