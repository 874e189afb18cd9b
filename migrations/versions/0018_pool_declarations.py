"""pool_declarations: since when a file says that a pool is paid for unseen.

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


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.drop_table("pool_declarations")
