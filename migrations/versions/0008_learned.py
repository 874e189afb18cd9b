"""learned: what answered attempts have taught of each pool and task.

Revision: 0008
Follows: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "learned",
        sa.Column("pool", sa.String(length=64), nullable=False, comment="the pool that answered"),
        sa.Column("task", sa.String(length=32), nullable=False, comment="task type; empty: all tasks"),
        sa.Column(
            "tenant_id", sa.String(length=64), nullable=False, comment="whose requests; empty: everybody's"
        ),
        sa.Column("lessons", sa.BigInteger(), nullable=False, comment="attempts that were ever folded in"),
        sa.Column(
            "folded_at_ms",
            sa.BigInteger(),
            nullable=False,
            comment="until then its weights have faded, epoch ms; the database's clock",
        ),
        sa.Column(
            "evidence", sa.Text(), nullable=False, comment="the sums, JSON (gateway/routing/learning.py)"
        ),
        sa.PrimaryKeyConstraint("pool", "task", "tenant_id", name=op.f("pk_learned")),
    )
    op.create_index("ix_learned_folded", "learned", ["folded_at_ms"])


def downgrade() -> None:
    op.drop_index("ix_learned_folded", table_name="learned")
    op.drop_table("learned")
