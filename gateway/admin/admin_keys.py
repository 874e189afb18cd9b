"""Who may steer? /admin/v1/admin-keys, for administrators alone.

The bootstrap key is not among them: it is a setting, so that nobody can lock themselves out.
"""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import (
    AdminKeyView,
    IssuedAdminKeyView,
    PageView,
    admin_key_view,
    epoch_ms_of,
    issued_admin_key_view,
)
from gateway.dependencies import ActDep, PageDep, ServicesDep, SessionDep
from gateway.identity import admin_store
from gateway.identity.credentials import OVERLAP_S_DEFAULT, OVERLAP_S_MAX
from gateway.identity.roles import Role

router = APIRouter(prefix="/admin/v1/admin-keys", tags=["administrators"])


class NewAdminKey(BaseModel):
    """An administrator's key to be issued."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "finance report", "role": "finance"}]}
    )

    name: str = Field(description="whose it is")
    role: Role
    expires_at: datetime | None = Field(default=None, description="UTC where no zone is given; null: never")


class AdminRotation(BaseModel):
    """How an administrator's key shall be replaced."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_s": 3600}]})

    overlap_s: int = Field(
        default=OVERLAP_S_DEFAULT,
        description=f"how long the old key keeps working; 0: it stops at once; at most {OVERLAP_S_MAX}",
    )


@router.get("", summary="Administrators' keys, the oldest first")
async def list_admin_keys(
    services: ServicesDep, session: SessionDep, page: PageDep
) -> PageView[AdminKeyView]:
    """A page of them, without their secrets."""
    now_ms = services.clock.epoch_ms()
    found = await admin_store.page_admin_keys(session, page)
    return PageView(
        data=[admin_key_view(record, now_ms) for record in found.rows], next_cursor=found.next_cursor
    )


@router.post("", status_code=201, summary="Issue an administrator's key; its secret is shown this once")
async def create_admin_key(session: SessionDep, act: ActDep, new: NewAdminKey) -> IssuedAdminKeyView:
    """Running gateways know it within two seconds. Secrets are kept nowhere: copy it now."""
    expires_at_ms = epoch_ms_of(new.expires_at, "expires_at")
    issued = await admin_store.create_admin_key(
        session, new.name, new.role, act=act, expires_at_ms=expires_at_ms
    )
    await session.commit()
    return issued_admin_key_view(await admin_store.get_admin_key(session, issued.id), issued, act.at_ms)


@router.get("/{key}", summary="One administrator's key, by public id")
async def show_admin_key(services: ServicesDep, session: SessionDep, key: str) -> AdminKeyView:
    """The key, without its secret."""
    return admin_key_view(await admin_store.get_admin_key(session, key), services.clock.epoch_ms())


@router.post("/{key}/rotate", status_code=201, summary="Replace an administrator's key")
async def rotate_admin_key(
    session: SessionDep, act: ActDep, key: str, *, rotation: AdminRotation | None = None
) -> IssuedAdminKeyView:
    """A new key of the same name and role; the old one ends by itself when the overlap is over."""
    overlap_s = (rotation or AdminRotation()).overlap_s
    issued = await admin_store.rotate_admin_key(session, key, act=act, overlap_s=overlap_s)
    await session.commit()
    return issued_admin_key_view(await admin_store.get_admin_key(session, issued.id), issued, act.at_ms)


@router.post("/{key}/revoke", summary="Make an administrator's key useless, and the logins made with it")
async def revoke_admin_key(session: SessionDep, act: ActDep, key: str) -> AdminKeyView:
    """It changes nothing any more from this instant, and reads nothing within two seconds."""
    await admin_store.revoke_admin_key(session, key, act=act)
    await session.commit()
    return admin_key_view(await admin_store.get_admin_key(session, key), act.at_ms)
