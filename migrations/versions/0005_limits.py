"""limits: requests and tokens per minute, concurrent requests; tags that the operator fixes.

Revision: 0005
Follows: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    # Plain ALTERs, which SQLite knows too: recreating a table that others refer to would break them.
    op.add_column("projects", _tags("cost tags that the operator fixed on its calls"))
    op.add_column("api_keys", _tags("cost tags that the operator fixed on its calls, over the project's"))
    op.create_table(
        "limits",
        _text("id", 64, "opaque id, lim_…"),
        _text("scope", 16, "tenant, project or key"),
        _text("scope_id", 64, "id of that; of a rotated key: the first one's of the line"),
        _text("name", 128, "what people called that when it was set"),
        _bound("requests_per_minute", "requests in a minute; empty: any number"),
        _bound("tokens_per_minute", "tokens in a minute, input and output; empty: any number"),
        _bound("concurrent_requests", "requests under way at once; empty: any number"),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
        sa.Column(
            "ended_at_ms",
            sa.BigInteger(),
            nullable=True,
            comment="epoch ms; since then it does not hold any more",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_limits")),
    )
    live = sa.text("ended_at_ms IS NULL")
    op.create_index(
        "uq_limits_live",
        "limits",
        ["scope", "scope_id"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_index("ix_limits_created", "limits", ["created_at_ms", "id"])


def _text(name: str, length: int, comment: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False, comment=comment)


def _bound(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=True, comment=comment)


def _tags(comment: str) -> sa.Column[object]:
    return sa.Column("tags", sa.JSON(none_as_null=True), nullable=True, comment=comment)


def downgrade() -> None:
    op.drop_table("limits")
    op.drop_column("api_keys", "tags")
    op.drop_column("projects", "tags")
