"""Whose turn is it to do a job, and what did the last turn find?"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Text
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


class JobLease(SQLModel, table=True):
    """One job: who does it now, and what came of it."""

    __tablename__ = "job_leases"

    name: str = Field(sa_column=Column(String(64), primary_key=True, comment="the job"))
    holder: str = Field(
        sa_column=Column(
            String(64), nullable=False, comment="the process whose turn it is: the name of its spool"
        )
    )
    fencing_token: int = Field(
        sa_column=Column(
            BigInteger, nullable=False, comment="grows with every turn; who has an older one may not write"
        )
    )
    expires_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="end of the turn by the database's clock, epoch ms")
    )
    last_success_at_ms: int | None = Field(
        default=None, sa_column=Column(EpochMs, nullable=True, comment="epoch ms; empty: never yet")
    )
    last_result: str | None = Field(
        default=None, sa_column=Column(Text, nullable=True, comment="what the last turn found, JSON")
    )
