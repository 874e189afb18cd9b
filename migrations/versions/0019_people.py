"""people: those who log in to the console, with a password or with the company's own login.

Revision: 0019
Follows: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_COMMENTS = (
    (
        "actor_kind",
        16,
        "bootstrap, admin_key, cli, gateway or guard",
        "bootstrap, admin_key, person, cli, gateway or guard",
    ),
    (
        "actor_id",
        160,
        "public id of the administrator key, or cli:<user of the machine>",
        "public id of the administrator key, id of the person, or cli:<user>",
    ),
)


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "people",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, per_…"),
        sa.Column("name", sa.String(length=128), nullable=False, comment="what the person logs in with"),
        sa.Column("role", sa.String(length=16), nullable=False, comment="admin, operator, finance or viewer"),
        sa.Column(
            "password_hash",
            sa.String(length=256),
            nullable=True,
            comment="argon2id's text; empty: no password",
        ),
        sa.Column(
            "subject",
            sa.String(length=512),
            nullable=True,
            comment="OpenID Connect issuer|sub; empty: a password",
        ),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
        sa.Column(
            "password_set_at_ms",
            sa.BigInteger(),
            nullable=True,
            comment="epoch ms of the newest password; empty: none",
        ),
        sa.Column(
            "retired_at_ms",
            sa.BigInteger(),
            nullable=True,
            comment="epoch ms; from then on nobody logs in by it; empty: may",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
    )
    for column in ("name", "subject"):
        while_active = sa.text("retired_at_ms IS NULL")
        op.create_index(
            f"uq_people_{column}",
            "people",
            [column],
            unique=True,
            sqlite_where=while_active,
            postgresql_where=while_active,
        )
    _say(new=True)


def _say(*, new: bool) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for column, length, old, comment in _COMMENTS:
            op.alter_column(
                "audit_entries",
                column,
                existing_type=sa.String(length),
                existing_nullable=False,
                comment=comment if new else old,
                existing_comment=old if new else comment,
            )


def downgrade() -> None:
    _say(new=False)
    op.drop_table("people")
