"""Which policies have ever been in force, how was each request decided, and what has been learned?"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, String, Text
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


class PolicyVersion(SQLModel, table=True):
    """An immutable state of a policy."""

    __tablename__ = "policy_versions"

    version: str = Field(
        sa_column=Column(String(80), primary_key=True, comment="name and hash of the content")
    )
    name: str = Field(sa_column=Column(String(64), nullable=False, comment="the policy's name"))
    text: str = Field(sa_column=Column(Text, nullable=False, comment="the YAML as it was written"))
    first_seen_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="when this version first came into force, epoch ms")
    )


class Receipt(SQLModel, table=True):
    """How one request was decided: facts, candidates, reasons, nobody's text. Rows are only ever added."""

    __tablename__ = "receipts"

    request_id: str = Field(sa_column=Column(String(64), primary_key=True, comment="as in x-request-id"))
    started_at_ms: int = Field(
        sa_column=Column(
            EpochMs,
            primary_key=True,
            autoincrement=False,
            comment="epoch ms; months are partitions on PostgreSQL",
        )
    )
    tenant_id: str = Field(sa_column=Column(String(64), nullable=False, comment="who may read it"))
    body: str = Field(sa_column=Column(Text, nullable=False, comment="the decision, JSON"))


class Learned(SQLModel, table=True):
    """What answered attempts have taught of one pool and task: decayed sums, no request."""

    __tablename__ = "learned"
    __table_args__ = (Index("ix_learned_folded", "folded_at_ms"),)

    pool: str = Field(sa_column=Column(String(64), primary_key=True, comment="the pool that answered"))
    task: str = Field(sa_column=Column(String(32), primary_key=True, comment="task type; empty: all tasks"))
    tenant_id: str = Field(
        sa_column=Column(String(64), primary_key=True, comment="whose requests; empty: everybody's")
    )
    lessons: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="attempts that were ever folded in")
    )
    folded_at_ms: int = Field(
        sa_column=Column(
            EpochMs,
            nullable=False,
            comment="until then its weights have faded, epoch ms; the database's clock",
        )
    )
    evidence: str = Field(
        sa_column=Column(Text, nullable=False, comment="the sums, JSON (gateway/routing/learning.py)")
    )
