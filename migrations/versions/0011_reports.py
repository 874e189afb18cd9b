"""reports: hours know how many requests the cache answered; exports by the calendar.

Revision: 0011
Follows: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_KEYS = ("tenant_id", "project_id", "key_id", "model_alias", "pool", "task", "payer")


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    with op.batch_alter_table("spend_hours") as table:
        table.add_column(
            sa.Column(
                "cache_hits",
                sa.BigInteger(),
                nullable=False,
                server_default="0",
                comment="requests that were answered from the cache, free of charge",
            )
        )
    keys = ", ".join(_KEYS)
    same = " AND ".join(f"found.{name} = spend_hours.{name}" for name in _KEYS)
    op.execute(
        "UPDATE spend_hours SET cache_hits = found.hits FROM ("  # noqa: S608 - names of columns
        f"SELECT started_at_ms - started_at_ms % 3600000 AS at_ms, {keys}, count(*) AS hits"
        f" FROM attempts WHERE cache = 'hit' GROUP BY started_at_ms - started_at_ms % 3600000, {keys}"
        f") AS found WHERE found.at_ms = spend_hours.hour_start_ms AND {same}"
    )
    op.create_table(
        "export_schedules",
        sa.Column("id", sa.String(length=64), nullable=False, comment="opaque id, exp_…"),
        sa.Column(
            "name", sa.String(length=128), nullable=False, comment="what people call it, and its files"
        ),
        sa.Column("every", sa.String(length=8), nullable=False, comment="day, week or month, in UTC"),
        sa.Column("format", sa.String(length=16), nullable=False, comment="csv, xlsx, parquet, …"),
        sa.Column("wanted", sa.JSON(), nullable=False, comment="what is exported: rows, group_by, filters"),
        sa.Column(
            "target", sa.String(length=1024), nullable=False, comment="a folder, or s3://bucket/prefix"
        ),
        sa.Column(
            "endpoint_url", sa.String(length=512), nullable=True, comment="of storage that is not AWS's"
        ),
        sa.Column(
            "delay_s", sa.BigInteger(), nullable=False, comment="how long after a period's end, seconds"
        ),
        sa.Column(
            "from_ms", sa.BigInteger(), nullable=False, comment="the first period that it writes, epoch ms"
        ),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
        sa.Column("retired_at_ms", sa.BigInteger(), nullable=True, comment="epoch ms; writes nothing since"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_schedules")),
        sa.UniqueConstraint("name", name=op.f("uq_export_schedules_name")),
    )
    op.create_table(
        "export_files",
        sa.Column("schedule_id", sa.String(length=64), nullable=False, comment="the schedule"),
        sa.Column("period_start_ms", sa.BigInteger(), nullable=False, comment="what it is of, epoch ms"),
        sa.Column("place", sa.String(length=2048), nullable=False, comment="where it was written"),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="rows in it"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="size of the file"),
        sa.Column("sha256", sa.String(length=64), nullable=False, comment="of the file"),
        sa.Column(
            "control_usd_nanos", sa.BigInteger(), nullable=False, comment="its control total, nano-USD"
        ),
        sa.Column("high_water", sa.String(length=64), nullable=True, comment="last booking that it knew"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it was written, epoch ms"),
        sa.ForeignKeyConstraint(
            ["schedule_id"],
            ["export_schedules.id"],
            name=op.f("fk_export_files_schedule_id_export_schedules"),
        ),
        sa.PrimaryKeyConstraint("schedule_id", "period_start_ms", name=op.f("pk_export_files")),
    )


def downgrade() -> None:
    op.drop_table("export_files")
    op.drop_table("export_schedules")
    with op.batch_alter_table("spend_hours") as table:
        table.drop_column("cache_hits")
