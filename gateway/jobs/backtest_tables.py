"""Which backtests were asked for over the API, and what did they find?"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Integer, String, Text
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


def _instant(comment: str) -> Any:
    return Field(default=None, sa_column=Column(EpochMs, nullable=True, comment=comment))


class BacktestJob(SQLModel, table=True):
    """A backtest: asked for, under way, or over."""

    __tablename__ = "backtests"

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, bt_…"))
    slot: int | None = Field(
        default=None,
        sa_column=Column(
            Integer, nullable=True, unique=True, comment="1 while it is under way, so that one is; else empty"
        ),
    )
    state: str = Field(
        sa_column=Column(String(16), nullable=False, comment="running, done, failed or cancelled")
    )
    is_cancelled: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, comment="somebody wants it to end")
    )
    stage: str = Field(sa_column=Column(String(16), nullable=False, comment="what it does now"))
    progress_ratio: float = Field(
        default=0.0, sa_column=Column(Float, nullable=False, comment="of the stage, 0 to 1")
    )
    candidate: str = Field(
        sa_column=Column(String(80), nullable=False, comment="version that is asked about")
    )
    baseline: str = Field(
        sa_column=Column(String(80), nullable=False, comment="version that it is compared with")
    )
    from_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="first instant, epoch ms"))
    to_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="first instant that does not count, epoch ms")
    )
    seed: int = Field(sa_column=Column(BigInteger, nullable=False, comment="of everything that is drawn"))
    draws: int = Field(sa_column=Column(Integer, nullable=False, comment="worlds for the intervals"))
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when it was asked for, epoch ms"))
    beat_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="when its process was last heard of, epoch ms")
    )
    ended_at_ms: int | None = _instant("epoch ms; empty: it is under way")
    actor_id: str = Field(sa_column=Column(String(160), nullable=False, comment="who asked"))
    actor_name: str = Field(
        sa_column=Column(String(128), nullable=False, comment="what people called the actor then")
    )
    error: str | None = Field(
        default=None, sa_column=Column(Text, nullable=True, comment="why it failed; empty: it did not")
    )
    result: dict[str, Any] | None = Field(
        default=None,
        sa_column=Column(JSON(none_as_null=True), nullable=True, comment="what it found; empty: nothing yet"),
    )
