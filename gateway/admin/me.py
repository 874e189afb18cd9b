"""What may somebody change who is logged in, of what is their own? /admin/v1/me.

The password, by whoever knows the old one. Wrong ones count like wrong ones at the login.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.admin.people_views import PersonView, person_view
from gateway.audit import Actor, ActorKind
from gateway.db import begin_writing
from gateway.dependencies import ActDep, ActorDep, Services, ServicesDep, keep_login
from gateway.errors import Conflict, InvalidRequest
from gateway.identity import people_store
from gateway.identity.admins import actor_of_person
from gateway.identity.guesses import FAILURE_DELAY_S
from gateway.identity.passwords import hash_password
from gateway.identity.people_store import PersonRecord

KNOWN_WITHIN_S = 10.0
"""A password that was written just now is in this process's memory by then."""
_LOOK_S = 0.05

router = APIRouter(prefix="/admin/v1/me", tags=["administrators"])


class OwnPassword(BaseModel):
    """Another password for whoever is logged in."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"old_password": "four words in a row", "password": "four other words in a row"}]
        },
    )

    old_password: SecretStr
    password: SecretStr = Field(description="12 to 256 characters; kept as an argon2id hash")
    password_again: SecretStr | None = Field(
        default=None, description="the same once more, where somebody types it; null: nobody did"
    )


@router.post("/password", summary="Change the own password")
async def change_password(
    request: Request,
    response: Response,
    services: ServicesDep,
    *,
    act: ActDep,
    actor: ActorDep,
    asked: OwnPassword,
) -> PersonView:
    """For people who log in with a password. Every other login of theirs ends; this one goes on.

    Raises:
        Conflict: an administrator's key, or the company's login, which have no password here.
        InvalidRequest: the old password is wrong, the new one is none or the old one, or it was mistyped.
        RateLimited: too many wrong passwords.
    """
    _refuse_without_password(actor)
    old, new = asked.old_password.get_secret_value(), asked.password.get_secret_value()
    if asked.password_again is not None and asked.password_again.get_secret_value() != new:
        raise InvalidRequest(
            "The new password and its repetition differ: write the same twice.", param="password_again"
        )
    async with services.sessions() as session:
        known = await people_store.get_person(session, actor.id)
    if known.subject is not None:
        raise Conflict(_ELSEWHERE)
    await _require_old(services, known, old, address=act.client or "")
    if new == old:
        raise InvalidRequest("The new password is the old one: write another.", param="password")
    password_hash = await asyncio.to_thread(hash_password, new, name=known.name)
    async with services.sessions() as session:
        await begin_writing(session)
        changed = await people_store.change_own_password(session, known, password_hash, act=act)
        await session.commit()
    if await _is_known(services, changed):
        keep_login(response, request, services.logins.issue(actor_of_person(changed)))
    return person_view(changed)


_ELSEWHERE = (
    "You log in with the company's login, which keeps your password: change it there. There is none here."
)


def _refuse_without_password(actor: Actor) -> None:
    if actor.kind is not ActorKind.PERSON:
        raise Conflict(
            f"You are here with the administrator key {actor.name!r}, which has no password: `tollgate admins"
            " rotate` replaces a key. Log in with your name to change your password."
        )


async def _require_old(services: Services, known: PersonRecord, old: str, *, address: str) -> None:
    """Insist on the old password: whoever finds a browser that is logged in does not know it."""
    services.guesses.begin(address, known.name)
    if not await services.guesses.matches(known.password_hash, old):
        await asyncio.sleep(FAILURE_DELAY_S)
        raise InvalidRequest("The old password is wrong. Nothing was changed.", param="old_password")
    services.guesses.succeeded(address, known.name)


async def _is_known(services: Services, changed: PersonRecord) -> bool:
    """Whether this process knows the new password; False: it takes too long, and the person logs in again."""
    try:
        async with asyncio.timeout(KNOWN_WITHIN_S):
            while True:
                found = services.admins.person_with_id(changed.id)
                if found is not None and found.password_hash == changed.password_hash:
                    return True
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return False
