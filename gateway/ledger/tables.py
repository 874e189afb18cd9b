"""Attempts, the journal, hourly sums, budgets and what is lent of them: the books in tables.

Attempts and journal are only ever added to; triggers refuse anything else on both databases, and on
PostgreSQL the serving role may not even try (see `gateway/grants.py`). Hourly sums and the windows of
budgets are what those add up to, kept beside them in the same transactions; the auditor compares.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, String
from sqlmodel import Field, SQLModel

from gateway.audit import Audited
from gateway.db import EpochMs


def _text(length: int, comment: str, *, optional: bool = False) -> Any:
    return Field(default=None, sa_column=Column(String(length), nullable=optional, comment=comment))


def _count(comment: str) -> Any:
    return Field(default=0, sa_column=Column(BigInteger, nullable=False, comment=comment))


def _measure(comment: str) -> Any:
    return Field(default=None, sa_column=Column(Integer, nullable=True, comment=comment))


def _key(kind: Any, comment: str) -> Any:
    return Field(sa_column=Column(kind, primary_key=True, autoincrement=False, comment=comment))


def _duration(comment: str) -> Any:
    return Field(default=None, sa_column=Column(Float, nullable=True, comment=comment))


class Attempt(SQLModel, table=True):
    """One try at one target for one request."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("ix_attempts_tenant_started", "tenant_id", "started_at_ms"),
        Index("ix_attempts_started", "started_at_ms"),
        Index("ix_attempts_request", "request_id"),
        Index("ix_attempts_journal", "journal_id"),
    )

    attempt_id: str = _key(String(64), "opaque id, att_…; a correction's is rev_… of what it reverses")
    started_at_ms: int = _key(EpochMs, "epoch ms; months are partitions on PostgreSQL")
    request_id: str = _text(64, "the request it belongs to, as in x-request-id")
    attempt_number: int = Field(sa_column=Column(Integer, nullable=False, comment="1 for the first try"))
    tenant_id: str = _text(64, "whose request it was")
    project_id: str = _text(64, "where the spend is allocated")
    key_id: str = _text(64, "public id of the API key")
    end_user: str | None = _text(64, "HMAC of the end user under the tenant's secret", optional=True)
    client_request_id: str | None = _text(256, "the caller's own X-Request-Id", optional=True)
    endpoint: str = _text(64, "path below /v1")
    model_alias: str = _text(128, "the model as the caller named it")
    is_streaming: bool = Field(sa_column=Column(Boolean, nullable=False, comment="answered as a stream"))
    pool: str = _text(64, "pool that was tried")
    replica: str = _text(64, "replica that was tried")
    task: str = _text(32, "task type")
    task_source: str = _text(16, "declared, signal, classifier or default")
    nature: str = _text(16, "predictable or creative")
    policy_version: str = _text(80, "policy that decided")
    price_version: str = _text(80, "price that the charge was computed with")
    service_tier: str | None = _text(16, "latency class asked for", optional=True)
    tags: dict[str, str] = Field(sa_column=Column(JSON, nullable=False, comment="the caller's cost tags"))
    cache: str = Field(
        default="bypass",
        sa_column=Column(
            String(16),
            nullable=False,
            server_default="bypass",
            comment="hit (answered without a model, free of charge), miss or bypass",
        ),
    )
    hold_usd_nanos: int = _count("upper bound that was held while it ran, nano-USD")
    state: str = _text(16, "answered, failed, cancelled or interrupted")
    payer: str = _text(16, "tenant or platform")
    usage_source: str = _text(16, "measured, estimated or none")
    input_tokens: int = _count("fresh input tokens")
    cached_input_tokens: int = _count("input tokens found in a cache")
    cache_write_tokens: int = _count("input tokens written to a billed cache")
    output_tokens: int = _count("generated tokens, without reasoning")
    reasoning_tokens: int = _count("generated reasoning tokens")
    charge_usd_nanos: int | None = Field(
        default=0,
        sa_column=Column(
            BigInteger,
            nullable=True,
            comment="what the payer is charged, nano-USD; empty: unpriced, never zero",
        ),
    )
    status_code: int | None = _measure("HTTP status that the caller got or would have got")
    error_code: str | None = _text(64, "why it failed", optional=True)
    ttft_ms: int | None = _measure("milliseconds to the first content")
    total_ms: int | None = _measure("milliseconds to the end")
    queue_ms: float | None = _duration("engine's queue time, milliseconds, as the engine says")
    generation_ms: float | None = _duration("engine's generation time, milliseconds, as the engine says")
    draft_steps: int | None = _measure("verification steps, on a speculating engine")
    draft_tokens: int | None = _measure("tokens that the draft proposed")
    accepted_tokens: int | None = _measure("proposed tokens that were accepted")
    journal_id: str | None = _text(64, "the journal's transaction that booked it", optional=True)
    ended_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))


class JournalTransaction(SQLModel, table=True):
    """One booking. Its entries add up to zero."""

    __tablename__ = "journal_transactions"
    __table_args__ = (Index("ix_journal_transactions_at", "at_ms"),)

    id: str = _key(String(64), "opaque id, jtx_…")
    kind: str = _text(16, "usage (a batch of attempts), unattributed, or reversal")
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when it was booked, epoch ms"))
    attempts: int = _count("attempts that it books")
    reverses: str | None = Field(
        default=None,
        sa_column=Column(
            String(64), ForeignKey("journal_transactions.id"), unique=True, comment="what it takes back"
        ),
    )
    note: str = _text(256, "why, for people")


class JournalEntry(SQLModel, table=True):
    """One line of a booking; an account's balance is the sum of its lines."""

    __tablename__ = "journal_entries"
    __table_args__ = (Index("ix_journal_entries_account", "account"),)

    transaction_id: str = Field(
        sa_column=Column(
            String(64),
            ForeignKey("journal_transactions.id"),
            primary_key=True,
            comment="the booking that it is a line of",
        )
    )
    account: str = _key(
        String(128), "tenant:<id>, platform, usage, unattributed:<budget> or suspense:<budget>"
    )
    amount_usd_nanos: int = _count("nano-USD; positive: the account owes it")


class SpendHour(SQLModel, table=True):
    """What the attempts of one hour add up to, by what reports ask for most."""

    __tablename__ = "spend_hours"

    hour_start_ms: int = _key(EpochMs, "first instant of the hour, epoch ms")
    tenant_id: str = _key(String(64), "whose requests")
    project_id: str = _key(String(64), "where the spend is allocated")
    key_id: str = _key(String(64), "public id of the API key")
    model_alias: str = _key(String(128), "the model as callers named it")
    pool: str = _key(String(64), "pool that was tried")
    task: str = _key(String(32), "task type")
    payer: str = _key(String(16), "tenant or platform")
    requests: int = _count("first attempts, so that a fallback does not count twice")
    attempts: int = _count("all attempts")
    failed_attempts: int = _count("attempts that failed")
    unpriced_attempts: int = _count("attempts without a price")
    input_tokens: int = _count("fresh input tokens")
    cached_input_tokens: int = _count("input tokens found in a cache")
    cache_write_tokens: int = _count("input tokens written to a billed cache")
    output_tokens: int = _count("generated tokens, without reasoning")
    reasoning_tokens: int = _count("generated reasoning tokens")
    charge_usd_nanos: int = _count("what the payer is charged, nano-USD")
    cache_hits: int = Field(
        default=0,
        sa_column=Column(
            BigInteger,
            nullable=False,
            server_default="0",
            comment="requests that were answered from the cache, free of charge",
        ),
    )


class SpendDay(SQLModel, table=True):
    """What the hours of one UTC day add up to; whole days are read from here. Booked with the hours."""

    __tablename__ = "spend_days"

    day_start_ms: int = _key(EpochMs, "first instant of the day, epoch ms")
    tenant_id: str = _key(String(64), "whose requests")
    project_id: str = _key(String(64), "where the spend is allocated")
    key_id: str = _key(String(64), "public id of the API key")
    model_alias: str = _key(String(128), "the model as callers named it")
    pool: str = _key(String(64), "pool that was tried")
    task: str = _key(String(32), "task type")
    payer: str = _key(String(16), "tenant or platform")
    requests: int = _count("first attempts, so that a fallback does not count twice")
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


class Budget(Audited, table=True):
    """How much may be spent in a window of time, by whom."""

    __tablename__ = "budgets"
    __table_args__ = (Index("ix_budgets_scope", "scope", "scope_id"),)
    audit_kind: ClassVar[str] = "budget"
    audit_topic: ClassVar[str] = "budgets"
    audit_fields: ClassVar[tuple[str, ...]] = (
        "name",
        "scope",
        "scope_id",
        "tenant_id",
        "window",
        "limit_usd_nanos",
        "is_hard",
        "alert_percents",
        "retired_at_ms",
    )

    id: str = _key(String(64), "opaque id, bud_…")
    name: str = Field(
        sa_column=Column(String(128), nullable=False, unique=True, comment="what people call it")
    )
    scope: str = _text(16, "tenant, project, key or tag")
    scope_id: str = _text(640, "id of the tenant, project or key; name=value of a fixed tag")
    tenant_id: str | None = _text(64, "whose; of a tag's budget: empty for all tenants", optional=True)
    window: str = _text(8, "day, week, month or total, in UTC")
    limit_usd_nanos: int = _count("how much, nano-USD")
    is_hard: bool = Field(
        sa_column=Column(Boolean, nullable=False, comment="refuses what it cannot hold; soft ones only tell")
    )
    alert_percents: list[int] = Field(
        sa_column=Column(JSON, nullable=False, comment="shares of the limit at which to tell, percent")
    )
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    retired_at_ms: int | None = Field(
        default=None, sa_column=Column(EpochMs, nullable=True, comment="epoch ms; since then it binds nobody")
    )


class BudgetWindow(SQLModel, table=True):
    """A bucket: one budget in one window. Its row is the lock under which money is lent and booked."""

    __tablename__ = "budget_windows"
    __table_args__ = (Index("ix_budget_windows_start", "window_start_ms", "budget_id"),)

    budget_id: str = Field(
        sa_column=Column(String(64), ForeignKey("budgets.id"), primary_key=True, comment="the budget")
    )
    window_start_ms: int = _key(EpochMs, "first instant, epoch ms; 0 for a total")
    limit_usd_nanos: int = _count("the limit now, nano-USD")
    limit_highest_usd_nanos: int = _count("the highest limit that the window ever had, nano-USD")
    posted_usd_nanos: int = _count("booked, nano-USD")
    leased_usd_nanos: int = _count("lent to processes that serve: the sum of their slices, nano-USD")
    unattributed_usd_nanos: int = _count(
        "lent to processes that died and whose records are missing, nano-USD"
    )
    overage_usd_nanos: int = _count("part of what is booked that no slice covered, nano-USD")
    recall_number: int = _count("grows when a process needs what others do not use")


class BudgetSlice(SQLModel, table=True):
    """What one process may spend of one bucket without asking again."""

    __tablename__ = "budget_slices"
    __table_args__ = (Index("ix_budget_slices_owner", "owner_id"),)

    budget_id: str = Field(
        sa_column=Column(String(64), ForeignKey("budgets.id"), primary_key=True, comment="the budget")
    )
    window_start_ms: int = _key(EpochMs, "the bucket's window")
    owner_id: str = _key(String(64), "the process: the name of its spool")
    amount_usd_nanos: int = _count("lent and not booked yet, nano-USD")
    is_unattributed: bool = Field(
        default=False,
        sa_column=Column(
            Boolean, nullable=False, comment="its process died long ago; see unattributed_usd_nanos"
        ),
    )
    journal_id: str | None = _text(64, "the booking as unattributed", optional=True)
    recall_seen: int = _count("the last recall that its process obeyed")
    expires_at_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="until then it may be spent; the database's clock")
    )


class BudgetPosting(SQLModel, table=True):
    """What one booking did to one bucket; `posted` is the sum of these. Rows are only ever added."""

    __tablename__ = "budget_postings"
    __table_args__ = (Index("ix_budget_postings_bucket", "budget_id", "window_start_ms"),)

    transaction_id: str = Field(
        sa_column=Column(
            String(64), ForeignKey("journal_transactions.id"), primary_key=True, comment="the booking"
        )
    )
    budget_id: str = _key(String(64), "the bucket's budget")
    window_start_ms: int = _key(EpochMs, "the bucket's window")
    owner_id: str = _key(String(64), "whose slice was drawn on")
    amount_usd_nanos: int = _count("booked, nano-USD")
    overage_usd_nanos: int = _count("part of it that the slice did not cover, nano-USD")


class BudgetMark(SQLModel, table=True):
    """What a bucket had booked at an instant; one an hour for some days, so that a pace needs no postings."""

    __tablename__ = "budget_marks"
    __table_args__ = (Index("ix_budget_marks_at", "at_ms"),)

    budget_id: str = Field(
        sa_column=Column(
            String(64), ForeignKey("budgets.id"), primary_key=True, comment="the bucket's budget"
        )
    )
    window_start_ms: int = _key(EpochMs, "the bucket's window")
    at_ms: int = _key(EpochMs, "when, epoch ms")
    posted_usd_nanos: int = _count("booked until then, nano-USD")


class BudgetAlert(SQLModel, table=True):
    """A share of a budget was used up; told once a window."""

    __tablename__ = "budget_alerts"

    budget_id: str = Field(
        sa_column=Column(String(64), ForeignKey("budgets.id"), primary_key=True, comment="the budget")
    )
    window_start_ms: int = _key(EpochMs, "the bucket's window")
    percent: int = _key(Integer, "the share that was reached")
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when, epoch ms"))
    posted_usd_nanos: int = _count("booked by then, nano-USD")


class ExportSchedule(Audited, table=True):
    """An export that is written after the end of every day, week or month."""

    __tablename__ = "export_schedules"
    audit_kind: ClassVar[str] = "export_schedule"
    audit_topic: ClassVar[str] = "exports"
    audit_fields: ClassVar[tuple[str, ...]] = (
        "name",
        "every",
        "format",
        "wanted",
        "target",
        "endpoint_url",
        "delay_s",
        "from_ms",
        "retired_at_ms",
    )

    id: str = _key(String(64), "opaque id, exp_…")
    name: str = Field(
        sa_column=Column(
            String(128), nullable=False, unique=True, comment="what people call it, and its files"
        )
    )
    every: str = _text(8, "day, week or month, in UTC")
    format: str = _text(16, "csv, xlsx, parquet, …")
    wanted: dict[str, Any] = Field(
        sa_column=Column(JSON, nullable=False, comment="what is exported: rows, group_by, filters")
    )
    target: str = _text(1024, "a folder, or s3://bucket/prefix")
    endpoint_url: str | None = _text(512, "of storage that is not AWS's", optional=True)
    delay_s: int = _count("how long after a period's end, seconds")
    from_ms: int = Field(
        sa_column=Column(EpochMs, nullable=False, comment="the first period that it writes, epoch ms")
    )
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    retired_at_ms: int | None = Field(
        default=None, sa_column=Column(EpochMs, nullable=True, comment="epoch ms; writes nothing since")
    )


class ExportFile(SQLModel, table=True):
    """A file that a schedule has written: provisional ones, then the final one. Rows are only ever added."""

    __tablename__ = "export_files"

    schedule_id: str = Field(
        sa_column=Column(
            String(64), ForeignKey("export_schedules.id"), primary_key=True, comment="the schedule"
        )
    )
    period_start_ms: int = _key(EpochMs, "what it is of, epoch ms")
    place: str = _text(2048, "where it was written")
    rows: int = _count("rows in it")
    bytes: int = _count("size of the file")
    sha256: str = _text(64, "of the file")
    control_usd_nanos: int = _count("its control total, nano-USD")
    high_water: str | None = _text(64, "last booking that it knew", optional=True)
    at_ms: int = _key(EpochMs, "when it was written, epoch ms")
    is_final: bool = Field(
        default=False,
        sa_column=Column(Boolean, nullable=False, comment="its period was closed: it is never written again"),
    )
    booked: int = _count("attempts and adjustments, or pool-hours, that its period had by then")
