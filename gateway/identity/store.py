"""How are tenants, projects and keys kept? All SQL of the noun; flushes, never commits."""

from __future__ import annotations

import hashlib
import secrets
import string
from dataclasses import dataclass

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from gateway.db import note_change
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.identity.tables import ApiKey, Project, Tenant
from gateway.inference import new_id

KEY_PREFIX = "tg"
TOPIC = "keys"
"""Raised with every change that a running gateway must learn of."""

_ALPHABET = string.ascii_lowercase + string.digits
_NAME_CHARS = 128


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key: the only time that its secret can be seen."""

    id: str
    secret: str
    """The whole key as the client sends it."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key with the names that people know."""

    id: str
    secret_hash: str
    name: str
    tenant_id: str
    tenant_name: str
    project_id: str
    project_name: str
    created_at_ms: int
    revoked_at_ms: int | None
    is_internal_only: bool = True
    caches_answers: bool = True


def hash_of(key: str) -> str:
    """What is kept of a key. Plain SHA-256 suffices: the secret part has 160 random bits, nobody chose it."""
    return hashlib.sha256(key.encode()).hexdigest()


async def create_tenant(session: AsyncSession, name: str, *, now_ms: int) -> Tenant:
    """A new tenant.

    Raises:
        Conflict: the name is taken.
        InvalidRequest: the name is empty or too long.
    """
    _check_name(name)
    if await find_tenant(session, name) is not None:
        raise Conflict(f"There is a tenant called {name!r} already; `tollgate tenants list` shows it.")
    tenant = Tenant(id=new_id("ten_", now_ms), name=name, created_at_ms=now_ms)
    session.add(tenant)
    await session.flush()
    return tenant


async def find_tenant(session: AsyncSession, name_or_id: str) -> Tenant | None:
    """The tenant of that name or id."""
    found = await session.execute(
        select(Tenant).where((col(Tenant.name) == name_or_id) | (col(Tenant.id) == name_or_id))
    )
    return found.scalars().first()


async def get_tenant(session: AsyncSession, name_or_id: str) -> Tenant:
    """The tenant of that name or id.

    Raises:
        NotFound: there is none.
    """
    tenant = await find_tenant(session, name_or_id)
    if tenant is None:
        raise NotFound(f"No tenant {name_or_id!r}; `tollgate tenants list` shows the known ones.")
    return tenant


async def ensure_project(session: AsyncSession, tenant: Tenant, name: str, *, now_ms: int) -> Project:
    """The tenant's project of that name, made if it is new.

    Raises:
        InvalidRequest: the name is empty or too long.
    """
    _check_name(name)
    found = await session.execute(
        select(Project).where(col(Project.tenant_id) == tenant.id, col(Project.name) == name)
    )
    project = found.scalars().first()
    if project is None:
        project = Project(id=new_id("prj_", now_ms), tenant_id=tenant.id, name=name, created_at_ms=now_ms)
        session.add(project)
        await session.flush()
    return project


async def create_key(session: AsyncSession, project: Project, name: str, *, now_ms: int) -> IssuedKey:
    """A new key of the project; its secret is not kept anywhere.

    Raises:
        InvalidRequest: the name is empty or too long.
    """
    _check_name(name)
    public_id = "".join(secrets.choice(_ALPHABET) for _ in range(10))
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    key = f"{KEY_PREFIX}-{public_id}-{secret}"
    session.add(
        ApiKey(
            id=public_id,
            secret_hash=hash_of(key),
            tenant_id=project.tenant_id,
            project_id=project.id,
            name=name,
            created_at_ms=now_ms,
        )
    )
    await session.flush()
    await note_change(session, TOPIC)
    return IssuedKey(id=public_id, secret=key)


async def revoke_key(session: AsyncSession, key_id: str, *, now_ms: int) -> ApiKey:
    """Make a key useless; revoking twice keeps the first instant.

    Raises:
        NotFound: no key has that public id.
    """
    found = await session.execute(select(ApiKey).where(col(ApiKey.id) == _public_id(key_id)))
    key = found.scalars().first()
    if key is None:
        raise NotFound(f"No key {key_id[:16]!r}; `tollgate keys list` shows the public ids.")
    if key.revoked_at_ms is None:
        key.revoked_at_ms = now_ms
        session.add(key)
        await session.flush()
        await note_change(session, TOPIC)
    return key


async def list_keys(session: AsyncSession) -> list[KeyRecord]:
    """Every key, oldest first."""
    rows = await session.execute(
        select(ApiKey, Tenant, Project.name)
        .join(Tenant, col(Tenant.id) == col(ApiKey.tenant_id))
        .join(Project, col(Project.id) == col(ApiKey.project_id))
        .order_by(col(ApiKey.created_at_ms), col(ApiKey.id))
    )
    return [
        KeyRecord(
            id=key.id,
            secret_hash=key.secret_hash,
            name=key.name,
            tenant_id=key.tenant_id,
            tenant_name=tenant.name,
            project_id=key.project_id,
            project_name=project_name,
            created_at_ms=key.created_at_ms,
            revoked_at_ms=key.revoked_at_ms,
            is_internal_only=tenant.is_internal_only,
            caches_answers=tenant.caches_answers,
        )
        for key, tenant, project_name in rows
    ]


async def list_tenants(session: AsyncSession) -> list[tuple[Tenant, int, int]]:
    """Every tenant with its number of projects and of valid keys, by name."""
    projects = (
        select(func.count())
        .where(col(Project.tenant_id) == col(Tenant.id))
        .correlate(Tenant)
        .scalar_subquery()
    )
    keys = (
        select(func.count())
        .where(col(ApiKey.tenant_id) == col(Tenant.id), col(ApiKey.revoked_at_ms).is_(None))
        .correlate(Tenant)
        .scalar_subquery()
    )
    rows = await session.execute(select(Tenant, projects, keys).order_by(col(Tenant.name)))
    return [(tenant, int(project_count), int(key_count)) for tenant, project_count, key_count in rows]


def _public_id(key_or_id: str) -> str:
    """Accepts the whole key too: people paste what they have."""
    parts = key_or_id.split("-")
    return parts[1] if len(parts) == 3 and parts[0] == KEY_PREFIX else key_or_id  # noqa: PLR2004 - prefix-id-secret


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > _NAME_CHARS:
        raise InvalidRequest(f"A name has 1 to {_NAME_CHARS} characters.")
