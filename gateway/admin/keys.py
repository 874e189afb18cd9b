"""Who may call, and what? /admin/v1/keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import IssuedKeyView, KeyView, PageView, epoch_ms_of, issued_key_view, key_view
from gateway.dependencies import ActDep, PageDep, Services, ServicesDep, SessionDep
from gateway.identity import key_store, store
from gateway.identity.credentials import OVERLAP_S_DEFAULT, OVERLAP_S_MAX
from gateway.identity.key_store import KeyState, Permissions

router = APIRouter(prefix="/admin/v1/keys", tags=["keys"])

_MODELS = "aliases of the policy; empty or null: all"
_CLASSES = "of priority, default, flex; empty or null: all"
_TAGS = "cost tags that stand on all its calls, over the project's; empty or null: none"


class NewKey(BaseModel):
    """A key to be issued."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "tenant": "acme",
                    "project": "search",
                    "name": "ci",
                    "allowed_models": ["auto"],
                    "allowed_classes": ["default", "flex"],
                    "expires_at": "2027-06-30T00:00:00Z",
                }
            ]
        },
    )

    tenant: str = Field(description="id or name of the tenant that pays")
    project: str = Field(default="default", description="project of the tenant; made if it is new")
    name: str = Field(default="default", description="what people call the key")
    allowed_models: list[str] | None = Field(default=None, description=_MODELS)
    allowed_classes: list[str] | None = Field(default=None, description=_CLASSES)
    expires_at: datetime | None = Field(default=None, description="UTC where no zone is given; null: never")
    tags: dict[str, str] | None = Field(default=None, description=_TAGS)


class KeyChange(BaseModel):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"allowed_models": ["fast"]}]})

    name: str | None = None
    allowed_models: list[str] | None = Field(default=None, description=_MODELS)
    allowed_classes: list[str] | None = Field(default=None, description=_CLASSES)
    tags: dict[str, str] | None = Field(default=None, description=_TAGS)


class Rotation(BaseModel):
    """How a key shall be replaced."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_s": 3600}]})

    overlap_s: int = Field(
        default=OVERLAP_S_DEFAULT,
        description=f"how long the old key keeps working; 0: it stops at once; at most {OVERLAP_S_MAX}",
    )
    expires_at: datetime | None = Field(
        default=None, description="of the new key; null: as the old one had it"
    )


@router.get("", summary="Keys, the oldest first")
async def list_keys(
    services: ServicesDep,
    session: SessionDep,
    page: PageDep,
    *,
    tenant: Annotated[str | None, Query(description="only of this tenant, by id or name")] = None,
    project: Annotated[
        str | None, Query(description="only of this project, by id; by name too with `tenant`")
    ] = None,
    state: Annotated[KeyState | None, Query(description="only in this state")] = None,
    search: Annotated[
        str | None, Query(max_length=128, description="part of its public id, its name, project or tenant")
    ] = None,
) -> PageView[KeyView]:
    """A page of keys, without their secrets."""
    owner = None if tenant is None else await store.get_tenant(session, tenant)
    unit = None if project is None else await store.get_project(session, project, tenant=owner)
    now_ms = services.clock.epoch_ms()
    found = await key_store.page_keys(
        session, page, now_ms=now_ms, tenant=owner, project=unit, state=state, search=search
    )
    return PageView(data=[key_view(record, now_ms) for record in found.rows], next_cursor=found.next_cursor)


@router.post("", status_code=201, summary="Issue a key; its secret is shown this once")
async def create_key(
    services: ServicesDep, session: SessionDep, act: ActDep, *, new: NewKey
) -> IssuedKeyView:
    """Secrets are kept nowhere: copy it now."""
    tenant = await store.get_tenant(session, new.tenant)
    project = await store.ensure_project(session, tenant, new.project, act=act)
    issued = await key_store.create_key(
        session,
        project,
        new.name,
        act=act,
        permissions=_permissions(services, new),
        expires_at_ms=epoch_ms_of(new.expires_at, "expires_at"),
        tags=new.tags,
    )
    await session.commit()
    return issued_key_view(await key_store.get_key(session, issued.id), issued, act.at_ms)


@router.get("/{key}", summary="One key, by public id")
async def show_key(services: ServicesDep, session: SessionDep, key: str) -> KeyView:
    """The key, without its secret."""
    return key_view(await key_store.get_key(session, key), services.clock.epoch_ms())


@router.patch("/{key}", summary="Rename a key, or change what it allows")
async def update_key(
    services: ServicesDep, session: SessionDep, act: ActDep, *, key: str, change: KeyChange
) -> KeyView:
    """Running gateways obey within two seconds. The same change again changes nothing."""
    await key_store.update_key(
        session,
        key,
        act=act,
        name=change.name,
        permissions=_permissions(services, change),
        tags=(change.tags or {}) if "tags" in change.model_fields_set else None,
    )
    await session.commit()
    return key_view(await key_store.get_key(session, key), act.at_ms)


@router.post("/{key}/rotate", status_code=201, summary="Replace a key; both work for the overlap")
async def rotate_key(
    session: SessionDep, act: ActDep, key: str, *, rotation: Rotation | None = None
) -> IssuedKeyView:
    """A new key with a public id of its own and the same permissions; the old one ends by itself."""
    wanted = rotation or Rotation()
    issued = await key_store.rotate_key(
        session,
        key,
        act=act,
        overlap_s=wanted.overlap_s,
        expires_at_ms=epoch_ms_of(wanted.expires_at, "expires_at"),
    )
    await session.commit()
    return issued_key_view(await key_store.get_key(session, issued.id), issued, act.at_ms)


@router.post("/{key}/revoke", summary="Make a key useless")
async def revoke_key(session: SessionDep, act: ActDep, key: str) -> KeyView:
    """Running gateways refuse it within two seconds. Revoking twice keeps the first instant."""
    await key_store.revoke_key(session, key, act=act)
    await session.commit()
    return key_view(await key_store.get_key(session, key), act.at_ms)


def _permissions(services: Services, sent: NewKey | KeyChange) -> Permissions:
    """A null that was sent lifts a limit, what was not sent leaves it."""

    def given(field: str) -> Any:
        return (getattr(sent, field) or ()) if field in sent.model_fields_set else None

    return Permissions(
        models=given("allowed_models"),
        classes=given("allowed_classes"),
        known_models=services.pipeline.routing.policy.models,
    )
