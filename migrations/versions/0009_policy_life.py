"""policy_life: drafts, checks and activations of policies; the audit becomes a chain.

Revision: 0009
Follows: 0008
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_COMMENTS = (
    (
        "policy_versions",
        "first_seen_at_ms",
        sa.BigInteger(),
        "when this version first came into force, epoch ms",
        "when this version was first stored, epoch ms",
    ),
    (
        "audit_entries",
        "source",
        sa.String(16),
        "how it was done: api, cli or console",
        "how it was done: api, cli, console or start",
    ),
    (
        "audit_entries",
        "actor_kind",
        sa.String(16),
        "bootstrap, admin_key or cli",
        "bootstrap, admin_key, cli or gateway",
    ),
)


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    for column in (
        sa.Column(
            "author_id",
            sa.String(length=160),
            nullable=True,
            comment="who stored it; empty: a start before versions had authors",
        ),
        sa.Column(
            "author_name", sa.String(length=128), nullable=True, comment="what people called the author then"
        ),
        sa.Column(
            "message", sa.String(length=500), nullable=True, comment="what it is for, in the author's words"
        ),
    ):
        op.add_column("policy_versions", column)
    op.add_column(
        "audit_entries",
        sa.Column(
            "client",
            sa.String(length=64),
            nullable=True,
            comment="address of whoever connected; empty: nobody did",
        ),
    )
    _say(new=True)
    _create_policy_tables()
    op.create_table(
        "audit_chain",
        sa.Column(
            "number",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="counts entries from 1, no gaps",
        ),
        sa.Column("entry_id", sa.String(length=64), nullable=False, comment="the entry, aud_…"),
        sa.Column(
            "previous_hash",
            sa.String(length=64),
            nullable=False,
            comment="of the link before; the first one's is zeros",
        ),
        sa.Column(
            "hash",
            sa.String(length=64),
            nullable=False,
            comment="SHA-256 of number, previous hash and entry (audit_chain.py)",
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_chain")),
        sa.UniqueConstraint("entry_id", name=op.f("uq_audit_chain_entry_id")),
    )
    _chain()


def _create_policy_tables() -> None:
    op.create_table(
        "policy_checks",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, chk_…"),
        sa.Column("version", sa.String(length=80), nullable=False, comment="what was looked at"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        sa.Column("is_fit", sa.Boolean(), nullable=False, comment="it could have served"),
        sa.Column("complaint", sa.Text(), nullable=True, comment="what was wrong; empty: nothing"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_checks")),
        _refers("policy_checks", "version"),
    )
    op.create_index("ix_policy_checks_version", "policy_checks", ["version", "at_ms"])
    op.create_table(
        "policy_activations",
        sa.Column(
            "number",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="counts activations from 1, no gaps",
        ),
        sa.Column("version", sa.String(length=80), nullable=False, comment="what came into force"),
        sa.Column(
            "previous",
            sa.String(length=80),
            nullable=True,
            comment="what it took the place of; empty: nothing",
        ),
        sa.Column("origin", sa.String(length=16), nullable=False, comment="seed, publish or rollback"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when, epoch ms"),
        sa.Column("actor_id", sa.String(length=160), nullable=False, comment="whose doing it is"),
        sa.Column(
            "actor_name", sa.String(length=128), nullable=False, comment="what people called the actor then"
        ),
        sa.Column("message", sa.String(length=500), nullable=True, comment="why, in people's words"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_policy_activations")),
        _refers("policy_activations", "version"),
        _refers("policy_activations", "previous"),
    )
    op.create_index("ix_policy_activations_version", "policy_activations", ["version", "number"])


def _refers(table: str, column: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}_policy_versions")
    return sa.ForeignKeyConstraint([column], ["policy_versions.version"], name=name)


def _say(*, new: bool) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, column, kind, old, comment in _COMMENTS:
            op.alter_column(
                table,
                column,
                existing_type=kind,
                existing_nullable=False,
                comment=comment if new else old,
                existing_comment=old if new else comment,
            )


def _chain() -> None:
    """Give every entry that there is a link, in the order in which they are shown."""
    connection = op.get_bind()
    entries = sa.Table("audit_entries", sa.MetaData(), autoload_with=connection)
    links = sa.table(
        "audit_chain",
        sa.column("number", sa.BigInteger),
        sa.column("entry_id", sa.String),
        sa.column("previous_hash", sa.String),
        sa.column("hash", sa.String),
    )
    previous, rows = "0" * 64, []
    found = connection.execute(sa.select(entries).order_by(entries.c.at_ms, entries.c.id)).mappings()
    for number, entry in enumerate(found, start=1):
        own = _hash_of(number, previous, entry)
        rows.append({"number": number, "entry_id": entry["id"], "previous_hash": previous, "hash": own})
        previous = own
    if rows:
        connection.execute(sa.insert(links), rows)


def _hash_of(number: int, previous: str, entry: Mapping[str, Any]) -> str:
    """As gateway/audit_chain.py does it; what is done once must not change with the program."""
    content = {name: value for name, value in entry.items() if value is not None}
    whole = {"entry": content, "number": number, "previous": previous}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def downgrade() -> None:
    op.drop_table("audit_chain")
    op.drop_index("ix_policy_activations_version", table_name="policy_activations")
    op.drop_table("policy_activations")
    op.drop_index("ix_policy_checks_version", table_name="policy_checks")
    op.drop_table("policy_checks")
    _say(new=False)
    op.drop_column("audit_entries", "client")
    for column in ("message", "author_name", "author_id"):
        op.drop_column("policy_versions", column)
