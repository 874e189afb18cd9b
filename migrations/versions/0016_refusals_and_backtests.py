"""refusal_hours, policy_canary_refusals, backtests; budget_windows are found by their start.

Revision: 0016
Follows: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_index("ix_budget_windows_start", "budget_windows", ["window_start_ms", "budget_id"])
    op.create_table(
        "refusal_hours",
        sa.Column(
            "hour_start_ms",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="first instant of the hour, epoch ms",
        ),
        sa.Column("tenant_id", sa.String(length=64), nullable=False, comment="whose requests"),
        sa.Column(
            "policy_version", sa.String(length=80), nullable=False, comment="the policy that was asked"
        ),
        sa.Column("code", sa.String(length=64), nullable=False, comment="code of the error"),
        sa.Column("requests", sa.BigInteger(), nullable=False, comment="how many"),
        sa.PrimaryKeyConstraint(
            "hour_start_ms", "tenant_id", "policy_version", "code", name=op.f("pk_refusal_hours")
        ),
    )
    op.create_table(
        "policy_canary_refusals",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False, comment="the canary"),
        sa.Column(
            "unit", sa.String(length=16), nullable=False, comment="the unit, hexadecimal, as in receipts"
        ),
        sa.Column("version", sa.String(length=80), nullable=False, comment="the policy that was asked"),
        sa.Column("code", sa.String(length=64), nullable=False, comment="code of the error"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        sa.Column(
            "written_at_ms", sa.BigInteger(), nullable=False, comment="when it was written down, epoch ms"
        ),
        sa.PrimaryKeyConstraint("number", "unit", name=op.f("pk_policy_canary_refusals")),
    )
    op.create_index(
        "ix_policy_canary_refusals_written", "policy_canary_refusals", ["number", "written_at_ms"]
    )
    op.create_table(
        "backtests",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, bt_…"),
        sa.Column(
            "slot",
            sa.Integer(),
            nullable=True,
            comment="1 while it is under way, so that one is; else empty",
        ),
        sa.Column(
            "state", sa.String(length=16), nullable=False, comment="running, done, failed or cancelled"
        ),
        sa.Column("is_cancelled", sa.Boolean(), nullable=False, comment="somebody wants it to end"),
        sa.Column("stage", sa.String(length=16), nullable=False, comment="what it does now"),
        sa.Column("progress_ratio", sa.Float(), nullable=False, comment="of the stage, 0 to 1"),
        sa.Column("candidate", sa.String(length=80), nullable=False, comment="version that is asked about"),
        sa.Column(
            "baseline", sa.String(length=80), nullable=False, comment="version that it is compared with"
        ),
        sa.Column("from_ms", sa.BigInteger(), nullable=False, comment="first instant, epoch ms"),
        sa.Column(
            "to_ms", sa.BigInteger(), nullable=False, comment="first instant that does not count, epoch ms"
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False, comment="of everything that is drawn"),
        sa.Column("draws", sa.Integer(), nullable=False, comment="worlds for the intervals"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it was asked for, epoch ms"),
        sa.Column(
            "beat_ms", sa.BigInteger(), nullable=False, comment="when its process was last heard of, epoch ms"
        ),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True, comment="epoch ms; empty: it is under way"),
        sa.Column("actor_id", sa.String(length=160), nullable=False, comment="who asked"),
        sa.Column(
            "actor_name", sa.String(length=128), nullable=False, comment="what people called the actor then"
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="why it failed; empty: it did not"),
        sa.Column("result", sa.JSON(), nullable=True, comment="what it found; empty: nothing yet"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backtests")),
        sa.UniqueConstraint("slot", name=op.f("uq_backtests_slot")),
    )


def downgrade() -> None:
    op.drop_table("backtests")
    op.drop_table("policy_canary_refusals")
    op.drop_table("refusal_hours")
    op.drop_index("ix_budget_windows_start", table_name="budget_windows")
