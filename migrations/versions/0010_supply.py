"""supply: how long replicas ran, what that cost and who used it.

Revision: 0010
Follows: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A migration that cannot get its locks soon must fail, not queue in front of every request.
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET lock_timeout = '5s'")
    op.create_table(
        "replica_runs",
        sa.Column(
            "run_id",
            sa.String(length=64),
            nullable=False,
            comment="the driver's id of it, or obs_… where gateways observed it",
        ),
        sa.Column("source", sa.String(length=16), nullable=False, comment="driver or observed"),
        sa.Column(
            "seen_until_ms",
            sa.BigInteger(),
            nullable=False,
            comment="its last phases hold until then, epoch ms",
        ),
        sa.Column("is_over", sa.Boolean(), nullable=False, comment="nothing will be added"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_replica_runs")),
    )
    op.create_index("ix_replica_runs_seen_until", "replica_runs", ["seen_until_ms"])
    op.create_table(
        "replica_phases",
        sa.Column("run_id", sa.String(length=64), nullable=False, comment="the run it is of"),
        sa.Column("number", sa.Integer(), nullable=False, comment="of the run's phases, from 1"),
        sa.Column("pool", sa.String(length=64), nullable=False, comment="the replica's pool"),
        sa.Column("replica", sa.String(length=64), nullable=False, comment="which replica"),
        sa.Column(
            "phase", sa.String(length=16), nullable=False, comment="starting, serving, asleep, broken or off"
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it began, epoch ms"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["replica_runs.run_id"], name=op.f("fk_replica_phases_run_id_replica_runs")
        ),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_replica_phases")),
    )
    op.create_index("ix_replica_phases_at", "replica_phases", ["at_ms"])
    op.create_table(
        "supply_hours",
        sa.Column(
            "hour_start_ms",
            sa.BigInteger(),
            nullable=False,
            comment="the hour in which it is booked, first instant, epoch ms",
        ),
        sa.Column("pool", sa.String(length=64), nullable=False, comment="the pool"),
        sa.Column(
            "corrects_hour_ms",
            sa.BigInteger(),
            nullable=False,
            comment="the hour that it is about; another one: it is a correction",
        ),
        sa.Column(
            "bill_usd_nanos",
            sa.BigInteger(),
            nullable=False,
            comment="replica time times price, nano-USD; of a correction the difference",
        ),
        sa.Column(
            "starting_ms", sa.BigInteger(), nullable=False, comment="replicas that started, ms of one replica"
        ),
        sa.Column("serving_ms", sa.BigInteger(), nullable=False, comment="replicas that were up"),
        sa.Column(
            "busy_ms",
            sa.BigInteger(),
            nullable=False,
            comment="part of serving in which a request was in the engine",
        ),
        sa.Column("asleep_ms", sa.BigInteger(), nullable=False, comment="replicas at a sleep level"),
        sa.Column(
            "broken_ms",
            sa.BigInteger(),
            nullable=False,
            comment="replicas that hung, had crashed, or waited for a start",
        ),
        sa.Column("unused_ms", sa.BigInteger(), nullable=False, comment="reserved replicas that did not run"),
        sa.Column("replicas", sa.Integer(), nullable=False, comment="replicas that the pool declares"),
        sa.Column("gpus_per_replica", sa.Integer(), nullable=False, comment="GPUs of one replica"),
        sa.Column(
            "prices", sa.JSON(), nullable=False, comment="of one replica: since_ms, kind, usd_nanos_per_hour"
        ),
        sa.Column(
            "time_source", sa.String(length=16), nullable=False, comment="driver, observed or declared"
        ),
        sa.Column("method", sa.String(length=32), nullable=False, comment="how it was shared"),
        sa.Column(
            "weights",
            sa.String(length=256),
            nullable=False,
            comment="what tokens weigh against each other, and who says so",
        ),
        sa.Column("attempts", sa.BigInteger(), nullable=False, comment="attempts that were in its engines"),
        sa.Column(
            "booked_before_ms",
            sa.BigInteger(),
            nullable=False,
            comment="attempts booked from then on are corrections, epoch ms",
        ),
        sa.Column("frozen_at_ms", sa.BigInteger(), nullable=False, comment="epoch ms"),
        sa.PrimaryKeyConstraint("hour_start_ms", "pool", "corrects_hour_ms", name=op.f("pk_supply_hours")),
    )
    op.create_table(
        "supply_lines",
        sa.Column("hour_start_ms", sa.BigInteger(), nullable=False, comment="the bill's hour, epoch ms"),
        sa.Column("pool", sa.String(length=64), nullable=False, comment="the bill's pool"),
        sa.Column("corrects_hour_ms", sa.BigInteger(), nullable=False, comment="the hour that it is about"),
        sa.Column(
            "line",
            sa.String(length=16),
            nullable=False,
            comment="request, failed, warm_up, heartbeat, evaluation, idle, asleep, broken or unused",
        ),
        sa.Column(
            "tenant_id", sa.String(length=64), nullable=False, comment="whose requests; empty: nobody's"
        ),
        sa.Column("project_id", sa.String(length=64), nullable=False, comment="where the spend is allocated"),
        sa.Column("key_id", sa.String(length=64), nullable=False, comment="public id of the API key"),
        sa.Column(
            "model_alias", sa.String(length=128), nullable=False, comment="the model as callers named it"
        ),
        sa.Column("task", sa.String(length=32), nullable=False, comment="task type"),
        sa.Column("cost_usd_nanos", sa.BigInteger(), nullable=False, comment="part of the bill, nano-USD"),
        sa.Column("engine_us", sa.BigInteger(), nullable=False, comment="engine time, microseconds"),
        sa.Column(
            "attempts",
            sa.BigInteger(),
            nullable=False,
            comment="attempts that were in the engine in this hour",
        ),
        sa.PrimaryKeyConstraint(
            "hour_start_ms",
            "pool",
            "corrects_hour_ms",
            "line",
            "tenant_id",
            "project_id",
            "key_id",
            "model_alias",
            "task",
            name=op.f("pk_supply_lines"),
        ),
    )


def downgrade() -> None:
    op.drop_table("supply_lines")
    op.drop_table("supply_hours")
    op.drop_table("replica_phases")
    op.drop_table("replica_runs")
