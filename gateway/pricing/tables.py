"""Which rates has each target ever had?"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


class PriceVersion(SQLModel, table=True):
    """The rates of one target in one version; a version never changes."""

    __tablename__ = "price_versions"

    version: str = Field(
        sa_column=Column(
            String(80), primary_key=True, comment="target and hash of its rates; what rows refer to"
        )
    )
    target: str = Field(sa_column=Column(String(64), nullable=False, comment="pool that is priced"))
    input: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="nano-USD per million fresh input tokens")
    )
    cached_input: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="nano-USD per million tokens found in a cache")
    )
    cache_write: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="nano-USD per million tokens written to a cache")
    )
    output: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="nano-USD per million generated tokens")
    )
    reasoning: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="nano-USD per million reasoning tokens")
    )
    first_seen_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="when this version first came into force, epoch ms")
    )
