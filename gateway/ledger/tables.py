"""One row per attempt: what was asked, what it used, what it costs, who pays. Rows are only ever added."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, String
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


def _text(length: int, comment: str, *, optional: bool = False) -> Any:
    return Field(default=None, sa_column=Column(String(length), nullable=optional, comment=comment))


def _count(comment: str) -> Any:
    return Field(default=0, sa_column=Column(BigInteger, nullable=False, comment=comment))


def _measure(comment: str) -> Any:
    return Field(default=None, sa_column=Column(Integer, nullable=True, comment=comment))


def _duration(comment: str) -> Any:
    return Field(default=None, sa_column=Column(Float, nullable=True, comment=comment))


class Attempt(SQLModel, table=True):
    """One try at one target for one request."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("ix_attempts_tenant_started", "tenant_id", "started_at_ms"),
        Index("ix_attempts_started", "started_at_ms"),
        Index("ix_attempts_request", "request_id"),
    )

    attempt_id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, att_…"))
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
    charge_usd_nanos: int = _count("what the payer is charged, nano-USD")
    status_code: int | None = _measure("HTTP status that the caller got or would have got")
    error_code: str | None = _text(64, "why it failed", optional=True)
    ttft_ms: int | None = _measure("milliseconds to the first content")
    total_ms: int | None = _measure("milliseconds to the end")
    queue_ms: float | None = _duration("engine's queue time, milliseconds, as the engine says")
    generation_ms: float | None = _duration("engine's generation time, milliseconds, as the engine says")
    draft_steps: int | None = _measure("verification steps, on a speculating engine")
    draft_tokens: int | None = _measure("tokens that the draft proposed")
    accepted_tokens: int | None = _measure("proposed tokens that were accepted")
    started_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    ended_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
