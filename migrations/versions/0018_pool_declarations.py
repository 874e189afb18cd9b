"""pool_declarations: since when a pool is paid for unseen; budget_marks; adjustment_proposals.gap.

Revision: 0018
Follows: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0014"
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


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.drop_column("adjustment_proposals", "gap")
    op.drop_index("ix_budget_marks_at", table_name="budget_marks")
    op.drop_table("budget_marks")
    op.drop_table("pool_declarations")
