"""How do tenants, projects, keys, limits and audit entries look outside?

One form for the API's answers and the command line's `--json`. Instants are ISO 8601 in UTC; a secret is in
`IssuedKeyView` alone, which is made once.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from gateway.audit import AuditEntry
from gateway.errors import InvalidRequest
from gateway.identity.admin_store import AdminRecord
from gateway.identity.credentials import IssuedKey
from gateway.identity.key_store import KeyRecord, KeyState
from gateway.identity.limit_store import LimitRecord
from gateway.identity.limits import Scope
from gateway.identity.roles import Role
from gateway.identity.store import ProjectRecord, TenantRecord

T = TypeVar("T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PageView(BaseModel, Generic[T]):
    """A piece of a list."""

    data: list[T]
    next_cursor: str | None = Field(
        description="give it as `cursor` to read on; null: there is nothing more now", examples=[None]
    )


class TenantView(BaseModel):
    """Who pays."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "ten_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
                    "name": "acme",
                    "is_internal_only": True,
                    "caches_answers": True,
                    "created_at": "2026-11-20T12:00:00Z",
                    "retired_at": None,
                    "projects": 2,
                    "valid_keys": 3,
                }
            ]
        }
    )

    id: str
    name: str
    is_internal_only: bool = Field(description="nothing of it may leave the company")
    caches_answers: bool = Field(description="its answers may be kept in the cache")
    created_at: datetime
    retired_at: datetime | None = Field(description="since then its keys are refused")
    projects: int = Field(description="projects that are not retired")
    valid_keys: int


class ProjectView(BaseModel):
    """Unit of cost allocation inside a tenant."""

    id: str
    name: str
    tenant_id: str
    tenant: str
    tags: dict[str, str] = Field(description="cost tags that stand on all its calls")
    created_at: datetime
    retired_at: datetime | None


class KeyView(BaseModel):
    """An API key without its secret."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "4f7k2m9q1x",
                    "name": "ci",
                    "state": "active",
                    "tenant_id": "ten_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
                    "tenant": "acme",
                    "project_id": "prj_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
                    "project": "search",
                    "allowed_models": ["auto"],
                    "allowed_classes": None,
                    "tags": {"feature": "search"},
                    "created_at": "2026-11-20T12:00:00Z",
                    "expires_at": None,
                    "revoked_at": None,
                    "rotated_from": None,
                    "rotated_to": None,
                }
            ]
        }
    )

    id: str = Field(description="public: the middle part of the key, and what the ledger refers to")
    name: str
    state: KeyState
    tenant_id: str
    tenant: str
    project_id: str
    project: str
    allowed_models: list[str] | None = Field(description="null: all")
    allowed_classes: list[str] | None = Field(description="null: all")
    tags: dict[str, str] = Field(description="cost tags that stand on all its calls, over the project's")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_from: str | None = Field(description="the key that it replaces")
    rotated_to: str | None = Field(description="the key that replaces it")


class IssuedKeyView(KeyView):
    """A new API key. The secret is shown this once."""

    key: str = Field(description="the whole key, shown this once", examples=["tg-4f7k2m9q1x-…"])


class LimitView(BaseModel):
    """How fast a tenant, a project or a key may call; null: as fast as it likes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "lim_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
                    "scope": "project",
                    "scope_id": "prj_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
                    "name": "search",
                    "tenant": "acme",
                    "requests_per_minute": 600,
                    "tokens_per_minute": 200_000,
                    "concurrent_requests": None,
                    "created_at": "2026-11-20T12:00:00Z",
                    "ended_at": None,
                }
            ]
        }
    )

    id: str
    scope: Scope
    scope_id: str = Field(
        description="of a rotated key: the first one's of the line, which all of them share"
    )
    name: str = Field(description="of the tenant, the project or the key")
    tenant: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    created_at: datetime
    ended_at: datetime | None = Field(description="since then it does not hold any more")


class AdminKeyView(BaseModel):
    """An administrator's key without its secret."""

    id: str
    name: str
    role: Role
    state: KeyState
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_from: str | None
    rotated_to: str | None


class IssuedAdminKeyView(AdminKeyView):
    """A new administrator's key. The secret is shown this once."""

    key: str = Field(description="the whole key, shown this once", examples=["tga-4f7k2m9q1x-…"])


class AuditView(BaseModel):
    """Who changed what, when and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "aud_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
                    "at": "2026-11-20T12:00:00Z",
                    "source": "api",
                    "request_id": "req_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
                    "actor": {"kind": "admin_key", "id": "x1q9m2k7f4", "name": "ops", "role": "admin"},
                    "action": "tenant.update",
                    "object": {"kind": "tenant", "id": "ten_019e6f0c…", "name": "acme"},
                    "before": {"caches_answers": True},
                    "after": {"caches_answers": False},
                }
            ]
        }
    )

    id: str
    at: datetime
    source: str
    request_id: str | None
    actor: dict[str, str]
    action: str
    object: dict[str, str]
    before: dict[str, Any] | None = Field(description="what changed, as it was; null for a new object")
    after: dict[str, Any] | None = Field(description="what changed, as it is now")


# --------------------------------------------------------------------------------------- from what we keep
def tenant_view(record: TenantRecord) -> TenantView:
    """A tenant."""
    tenant = record.tenant
    return TenantView(
        id=tenant.id,
        name=tenant.name,
        is_internal_only=tenant.is_internal_only,
        caches_answers=tenant.caches_answers,
        created_at=moment(tenant.created_at_ms),
        retired_at=optional_moment(tenant.retired_at_ms),
        projects=record.projects,
        valid_keys=record.valid_keys,
    )


def project_view(record: ProjectRecord) -> ProjectView:
    """A project."""
    project = record.project
    return ProjectView(
        id=project.id,
        name=project.name,
        tenant_id=project.tenant_id,
        tenant=record.tenant_name,
        tags=project.tags or {},
        created_at=moment(project.created_at_ms),
        retired_at=optional_moment(project.retired_at_ms),
    )


def key_view(record: KeyRecord, now_ms: int) -> KeyView:
    """A key."""
    return KeyView(
        id=record.id,
        name=record.name,
        state=record.state(now_ms),
        tenant_id=record.tenant_id,
        tenant=record.tenant_name,
        project_id=record.project_id,
        project=record.project_name,
        allowed_models=None if record.allowed_models is None else list(record.allowed_models),
        allowed_classes=None if record.allowed_classes is None else list(record.allowed_classes),
        tags=dict(record.tags),
        created_at=moment(record.created_at_ms),
        expires_at=optional_moment(record.expires_at_ms),
        revoked_at=optional_moment(record.revoked_at_ms),
        rotated_from=record.rotated_from,
        rotated_to=record.rotated_to,
    )


def issued_key_view(record: KeyRecord, issued: IssuedKey, now_ms: int) -> IssuedKeyView:
    """A new key with its secret."""
    return IssuedKeyView(**key_view(record, now_ms).model_dump(), key=issued.secret)


def limit_view(record: LimitRecord) -> LimitView:
    """A limit."""
    row = record.row
    return LimitView(
        id=row.id,
        scope=Scope(row.scope),
        scope_id=row.scope_id,
        name=record.name,
        tenant=record.tenant_name,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrent_requests=row.concurrent_requests,
        created_at=moment(row.created_at_ms),
        ended_at=optional_moment(row.ended_at_ms),
    )


def admin_key_view(record: AdminRecord, now_ms: int) -> AdminKeyView:
    """An administrator's key."""
    return AdminKeyView(
        id=record.id,
        name=record.name,
        role=record.role,
        state=record.state(now_ms),
        created_at=moment(record.created_at_ms),
        expires_at=optional_moment(record.expires_at_ms),
        revoked_at=optional_moment(record.revoked_at_ms),
        rotated_from=record.rotated_from,
        rotated_to=record.rotated_to,
    )


def issued_admin_key_view(record: AdminRecord, issued: IssuedKey, now_ms: int) -> IssuedAdminKeyView:
    """A new administrator's key with its secret."""
    return IssuedAdminKeyView(**admin_key_view(record, now_ms).model_dump(), key=issued.secret)


def audit_view(entry: AuditEntry) -> AuditView:
    """An entry."""
    return AuditView(
        id=entry.id,
        at=moment(entry.at_ms),
        source=entry.source,
        request_id=entry.request_id,
        actor={
            "kind": entry.actor_kind,
            "id": entry.actor_id,
            "name": entry.actor_name,
            "role": entry.actor_role,
        },
        action=entry.action,
        object={"kind": entry.object_kind, "id": entry.object_id, "name": entry.object_name},
        before=entry.before,
        after=entry.after,
    )


def moment(epoch_ms: int) -> datetime:
    """An instant in UTC."""
    return _EPOCH + timedelta(milliseconds=epoch_ms)


def optional_moment(epoch_ms: int | None) -> datetime | None:
    """An instant in UTC, if there is one."""
    return None if epoch_ms is None else moment(epoch_ms)


# ----------------------------------------------------------------------------------------- from what is sent
def epoch_ms_of(when: datetime | None, name: str) -> int | None:
    """Epoch milliseconds of an instant; UTC where it names no zone.

    Raises:
        InvalidRequest: it is out of all range.
    """
    if when is None:
        return None
    aware = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    try:
        return (aware - _EPOCH) // timedelta(milliseconds=1)
    except OverflowError:
        raise InvalidRequest(f"`{name}` is no instant that could be meant.", param=name) from None
