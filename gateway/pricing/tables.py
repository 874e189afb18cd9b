"""Which rates has each target ever had, and from when to when?"""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import BigInteger, Column, ForeignKey, Index, String, text
from sqlmodel import Field, SQLModel

from gateway.audit import Audited
from gateway.db import EpochMs

TOPIC = "prices"
"""Of `changes`: raised with every entry of the price book."""
NOTE_CHARS = 500


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
    per_request: int = Field(
        default=0,
        sa_column=Column(
            BigInteger, nullable=False, server_default=text("0"), comment="nano-USD per answered request"
        ),
    )
    first_seen_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="when this version first came into force, epoch ms")
    )


class PriceEntry(Audited, table=True):
    """From an instant on a target has this price. Entries are only ever added."""

    __tablename__ = "price_entries"
    __table_args__ = (Index("ix_price_entries_target", "target", "created_at_ms", "id"),)
    audit_kind: ClassVar[str] = "price"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("target", "version", "source", "note", "effective_from_ms")

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, prc_…"))
    target: str = Field(
        sa_column=Column(String(64), nullable=False, comment="pool or external target that is priced")
    )
    version: str | None = Field(
        default=None,
        sa_column=Column(
            String(80),
            ForeignKey("price_versions.version"),
            nullable=True,
            comment="its rates; empty: from then on what its pool or policy file says",
        ),
    )
    source: str = Field(sa_column=Column(String(16), nullable=False, comment="finance or litellm"))
    note: str | None = Field(
        default=None, sa_column=Column(String(NOTE_CHARS), nullable=True, comment="why, in people's words")
    )
    effective_from_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="from when on it counts, epoch ms")
    )
    created_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="when it was made, epoch ms")
    )

    @property
    def name(self) -> str:
        """What people call it in the audit."""
        return self.target
