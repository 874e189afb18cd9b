"""Who may log in to the console? /admin/v1/people, for administrators alone."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.admin.people_views import PersonView, person_view
from gateway.admin.views import PageView
from gateway.dependencies import ActDep, PageDep, SessionDep
from gateway.identity import people_store
from gateway.identity.passwords import hash_password
from gateway.identity.roles import Role

router = APIRouter(prefix="/admin/v1/people", tags=["administrators"])


class NewPerson(BaseModel):
    """Somebody who shall log in with a password."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "ada@acme.example", "role": "finance", "password": "four words in a row"}]
        },
    )

    name: str = Field(description="what the person logs in with; an e-mail address, for instance")
    role: Role
    password: SecretStr = Field(description="12 to 256 characters; kept as an argon2id hash")


class NewRole(BaseModel):
    """What a person may do from now on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"role": "operator"}]})

    role: Role


class NewPassword(BaseModel):
    """Another password; it ends the logins made with the old one."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"password": "four other words in a row"}]}
    )

    password: SecretStr


@router.get("", summary="People who may log in to the console, the oldest first")
async def list_people(session: SessionDep, page: PageDep) -> PageView[PersonView]:
    """A page of them, the retired ones too."""
    found = await people_store.page_people(session, page)
    return PageView(data=[person_view(record) for record in found.rows], next_cursor=found.next_cursor)


@router.post("", status_code=201, summary="Let a person log in to the console with a password")
async def create_person(session: SessionDep, act: ActDep, new: NewPerson) -> PersonView:
    """Running gateways know the person within two seconds."""
    password_hash = await asyncio.to_thread(hash_password, new.password.get_secret_value(), name=new.name)
    record = await people_store.create_person(
        session, new.name, new.role, act=act, password_hash=password_hash
    )
    await session.commit()
    return person_view(record)


@router.patch("/{person}", summary="Let a person do more or less")
async def change_role(session: SessionDep, act: ActDep, person: str, *, new: NewRole) -> PersonView:
    """From the next request on, logins under way included."""
    record = await people_store.change_role(session, person, new.role, act=act)
    await session.commit()
    return person_view(record)


@router.post("/{person}/password", summary="Give a person another password")
async def set_password(session: SessionDep, act: ActDep, person: str, *, new: NewPassword) -> PersonView:
    """It ends the logins made with the old one."""
    record = await people_store.set_password(session, person, new.password.get_secret_value(), act=act)
    await session.commit()
    return person_view(record)


@router.post("/{person}/retire", summary="Let a person in no more")
async def retire_person(session: SessionDep, act: ActDep, person: str) -> PersonView:
    """Logins under way end within two seconds, and change nothing from this instant on."""
    record = await people_store.retire_person(session, person, act=act)
    await session.commit()
    return person_view(record)
