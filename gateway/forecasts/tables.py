"""Which anomalies were found? One for each value of a dimension and day; rows are only ever added."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, String
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


class Anomaly(SQLModel, table=True):
    """Spend that stood out."""

    __tablename__ = "anomalies"

    day_start_ms: int = Field(
        sa_column=Column(
            EpochMs, primary_key=True, autoincrement=False, comment="UTC day in which it was found, epoch ms"
        )
    )
    dimension: str = Field(
        sa_column=Column(String(16), primary_key=True, comment="tenant, project, key, pool, model or task")
    )
    value: str = Field(sa_column=Column(String(128), primary_key=True, comment="id, or name, of what"))
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when it was found, epoch ms"))
    end_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="end of the window, epoch ms"))
    window_hours: int = Field(sa_column=Column(Integer, nullable=False, comment="its length: 1, 6 or 24"))
    actual_usd_nanos: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="charged in the window, nano-USD")
    )
    expected_usd_nanos: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="usual for it, nano-USD")
    )
    deviations_permille: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="thousandths of robust deviations above usual")
    )
    cause_dimension: str | None = Field(
        default=None,
        sa_column=Column(String(16), nullable=True, comment="what explains it; empty: nothing does"),
    )
    cause_value: str | None = Field(
        default=None, sa_column=Column(String(128), nullable=True, comment="id or name of that")
    )
    cause_permille: int | None = Field(
        default=None, sa_column=Column(Integer, nullable=True, comment="thousandths of the excess that it is")
    )
