"""How does the company's own login lead into the console?

Out to the provider and back (`identity/sign_on.py`). Whoever comes for the first time becomes a person here,
with the role that the provider's groups give; the role follows them at every login.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gateway.audit import Act, Actor, ActorKind, Source
from gateway.console.pages import LOGIN, PageRoute, page
from gateway.dependencies import CLIENT_CHARS, Services, ServicesDep, keep_login
from gateway.errors import AuthenticationFailed, Conflict, NotFound, Overloaded
from gateway.identity import people_store
from gateway.identity.admins import actor_of_person
from gateway.identity.people_store import PersonRecord
from gateway.identity.roles import Role
from gateway.identity.sign_on import JOURNEY_S, SignOn, Stranger
from gateway.inference import new_id

JOURNEY_COOKIE = "tollgate_journey"
BEGIN = f"{LOGIN}/oidc"
CALLBACK = f"{BEGIN}/callback"
KNOWN_WITHIN_S = 10.0
"""A person who was written just now is in this process's memory by then."""


class CompanyDoor:
    """The two routes."""

    def __init__(self) -> None:
        self._sign_on: SignOn | None = None

    def router(self) -> APIRouter:
        """Its pages."""
        router = APIRouter(route_class=PageRoute, include_in_schema=False)
        router.add_api_route(BEGIN, self.begin, methods=["GET"])
        router.add_api_route(CALLBACK, self.come_back, methods=["GET"])
        return router

    async def begin(self, request: Request, services: ServicesDep) -> Response:
        """Send the browser to the provider.

        Raises:
            NotFound: there is none.
            Overloaded: it does not answer.
        """
        departure = await self._known(services).leave(_redirect_uri(request))
        answer = RedirectResponse(departure.url, 303)
        answer.set_cookie(
            JOURNEY_COOKIE,
            departure.cookie,
            max_age=JOURNEY_S,
            path=BEGIN,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",  # it comes back from another site
        )
        return answer

    async def come_back(
        self, request: Request, services: ServicesDep, *, state: str = "", code: str = "", error: str = ""
    ) -> Response:
        """Let in whom the provider vouches for."""
        sign_on = self._known(services)
        if error:
            return _refused(f"The company's login said no: {error[:100]}.")
        try:
            stranger = await sign_on.arrive(
                request.cookies.get(JOURNEY_COOKIE, ""),
                state=state,
                code=code,
                redirect_uri=_redirect_uri(request),
            )
        except AuthenticationFailed as refused:
            return _refused(refused.caller_detail)
        person = await _person(services, stranger, request)
        # A page, not a redirect: the strict cookie is not sent where another site began the journey.
        answer = page("arrived.html", name=person.name)
        keep_login(answer, request, services.logins.issue(actor_of_person(person)))
        answer.delete_cookie(JOURNEY_COOKIE, path=BEGIN)
        return answer

    def _known(self, services: Services) -> SignOn:
        if self._sign_on is None:
            secret = services.settings.oidc_client_secret
            self._sign_on = SignOn(
                services.settings.oidc,
                None if secret is None else secret.get_secret_value(),
                root_key=services.root_key,
                clock=services.clock,
            )
        if not self._sign_on.is_on:
            raise NotFound("There is no company login here: log in with a name or an administrator key.")
        return self._sign_on


async def _person(services: Services, stranger: Stranger, request: Request) -> PersonRecord:
    """Whom the stranger is here, known to this process.

    Raises:
        Overloaded: the database, or the look at it, takes too long.
    """
    known = services.admins.person_with_subject(stranger.subject)
    if known is not None and known.role is stranger.role:
        return known
    act = Act(
        actor=Actor(kind=ActorKind.GATEWAY, id="oidc", name="company login", role=Role.ADMIN),
        source=Source.CONSOLE,
        at_ms=services.clock.epoch_ms(),
        request_id=new_id("req_", services.clock.epoch_ms()),
        client=None if request.client is None else request.client.host[:CLIENT_CHARS],
    )
    async with services.sessions() as session:
        if known is None:
            if services.admins.person_named(stranger.name) is not None:
                raise Conflict(
                    f"{stranger.name} logs in here with a password, or with another account of the company's."
                    f" Ask an administrator to retire that person (`tollgate people retire {stranger.name}`),"
                    " then log in again."
                )
            await people_store.create_person(
                session, stranger.name, stranger.role, act=act, subject=stranger.subject
            )
        else:
            await people_store.change_role(session, known.id, stranger.role, act=act)
        await session.commit()
    try:
        async with asyncio.timeout(KNOWN_WITHIN_S):
            while True:
                found = services.admins.person_with_subject(stranger.subject)
                if found is not None and found.role is stranger.role:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise Overloaded("Your login is not known everywhere yet. Log in again.", retry_after_s=2) from None


def _refused(why: str) -> Response:
    return page("login.html", status_code=401, message=why, name="", has_sign_on=True)


def _redirect_uri(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc}{CALLBACK}"
