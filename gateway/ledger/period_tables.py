"""Closed months, what was booked for them afterwards, and what was corrected by hand: the tables.

All but the proposals are only ever added to (see `gateway/append_only.py`). Money is nano-USD, instants are
epoch milliseconds.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, String
from sqlmodel import Field, SQLModel

from gateway.audit import Audited
from gateway.db import EpochMs


def _key(kind: Any, comment: str) -> Any:
    return Field(sa_column=Column(kind, primary_key=True, autoincrement=False, comment=comment))


def _text(length: int, comment: str, *, optional: bool = False) -> Any:
    return Field(default=None, sa_column=Column(String(length), nullable=optional, comment=comment))


def _count(comment: str) -> Any:
    return Field(default=0, sa_column=Column(BigInteger, nullable=False, comment=comment))


def _instant(comment: str, *, optional: bool = False) -> Any:
    return Field(default=None, sa_column=Column(EpochMs, nullable=optional, comment=comment))


class ClosedPeriod(Audited, table=True):
    """A month that is over for ever, with its report and who answers for it."""

    __tablename__ = "closed_periods"
    audit_kind: ClassVar[str] = "period"
    audit_topic: ClassVar[str] = "periods"
    audit_fields: ClassVar[tuple[str, ...]] = (
        "name",
        "closed_at_ms",
        "closed_by",
        "report_sha256",
        "seal_sha256",
        "charge_usd_nanos",
        "adjustments_usd_nanos",
        "supply_usd_nanos",
    )

    id: str = _key(String(7), "the month, such as 2026-10")
    name: str = _text(7, "the same")
    start_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, unique=True, comment="its first instant, epoch ms")
    )
    end_ms: int = _instant("the first instant that is not in it, epoch ms")
    report: bytes = Field(
        sa_column=Column(LargeBinary, nullable=False, comment="the closed report, deflated (zlib)")
    )
    report_bytes: int = _count("size of the report as it is shown")
    report_sha256: str = _text(64, "of the report as it is shown")
    seal: str = _text(4096, "what is signed: the report's hash, the seal before, who closed it, and when")
    seal_sha256: str = _text(64, "of the seal; the next period's seal names it")
    signature: str = _text(128, "Ed25519 over the seal, hexadecimal")
    public_key: str = _text(64, "that verifies it, hexadecimal; derived from the secret key")
    closed_at_ms: int = _instant("when, epoch ms")
    closed_by: str = _text(160, "who, as the audit knows them")
    high_water: str | None = _text(64, "the last booking that it knew", optional=True)
    charge_usd_nanos: int = _count("what tenants are charged, corrections included, nano-USD")
    platform_usd_nanos: int = _count("on the platform's account, nano-USD")
    adjustments_usd_nanos: int = _count("credits and corrections by hand, nano-USD")
    supply_usd_nanos: int = _count("bills of the pools, nano-USD")


class LateHour(SQLModel, table=True):
    """What one booking brought for an hour of a month that was closed by then: it counts in the next one."""

    __tablename__ = "late_hours"
    __table_args__ = (
        Index("ix_late_hours_hour", "hour_start_ms"),
        Index("ix_late_hours_billed_in", "billed_in_ms"),
    )

    journal_id: str = Field(
        sa_column=Column(
            String(64), ForeignKey("journal_transactions.id"), primary_key=True, comment="the booking"
        )
    )
    hour_start_ms: int = _key(EpochMs, "the hour in which the requests were made, epoch ms")
    tenant_id: str = _key(String(64), "whose requests")
    project_id: str = _key(String(64), "where the spend is allocated")
    key_id: str = _key(String(64), "public id of the API key")
    model_alias: str = _key(String(128), "the model as callers named it")
    pool: str = _key(String(64), "pool that was tried")
    task: str = _key(String(32), "task type")
    payer: str = _key(String(16), "tenant or platform")
    billed_in_ms: int = _instant("first instant of the period in which it counts, epoch ms")
    requests: int = _count("first attempts")
    attempts: int = _count("all attempts")
    failed_attempts: int = _count("attempts that failed")
    unpriced_attempts: int = _count("attempts without a price")
    input_tokens: int = _count("fresh input tokens")
    cached_input_tokens: int = _count("input tokens found in a cache")
    cache_write_tokens: int = _count("input tokens written to a billed cache")
    output_tokens: int = _count("generated tokens, without reasoning")
    reasoning_tokens: int = _count("generated reasoning tokens")
    charge_usd_nanos: int = _count("what the payer is charged, nano-USD")
    cache_hits: int = _count("requests that were answered from the cache, free of charge")


class Adjustment(SQLModel, table=True):
    """A credit or a correction that two people agreed on, booked; no posted charge changes."""

    __tablename__ = "adjustments"
    __table_args__ = (Index("ix_adjustments_at", "at_ms"),)

    id: str = _key(String(64), "that of its proposal, adj_…")
    journal_id: str = Field(
        sa_column=Column(
            String(64),
            ForeignKey("journal_transactions.id"),
            nullable=False,
            unique=True,
            comment="its booking",
        )
    )
    kind: str = _text(16, "credit, correction or reconciliation")
    tenant_id: str = _text(64, "whose account; platform: our own")
    amount_usd_nanos: int = _count("nano-USD; negative: the account owes less")
    charge_month: str | None = _text(7, "the month that it is about, such as 2026-10", optional=True)
    pool: str | None = _text(64, "the pool that it is about", optional=True)
    reason: str = _text(512, "why, for people")
    at_ms: int = _instant("when it was booked; its month is the period in which it counts, epoch ms")


class Proposal(Audited, table=True):
    """An adjustment that somebody proposed, and what a second person said."""

    __tablename__ = "adjustment_proposals"
    audit_kind: ClassVar[str] = "adjustment"
    audit_topic: ClassVar[str] = "periods"
    audit_fields: ClassVar[tuple[str, ...]] = (
        "name",
        "kind",
        "tenant_id",
        "amount_usd_nanos",
        "charge_month",
        "pool",
        "reason",
        "state",
        "proposed_by",
        "decided_by",
        "journal_id",
    )

    id: str = _key(String(64), "opaque id, adj_…")
    name: str = _text(128, "what it is, in a few words")
    kind: str = _text(16, "credit, correction or reconciliation")
    tenant_id: str = _text(64, "whose account; platform: our own")
    amount_usd_nanos: int = _count("nano-USD; negative: the account owes less")
    charge_month: str | None = _text(7, "the month that it is about", optional=True)
    pool: str | None = _text(64, "the pool that it is about", optional=True)
    reason: str = _text(512, "why, for people")
    reconciliation_id: str | None = _text(64, "the comparison that it comes from", optional=True)
    gap: str | None = _text(32, "why the bill differs, of a comparison", optional=True)
    state: str = _text(16, "proposed, approved or rejected")
    proposed_by: str = _text(160, "who, as the audit knows them")
    proposed_at_ms: int = _instant("when, epoch ms")
    decided_by: str | None = _text(160, "the second person", optional=True)
    decided_at_ms: int | None = _instant("when, epoch ms", optional=True)
    journal_id: str | None = _text(64, "its booking", optional=True)


class Reconciliation(Audited, table=True):
    """A bill that was compared with the ledger. Rows are only ever added."""

    __tablename__ = "reconciliations"
    audit_kind: ClassVar[str] = "reconciliation"
    audit_topic: ClassVar[str] = "periods"
    audit_fields: ClassVar[tuple[str, ...]] = (
        "name",
        "kind",
        "period",
        "file_sha256",
        "bill_usd_nanos",
        "ledger_usd_nanos",
    )

    id: str = _key(String(64), "opaque id, rec_…")
    name: str = _text(128, "the file's name")
    kind: str = _text(16, "provider or gpu")
    period: str = _text(7, "the month, such as 2026-10")
    file_sha256: str = _text(64, "of the file")
    bill_usd_nanos: int = _count("what the bill comes to, nano-USD")
    ledger_usd_nanos: int = _count("what the ledger says, nano-USD")
    result: bytes = Field(sa_column=Column(LargeBinary, nullable=False, comment="every line, as JSON"))
    made_by: str = _text(160, "who, as the audit knows them")
    made_at_ms: int = _instant("when, epoch ms")
