"""Tenants pay, projects allocate, API keys call."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Index, String, true
from sqlmodel import Field, SQLModel

from gateway.db import EpochMs


class Tenant(SQLModel, table=True):
    """Who pays."""

    __tablename__ = "tenants"

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


class Project(SQLModel, table=True):
    """Unit of cost allocation inside a tenant."""

    __tablename__ = "projects"
    __table_args__ = (Index("uq_projects_tenant_id_name", "tenant_id", "name", unique=True),)

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, prj_…"))
    tenant_id: str = Field(
        sa_column=Column(String(64), ForeignKey("tenants.id"), nullable=False, comment="the tenant that pays")
    )
    name: str = Field(sa_column=Column(String(128), nullable=False, comment="unique within the tenant"))
    created_at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="epoch ms"))


class ApiKey(SQLModel, table=True):
    """A credential. Only a hash of its secret is kept."""

    __tablename__ = "api_keys"

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
    revoked_at_ms: int | None = Field(
        default=None, sa_column=Column(EpochMs, nullable=True, comment="epoch ms; empty while it is valid")
    )
