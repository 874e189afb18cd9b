"""alerts: anomalies, and the outbox of what people are told.

Revision: 0013
Follows: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "alert_messages",
        sa.Column(
            "id", sa.String(length=64), nullable=False, comment="opaque id, alr_…; the same at every delivery"
        ),
        sa.Column(
            "topic", sa.String(length=256), nullable=False, comment="what it is about: nothing is told twice"
        ),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="budget, overrun, anomaly or test"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
        sa.Column("subject", sa.String(length=256), nullable=False, comment="a line, for people"),
        sa.Column(
            "details", sa.JSON(), nullable=False, comment="for programs; money as decimal strings in USD"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_messages")),
        sa.UniqueConstraint("topic", name=op.f("uq_alert_messages_topic")),
    )
    op.create_index("ix_alert_messages_at", "alert_messages", ["at_ms"], unique=False)
    op.create_table(
        "anomalies",
        sa.Column(
            "day_start_ms",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="UTC day in which it was found, epoch ms",
        ),
        sa.Column(
            "dimension",
            sa.String(length=16),
            nullable=False,
            comment="tenant, project, key, pool, model or task",
        ),
        sa.Column("value", sa.String(length=128), nullable=False, comment="id, or name, of what"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it was found, epoch ms"),
        sa.Column("end_ms", sa.BigInteger(), nullable=False, comment="end of the window, epoch ms"),
        sa.Column("window_hours", sa.Integer(), nullable=False, comment="its length: 1, 6 or 24"),
        sa.Column(
            "actual_usd_nanos", sa.BigInteger(), nullable=False, comment="charged in the window, nano-USD"
        ),
        sa.Column("expected_usd_nanos", sa.BigInteger(), nullable=False, comment="usual for it, nano-USD"),
        sa.Column(
            "deviations_permille",
            sa.BigInteger(),
            nullable=False,
            comment="thousandths of robust deviations above usual",
        ),
        sa.Column(
            "cause_dimension",
            sa.String(length=16),
            nullable=True,
            comment="what explains it; empty: nothing does",
        ),
        sa.Column("cause_value", sa.String(length=128), nullable=True, comment="id or name of that"),
        sa.Column(
            "cause_permille", sa.Integer(), nullable=True, comment="thousandths of the excess that it is"
        ),
        sa.PrimaryKeyConstraint("day_start_ms", "dimension", "value", name=op.f("pk_anomalies")),
    )
    op.create_table(
        "alert_deliveries",
        sa.Column("alert_id", sa.String(length=64), nullable=False, comment="the message"),
        sa.Column(
            "channel", sa.String(length=128), nullable=False, comment="a webhook by host and hash, or email"
        ),
        sa.Column("attempts", sa.Integer(), nullable=False, comment="tries that failed"),
        sa.Column(
            "next_at_ms", sa.BigInteger(), nullable=True, comment="next try, epoch ms; empty: none any more"
        ),
        sa.Column(
            "delivered_at_ms", sa.BigInteger(), nullable=True, comment="epoch ms; empty: not taken yet"
        ),
        sa.Column("last_error", sa.String(length=256), nullable=True, comment="of the last try"),
        sa.ForeignKeyConstraint(
            ["alert_id"], ["alert_messages.id"], name=op.f("fk_alert_deliveries_alert_id_alert_messages")
        ),
        sa.PrimaryKeyConstraint("alert_id", "channel", name=op.f("pk_alert_deliveries")),
    )
    op.create_index("ix_alert_deliveries_next", "alert_deliveries", ["next_at_ms"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_alert_deliveries_next", table_name="alert_deliveries")
    op.drop_table("alert_deliveries")
    op.drop_table("anomalies")
    op.drop_index("ix_alert_messages_at", table_name="alert_messages")
    op.drop_table("alert_messages")
