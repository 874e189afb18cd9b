"""Replica time and what it cost, in tables.

Phases, bills and their lines are only ever added to (see `gateway/append_only.py`); of a run only how far it
was seen moves on. Money is nano-USD, instants are epoch milliseconds.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, ForeignKey, Index, Integer, String
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


def _key(kind: Any, comment: str) -> Any:
    return Field(sa_column=Column(kind, primary_key=True, autoincrement=False, comment=comment))


def _text(length: int, comment: str) -> Any:
    return Field(sa_column=Column(String(length), nullable=False, comment=comment))


def _count(comment: str) -> Any:
    return Field(default=0, sa_column=Column(BigInteger, nullable=False, comment=comment))


class ReplicaRun(SQLModel, table=True):
    """One life of a driver, or one time that gateways saw a replica of someone else's up."""

    __tablename__ = "replica_runs"
    __table_args__ = (Index("ix_replica_runs_seen_until", "seen_until_ms"),)

    run_id: str = _key(String(64), "the driver's id of it, or obs_… where gateways observed it")
    source: str = _text(16, "driver or observed")
    seen_until_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="its last phases hold until then, epoch ms")
    )
    is_over: bool = Field(sa_column=Column(Boolean, nullable=False, comment="nothing will be added"))


class ReplicaPhase(SQLModel, table=True):
    """From an instant on a replica was in a phase, until its next one or its run's end."""

    __tablename__ = "replica_phases"
    __table_args__ = (Index("ix_replica_phases_at", "at_ms"),)

    run_id: str = Field(
        sa_column=Column(
            String(64), ForeignKey("replica_runs.run_id"), primary_key=True, comment="the run it is of"
        )
    )
    number: int = _key(Integer, "of the run's phases, from 1")
    pool: str = _text(64, "the replica's pool")
    replica: str = _text(64, "which replica")
    phase: str = _text(16, "starting, serving, asleep, broken or off")
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when it began, epoch ms"))


class PoolDeclaration(SQLModel, table=True):
    """Since when a file said that a pool is paid for whether anything is seen of it or not."""

    __tablename__ = "pool_declarations"

    pool: str = _key(String(64), "the pool")
    declared_at_ms: int = _key(EpochMs, "when a gateway first read so, epoch ms")
    withdrawn_at_ms: int | None = Field(
        default=None,
        sa_column=Column(EpochMs, nullable=True, comment="when no file said so any more, epoch ms"),
    )


class SupplyHour(SQLModel, table=True):
    """What a pool's hour cost: its bill, frozen; or what was found later and corrects an earlier hour."""

    __tablename__ = "supply_hours"

    hour_start_ms: int = _key(EpochMs, "the hour in which it is booked, first instant, epoch ms")
    pool: str = _key(String(64), "the pool")
    corrects_hour_ms: int = _key(EpochMs, "the hour that it is about; another one: it is a correction")
    bill_usd_nanos: int = _count("replica time times price, nano-USD; of a correction the difference")
    starting_ms: int = _count("replicas that started, ms of one replica")
    serving_ms: int = _count("replicas that were up")
    busy_ms: int = _count("part of serving in which a request was in the engine")
    asleep_ms: int = _count("replicas at a sleep level")
    broken_ms: int = _count("replicas that hung, had crashed, or waited for a start")
    unused_ms: int = _count("reserved replicas that did not run")
    replicas: int = Field(
        sa_column=Column(Integer, nullable=False, comment="replicas that the pool declares")
    )
    gpus_per_replica: int = Field(sa_column=Column(Integer, nullable=False, comment="GPUs of one replica"))
    prices: list[dict[str, Any]] = Field(
        sa_column=Column(JSON, nullable=False, comment="of one replica: since_ms, kind, usd_nanos_per_hour")
    )
    time_source: str = _text(16, "driver, observed or declared")
    method: str = _text(32, "how it was shared")
    weights: str = _text(256, "what tokens weigh against each other, and who says so")
    attempts: int = _count("attempts that were in its engines")
    booked_before_ms: int = Field(
        sa_column=Column(
            EpochMs, nullable=False, comment="attempts booked from then on are corrections, epoch ms"
        )
    )
    frozen_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))


class SupplyLine(SQLModel, table=True):
    """A part of a bill: what those requests used, or nobody."""

    __tablename__ = "supply_lines"

    hour_start_ms: int = _key(EpochMs, "the bill's hour, epoch ms")
    pool: str = _key(String(64), "the bill's pool")
    corrects_hour_ms: int = _key(EpochMs, "the hour that it is about")
    line: str = _key(
        String(16), "request, failed, warm_up, heartbeat, evaluation, idle, asleep, broken or unused"
    )
    tenant_id: str = _key(String(64), "whose requests; empty: nobody's")
    project_id: str = _key(String(64), "where the spend is allocated")
    key_id: str = _key(String(64), "public id of the API key")
    model_alias: str = _key(String(128), "the model as callers named it")
    task: str = _key(String(32), "task type")
    cost_usd_nanos: int = _count("part of the bill, nano-USD")
    engine_us: int = _count("engine time, microseconds")
    attempts: int = _count("attempts that were in the engine in this hour")
