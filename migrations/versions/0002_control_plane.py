"""control plane: what tenants and keys allow, retirement and rotation, administrators, the audit.

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
    # Plain ALTERs, which SQLite knows too: recreating a table that others refer to would break them.
    op.add_column(
        "tenants",
        sa.Column(
            "is_internal_only",
            sa.Boolean(),
            server_default=sa.true(),
            nullable=False,
            comment="nothing of it may leave the company: no external targets, until its owner opts in",
        ),
    )
    op.add_column(
        "tenants",
        sa.Column(
            "caches_answers",
            sa.Boolean(),
            server_default=sa.true(),
            nullable=False,
            comment="its answers may be kept in the cache",
        ),
    )
    for table in ("tenants", "projects"):
        op.add_column(table, _instant("retired_at_ms", "epoch ms; since then its keys are refused"))
    op.add_column("api_keys", _instant("expires_at_ms", "epoch ms; from then on it is refused; empty: never"))
    op.add_column("api_keys", _json("allowed_models", "model aliases that it may ask for; empty: all"))
    op.add_column("api_keys", _json("allowed_classes", "latency classes that it may ask for; empty: all"))
    op.add_column("api_keys", _rotated_from())
    op.create_index("uq_api_keys_rotated_from", "api_keys", ["rotated_from"], unique=True)
    op.create_index("ix_api_keys_created", "api_keys", ["created_at_ms", "id"])
    op.create_index("ix_api_keys_tenant_project", "api_keys", ["tenant_id", "project_id"])
    op.create_table(
        "admin_keys",
        _text("id", 64, "public id: the middle part of the key as shown"),
        _text("secret_hash", 64, "SHA-256 of the whole key, hex"),
        _text("name", 128, "whose it is"),
        _text("role", 16, "admin, operator, finance or viewer"),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
        _instant("revoked_at_ms", "epoch ms; empty while it is valid"),
        _instant("expires_at_ms", "epoch ms; from then on it is refused; empty: never"),
        _rotated_from(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admin_keys")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_admin_keys_secret_hash")),
    )
    op.create_index("uq_admin_keys_rotated_from", "admin_keys", ["rotated_from"], unique=True)
    op.create_table(
        "audit_entries",
        _text("id", 64, "opaque id, aud_…"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        _text("source", 16, "how it was done: api, cli or console"),
        sa.Column(
            "request_id",
            sa.String(length=64),
            nullable=True,
            comment="the request that did it, as in x-request-id",
        ),
        _text("actor_kind", 16, "bootstrap, admin_key or cli"),
        _text("actor_id", 160, "public id of the administrator key, or cli:<user of the machine>"),
        _text("actor_name", 128, "what people called the actor then"),
        _text("actor_role", 16, "the actor's role then"),
        _text("action", 64, "what was done, such as key.rotate"),
        _text("object_kind", 32, "what it was done to, such as key"),
        _text("object_id", 64, "its id"),
        _text("object_name", 128, "what people called it afterwards"),
        _json("before", "what changed, as it was; empty for a new one"),
        _json("after", "what changed, as it is now"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    op.create_index("ix_audit_entries_actor", "audit_entries", ["actor_id", "at_ms"])
    op.create_index("ix_audit_entries_at", "audit_entries", ["at_ms", "id"])
    op.create_index("ix_audit_entries_object", "audit_entries", ["object_id", "at_ms"])


def _text(name: str, length: int, comment: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False, comment=comment)


def _instant(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=True, comment=comment)


def _json(name: str, comment: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=True, comment=comment)


def _rotated_from() -> sa.Column[str]:
    return sa.Column(
        "rotated_from", sa.String(length=64), nullable=True, comment="public id of the key that it replaces"
    )


def downgrade() -> None:
    op.drop_table("audit_entries")
    op.drop_table("admin_keys")
    op.drop_index("ix_api_keys_tenant_project", "api_keys")
    op.drop_index("ix_api_keys_created", "api_keys")
    op.drop_index("uq_api_keys_rotated_from", "api_keys")
    for column in ("rotated_from", "allowed_classes", "allowed_models", "expires_at_ms"):
        op.drop_column("api_keys", column)
    for table in ("projects", "tenants"):
        op.drop_column(table, "retired_at_ms")
    op.drop_column("tenants", "caches_answers")
    op.drop_column("tenants", "is_internal_only")
