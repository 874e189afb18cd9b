"""policy_shadows: candidates that are asked for copies of requests, and how that ended.

Revision: 0015
Follows: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "policy_shadows",
        sa.Column(
            "number",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="counts shadows from 1, no gaps",
        ),
        sa.Column("version", sa.String(length=80), nullable=False, comment="the candidate"),
        sa.Column("control", sa.String(length=80), nullable=False, comment="what answers tenants"),
        sa.Column(
            "activation",
            sa.BigInteger(),
            nullable=False,
            comment="the control's activation; the next one ends the shadow",
        ),
        sa.Column("share", sa.Float(), nullable=False, comment="of the units that are copied, 0 to 1"),
        sa.Column(
            "stickiness",
            sa.String(length=16),
            nullable=False,
            comment="what a unit is: a conversation, a key or a request",
        ),
        sa.Column(
            "tenants", sa.JSON(), nullable=False, comment="names of the tenants that it is about; none: all"
        ),
        sa.Column("models", sa.JSON(), nullable=False, comment="aliases that it is about; none: all"),
        sa.Column(
            "budget_id",
            sa.String(length=64),
            nullable=False,
            comment="the budget that its copies draw on",
        ),
        sa.Column(
            "until_ms", sa.BigInteger(), nullable=False, comment="it ends then at the latest, epoch ms"
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it began, epoch ms"),
        *_actor(),
        sa.Column("message", sa.String(length=500), nullable=True, comment="why, in people's words"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_policy_shadows")),
        _refers("policy_shadows", "version"),
        _refers("policy_shadows", "control"),
        sa.ForeignKeyConstraint(
            ["activation"],
            ["policy_activations.number"],
            name=op.f("fk_policy_shadows_activation_policy_activations"),
        ),
    )
    op.create_table(
        "policy_shadow_ends",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False, comment="the shadow"),
        sa.Column("version", sa.String(length=80), nullable=False, comment="the candidate"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why, for people"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        *_actor(),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_policy_shadow_ends")),
        _shadow("policy_shadow_ends"),
        _refers("policy_shadow_ends", "version"),
    )
    op.create_table(
        "policy_shadow_skips",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False, comment="the shadow"),
        sa.Column("reason", sa.String(length=16), nullable=False, comment="budget, loaded, full, refused, …"),
        sa.Column("requests", sa.BigInteger(), nullable=False, comment="so many"),
        sa.PrimaryKeyConstraint("number", "reason", name=op.f("pk_policy_shadow_skips")),
        _shadow("policy_shadow_skips"),
    )


def _actor() -> tuple[sa.Column[str], sa.Column[str]]:
    return (
        sa.Column("actor_id", sa.String(length=160), nullable=False, comment="whose doing it is"),
        sa.Column(
            "actor_name", sa.String(length=128), nullable=False, comment="what people called the actor then"
        ),
    )


def _refers(table: str, column: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}_policy_versions")
    return sa.ForeignKeyConstraint([column], ["policy_versions.version"], name=name)


def _shadow(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["number"], ["policy_shadows.number"], name=op.f(f"fk_{table}_number_policy_shadows")
    )


def downgrade() -> None:
    op.drop_table("policy_shadow_skips")
    op.drop_table("policy_shadow_ends")
    op.drop_table("policy_shadows")
