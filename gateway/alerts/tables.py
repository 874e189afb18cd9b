"""What was to be told, and who has been told?

Messages are only ever added; their deliveries change until they are done.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, String
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


class AlertMessage(SQLModel, table=True):
    """Something that people shall know. Rows are only ever added."""

    __tablename__ = "alert_messages"
    __table_args__ = (Index("ix_alert_messages_at", "at_ms"),)

    id: str = Field(
        sa_column=Column(String(64), primary_key=True, comment="opaque id, alr_…; the same at every delivery")
    )
    topic: str = Field(
        sa_column=Column(
            String(256), nullable=False, unique=True, comment="what it is about: nothing is told twice"
        )
    )
    kind: str = Field(
        sa_column=Column(String(16), nullable=False, comment="budget, overrun, anomaly or test")
    )
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    subject: str = Field(sa_column=Column(String(256), nullable=False, comment="a line, for people"))
    details: dict[str, Any] = Field(
        sa_column=Column(JSON, nullable=False, comment="for programs; money as decimal strings in USD")
    )


class AlertDelivery(SQLModel, table=True):
    """One message on its way by one channel."""

    __tablename__ = "alert_deliveries"
    __table_args__ = (Index("ix_alert_deliveries_next", "next_at_ms"),)

    alert_id: str = Field(
        sa_column=Column(String(64), ForeignKey("alert_messages.id"), primary_key=True, comment="the message")
    )
    channel: str = Field(
        sa_column=Column(String(128), primary_key=True, comment="a webhook by host and hash, or email")
    )
    attempts: int = Field(sa_column=Column(Integer, nullable=False, comment="tries that failed"))
    next_at_ms: int | None = Field(
        sa_column=Column(EpochMs, nullable=True, comment="next try, epoch ms; empty: none any more")
    )
    delivered_at_ms: int | None = Field(
        default=None, sa_column=Column(EpochMs, nullable=True, comment="epoch ms; empty: not taken yet")
    )
    last_error: str | None = Field(
        default=None, sa_column=Column(String(256), nullable=True, comment="of the last try")
    )
