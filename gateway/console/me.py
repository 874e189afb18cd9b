"""Who am I here, and how do I change my password? `/console/me`.

Every other login of the person ends with the old password; the change itself is the admin API's.
"""

from __future__ import annotations

from fastapi.responses import Response

from gateway.audit import ActorKind
from gateway.console.navigation import HOME
from gateway.console.pages import page
from gateway.dependencies import ActorDep, SessionDep
from gateway.identity.passwords import CHARS_MAX, CHARS_MIN
from gateway.identity.people_store import PersonRecord, get_person

PATH = f"{HOME}/me"


async def show_login(session: SessionDep, *, actor: ActorDep) -> Response:
    """Name, role, how one logged in; and a form where there is a password to change."""
    person: PersonRecord | None = None
    if actor.kind is ActorKind.PERSON:
        person = await get_person(session, actor.id)
    return page(
        "me.html",
        section="me",
        actor=actor,
        person=person,
        is_first_key=actor.kind is ActorKind.BOOTSTRAP,
        chars=(CHARS_MIN, CHARS_MAX),
    )
