"""policy_canaries: candidates beside the active policy, and how they ended.

Revision: 0014
Follows: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


_COMMENTS = (
    (
        "source",
        "how it was done: api, cli, console or start",
        "how it was done: api, cli, console, start or job",
    ),
    (
        "actor_kind",
        "bootstrap, admin_key, cli or gateway",
        "bootstrap, admin_key, cli, gateway or guard",
    ),
)


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "policy_canaries",
        sa.Column(
            "number",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="counts canaries from 1, no gaps",
        ),
        sa.Column("version", sa.String(length=80), nullable=False, comment="the candidate"),
        sa.Column("control", sa.String(length=80), nullable=False, comment="what is active beside"),
        sa.Column(
            "activation",
            sa.BigInteger(),
            nullable=False,
            comment="the control's activation; the next one ends the canary",
        ),
        sa.Column(
            "share", sa.Float(), nullable=False, comment="of the units that follow the candidate, 0 to 1"
        ),
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
            "units_max",
            sa.BigInteger(),
            nullable=False,
            comment="units of the candidate without harm after which there is a verdict",
        ),
        sa.Column(
            "until_ms", sa.BigInteger(), nullable=False, comment="it ends then at the latest, epoch ms"
        ),
        sa.Column(
            "auto_promote",
            sa.Boolean(),
            nullable=False,
            comment="the candidate is activated if it does no harm",
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it began, epoch ms"),
        *_actor(),
        sa.Column("message", sa.String(length=500), nullable=True, comment="why, in people's words"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_policy_canaries")),
        _refers("policy_canaries", "version"),
        _refers("policy_canaries", "control"),
        sa.ForeignKeyConstraint(
            ["activation"],
            ["policy_activations.number"],
            name=op.f("fk_policy_canaries_activation_policy_activations"),
        ),
    )
    op.create_table(
        "policy_canary_ends",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False, comment="the canary"),
        sa.Column("version", sa.String(length=80), nullable=False, comment="the candidate"),
        sa.Column(
            "how",
            sa.String(length=16),
            nullable=False,
            comment="stopped, rolled_back (by its guard), promoted or expired",
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="why, for people"),
        sa.Column("evidence", sa.JSON(), nullable=True, comment="what the guard saw; empty: nobody looked"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        *_actor(),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_policy_canary_ends")),
        sa.ForeignKeyConstraint(
            ["number"], ["policy_canaries.number"], name=op.f("fk_policy_canary_ends_number_policy_canaries")
        ),
        _refers("policy_canary_ends", "version"),
    )
    _say(new=True)


def _say(*, new: bool) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for column, old, comment in _COMMENTS:
            op.alter_column(
                "audit_entries",
                column,
                existing_type=sa.String(16),
                existing_nullable=False,
                comment=comment if new else old,
                existing_comment=old if new else comment,
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


def downgrade() -> None:
    _say(new=False)
    op.drop_table("policy_canary_ends")
    op.drop_table("policy_canaries")
