"""Tenants pay, projects allocate, API keys call within their limits, administrators steer.

All of them are `Audited`: they can only be written through `gateway/audit.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Column, ForeignKey, Index, String, text, true
from sqlmodel import Field

from gateway.audit import Audited
from gateway.db import EpochMs

TOPIC = "keys"
"""Raised with every change to who may call, so that running gateways learn of it."""
CLASSES = ("priority", "default", "flex")
"""Latency classes, as `service_tier` names them; `auto` leaves the choice to the key."""


_WHILE_ACTIVE: dict[str, Any] = {
    "sqlite_where": text("retired_at_ms IS NULL"),
    "postgresql_where": text("retired_at_ms IS NULL"),
}


def _instant(comment: str) -> Any:
    return Field(default=None, sa_column=Column(EpochMs, nullable=True, comment=comment))


def _json(comment: str) -> Any:
    return Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=True, comment=comment))


def _bound(comment: str) -> Any:
    return Field(default=None, sa_column=Column(BigInteger, nullable=True, comment=comment))


class Tenant(Audited, table=True):
    """Who pays."""

    __tablename__ = "tenants"
    audit_kind: ClassVar[str] = "tenant"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("name", "is_internal_only", "caches_answers", "retired_at_ms")

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, ten_…"))
    name: str = Field(
        sa_column=Column(String(128), nullable=False, unique=True, comment="what people call it")
    )
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    is_internal_only: bool = Field(
        default=True,
        sa_column=Column(
            Boolean,
            nullable=False,
            server_default=true(),
            comment="nothing of it may leave the company: no external targets, until its owner opts in",
        ),
    )
    caches_answers: bool = Field(
        default=True,
        sa_column=Column(
            Boolean, nullable=False, server_default=true(), comment="its answers may be kept in the cache"
        ),
    )
    retired_at_ms: int | None = _instant("epoch ms; since then its keys are refused")


class Project(Audited, table=True):
    """Unit of cost allocation inside a tenant."""

    __tablename__ = "projects"
    __table_args__ = (Index("uq_projects_tenant_id_name", "tenant_id", "name", unique=True),)
    audit_kind: ClassVar[str] = "project"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = ("tenant_id", "name", "tags", "retired_at_ms")

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, prj_…"))
    tenant_id: str = Field(
        sa_column=Column(String(64), ForeignKey("tenants.id"), nullable=False, comment="the tenant that pays")
    )
    name: str = Field(sa_column=Column(String(128), nullable=False, comment="unique within the tenant"))
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    retired_at_ms: int | None = _instant("epoch ms; since then its keys are refused")
    tags: dict[str, str] | None = _json("cost tags that the operator fixed on its calls")


class ApiKey(Audited, table=True):
    """A credential. Only a hash of its secret is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("ix_api_keys_tenant_project", "tenant_id", "project_id"),
        Index("ix_api_keys_created", "created_at_ms", "id"),
        # A key has one successor at most; NULLs do not count as equal on either database.
        Index("uq_api_keys_rotated_from", "rotated_from", unique=True),
    )
    audit_kind: ClassVar[str] = "key"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = (
        "tenant_id",
        "project_id",
        "name",
        "allowed_models",
        "allowed_classes",
        "tags",
        "rotated_from",
        "expires_at_ms",
        "revoked_at_ms",
    )

    id: str = Field(
        sa_column=Column(
            String(64), primary_key=True, comment="public id: the middle part of the key as shown"
        )
    )
    secret_hash: str = Field(
        sa_column=Column(String(64), nullable=False, unique=True, comment="SHA-256 of the whole key, hex")
    )
    tenant_id: str = Field(
        sa_column=Column(
            String(64), ForeignKey("tenants.id"), nullable=False, comment="who pays for its calls"
        )
    )
    project_id: str = Field(
        sa_column=Column(
            String(64), ForeignKey("projects.id"), nullable=False, comment="where its spend is allocated"
        )
    )
    name: str = Field(sa_column=Column(String(128), nullable=False, comment="what people call it"))
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    revoked_at_ms: int | None = _instant("epoch ms; empty while it is valid")
    expires_at_ms: int | None = _instant("epoch ms; from then on it is refused; empty: never")
    allowed_models: list[str] | None = _json("model aliases that it may ask for; empty: all")
    allowed_classes: list[str] | None = _json("latency classes that it may ask for; empty: all")
    rotated_from: str | None = Field(
        default=None,
        sa_column=Column(String(64), nullable=True, comment="public id of the key that it replaces"),
    )
    tags: dict[str, str] | None = _json("cost tags that the operator fixed on its calls, over the project's")


class RateLimit(Audited, table=True):
    """How fast a tenant, a project or a key may call. One that is taken away is ended, not deleted."""

    __tablename__ = "limits"
    __table_args__ = (
        Index(
            "uq_limits_live",
            "scope",
            "scope_id",
            unique=True,
            sqlite_where=text("ended_at_ms IS NULL"),
            postgresql_where=text("ended_at_ms IS NULL"),
        ),
        Index("ix_limits_created", "created_at_ms", "id"),
    )
    audit_kind: ClassVar[str] = "limit"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = (
        "scope",
        "scope_id",
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent_requests",
        "ended_at_ms",
    )

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, lim_…"))
    scope: str = Field(sa_column=Column(String(16), nullable=False, comment="tenant, project or key"))
    scope_id: str = Field(
        sa_column=Column(
            String(64), nullable=False, comment="id of that; of a rotated key: the first one's of the line"
        )
    )
    name: str = Field(
        sa_column=Column(String(128), nullable=False, comment="what people called that when it was set")
    )
    requests_per_minute: int | None = _bound("requests in a minute; empty: any number")
    tokens_per_minute: int | None = _bound("tokens in a minute, input and output; empty: any number")
    concurrent_requests: int | None = _bound("requests under way at once; empty: any number")
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    ended_at_ms: int | None = _instant("epoch ms; since then it does not hold any more")


class AdminKey(Audited, table=True):
    """A credential for the control plane and the console. Only a hash of its secret is kept."""

    __tablename__ = "admin_keys"
    __table_args__ = (Index("uq_admin_keys_rotated_from", "rotated_from", unique=True),)
    audit_kind: ClassVar[str] = "admin_key"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = (
        "name",
        "role",
        "rotated_from",
        "expires_at_ms",
        "revoked_at_ms",
    )

    id: str = Field(
        sa_column=Column(
            String(64), primary_key=True, comment="public id: the middle part of the key as shown"
        )
    )
    secret_hash: str = Field(
        sa_column=Column(String(64), nullable=False, unique=True, comment="SHA-256 of the whole key, hex")
    )
    name: str = Field(sa_column=Column(String(128), nullable=False, comment="whose it is"))
    role: str = Field(
        sa_column=Column(String(16), nullable=False, comment="admin, operator, finance or viewer")
    )
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    revoked_at_ms: int | None = _instant("epoch ms; empty while it is valid")
    expires_at_ms: int | None = _instant("epoch ms; from then on it is refused; empty: never")
    rotated_from: str | None = Field(
        default=None,
        sa_column=Column(String(64), nullable=True, comment="public id of the key that it replaces"),
    )


class Person(Audited, table=True):
    """Somebody who may log in to the console: with a password, or with the company's own login."""

    __tablename__ = "people"
    # Who is retired frees name and subject for somebody new.
    __table_args__ = (
        Index("uq_people_name", "name", unique=True, **_WHILE_ACTIVE),
        Index("uq_people_subject", "subject", unique=True, **_WHILE_ACTIVE),
    )
    audit_kind: ClassVar[str] = "person"
    audit_topic: ClassVar[str] = TOPIC
    audit_fields: ClassVar[tuple[str, ...]] = (
        "name",
        "role",
        "subject",
        "password_set_at_ms",
        "retired_at_ms",
    )

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, per_…"))
    name: str = Field(sa_column=Column(String(128), nullable=False, comment="what the person logs in with"))
    role: str = Field(
        sa_column=Column(String(16), nullable=False, comment="admin, operator, finance or viewer")
    )
    password_hash: str | None = Field(
        default=None,
        sa_column=Column(String(256), nullable=True, comment="argon2id's text; empty: no password"),
    )
    subject: str | None = Field(
        default=None,
        sa_column=Column(String(512), nullable=True, comment="OpenID Connect issuer|sub; empty: a password"),
    )
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))
    password_set_at_ms: int | None = _instant("epoch ms of the newest password; empty: none")
    retired_at_ms: int | None = _instant("epoch ms; from then on nobody logs in by it; empty: may")
