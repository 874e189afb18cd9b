"""control plane: what a tenant allows.

Revision: 0002
Follows: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    with op.batch_alter_table("tenants", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column(
                "is_internal_only",
                sa.Boolean(),
                server_default=sa.true(),
                nullable=False,
                comment="nothing of it may leave the company: no external targets, until its owner opts in",
            )
        )
        batch_op.add_column(
            sa.Column(
                "caches_answers",
                sa.Boolean(),
                server_default=sa.true(),
                nullable=False,
                comment="its answers may be kept in the cache",
            )
        )


def downgrade() -> None:
    with op.batch_alter_table("tenants", schema=None) as batch_op:
        batch_op.drop_column("caches_answers")
        batch_op.drop_column("is_internal_only")
