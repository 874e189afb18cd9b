"""jobs with leases, and what the auditor looks things up by.

Revision: 0007
Follows: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_attempts_journal", "attempts", ["journal_id"]),
    ("ix_budget_postings_bucket", "budget_postings", ["budget_id", "window_start_ms"]),
    ("ix_journal_transactions_at", "journal_transactions", ["at_ms"]),
)


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "job_leases",
        sa.Column("name", sa.String(length=64), nullable=False, comment="the job"),
        sa.Column(
            "holder",
            sa.String(length=64),
            nullable=False,
            comment="the process whose turn it is: the name of its spool",
        ),
        sa.Column(
            "fencing_token",
            sa.BigInteger(),
            nullable=False,
            comment="grows with every turn; who has an older one may not write",
        ),
        sa.Column(
            "expires_at_ms",
            sa.BigInteger(),
            nullable=False,
            comment="end of the turn by the database's clock, epoch ms",
        ),
        sa.Column("last_success_at_ms", sa.BigInteger(), nullable=True, comment="epoch ms; empty: never yet"),
        sa.Column("last_result", sa.Text(), nullable=True, comment="what the last turn found, JSON"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_job_leases")),
    )
    for name, table, columns in _INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, table, _ in _INDEXES:
        op.drop_index(name, table_name=table)
    op.drop_table("job_leases")
