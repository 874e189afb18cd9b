"""price book: which price a target has from which instant on, and rates per request.

Revision: 0004
Follows: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    # A plain ALTER, which SQLite knows too: recreating a table that others refer to would break them.
    op.add_column(
        "price_versions",
        sa.Column(
            "per_request",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="nano-USD per answered request",
        ),
    )
    op.create_table(
        "price_entries",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, prc_…"),
        sa.Column(
            "target",
            sa.String(length=64),
            nullable=False,
            comment="pool or external target that is priced",
        ),
        sa.Column(
            "version",
            sa.String(length=80),
            nullable=True,
            comment="its rates; empty: from then on what its pool or policy file says",
        ),
        sa.Column("source", sa.String(length=16), nullable=False, comment="finance or litellm"),
        sa.Column("note", sa.String(length=500), nullable=True, comment="why, in people's words"),
        sa.Column(
            "effective_from_ms",
            sa.BigInteger(),
            nullable=False,
            comment="from when on it counts, epoch ms",
        ),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False, comment="when it was made, epoch ms"),
        sa.ForeignKeyConstraint(
            ["version"], ["price_versions.version"], name=op.f("fk_price_entries_version_price_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_entries")),
    )
    op.create_index("ix_price_entries_target", "price_entries", ["target", "created_at_ms", "id"])


def downgrade() -> None:
    op.drop_index("ix_price_entries_target", "price_entries")
    op.drop_table("price_entries")
    op.drop_column("price_versions", "per_request")
