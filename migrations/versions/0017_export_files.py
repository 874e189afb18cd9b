"""export_files: a period is written as provisional until it is closed, and then once more.

Revision: 0017
Follows: 0016
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_UNKNOWN = -1
"""How much was booked when an older file was written: it is written again, as provisional or as final."""


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("schedule_id", sa.String(length=64), nullable=False, comment="the schedule"),
        sa.Column(
            "period_start_ms",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="what it is of, epoch ms",
        ),
        sa.Column("place", sa.String(length=2048), nullable=False, comment="where it was written"),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="rows in it"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="size of the file"),
        sa.Column("sha256", sa.String(length=64), nullable=False, comment="of the file"),
        sa.Column(
            "control_usd_nanos", sa.BigInteger(), nullable=False, comment="its control total, nano-USD"
        ),
        sa.Column("high_water", sa.String(length=64), nullable=True, comment="last booking that it knew"),
        sa.Column(
            "at_ms",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="when it was written, epoch ms",
        ),
    ]


def _constraints(*key: str) -> list[sa.Constraint]:
    return [
        sa.ForeignKeyConstraint(
            ["schedule_id"],
            ["export_schedules.id"],
            name=op.f("fk_export_files_schedule_id_export_schedules"),
        ),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_export_files")),
    ]


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    kept = _kept()
    op.drop_table("export_files")
    made = op.create_table(
        "export_files",
        *_columns(),
        sa.Column(
            "is_final",
            sa.Boolean(),
            nullable=False,
            comment="its period was closed: it is never written again",
        ),
        sa.Column(
            "booked",
            sa.BigInteger(),
            nullable=False,
            comment="attempts and adjustments, or pool-hours, that its period had by then",
        ),
        *_constraints("schedule_id", "period_start_ms", "at_ms"),
    )
    op.bulk_insert(made, [{**row, "is_final": False, "booked": _UNKNOWN} for row in kept])


def downgrade() -> None:
    # One for each period is all that there was room for: the newest.
    newest = {(row["schedule_id"], row["period_start_ms"]): row for row in _kept()}
    names = [column.name for column in _columns()]
    op.drop_table("export_files")
    made = op.create_table("export_files", *_columns(), *_constraints("schedule_id", "period_start_ms"))
    op.bulk_insert(made, [{name: row[name] for name in names} for row in newest.values()])


def _kept() -> list[dict[str, Any]]:
    """What was written, the newest last."""
    found = op.get_bind().execute(sa.text("SELECT * FROM export_files ORDER BY at_ms"))
    return [dict(row) for row in found.mappings()]
