"""Who looks at the console?

A login with a name and a password, with any administrator's key, or with the company's own login, kept in a
cookie whose value `identity/admins.py` issues and checks. Nothing is stored here; wrong secrets are counted
in `identity/guesses.py`. Who may see which page is said in `identity/roles.py`. Behind a proxy the address
and the scheme are those that uvicorn takes from the headers of a trusted proxy (on loopback by default).
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gateway.audit import Actor
from gateway.console.navigation import HOME
from gateway.console.pages import LOGIN, PageRoute, page
from gateway.dependencies import (
    COOKIE,
    COOKIE_PATH,
    Services,
    ServicesDep,
    keep_login,
    require_same_origin,
)
from gateway.errors import (
    AuthenticationFailed,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
)
from gateway.identity.admins import actor_of_person
from gateway.identity.credentials import ADMIN_PREFIX, NAME_CHARS
from gateway.identity.guesses import FAILURE_DELAY_S

FORM_BYTES_MAX = 4096


class Door:
    """The login and the logout."""

    def router(self) -> APIRouter:
        """Its own pages."""
        router = APIRouter(route_class=PageRoute, include_in_schema=False)
        router.add_api_route(LOGIN, self.form, methods=["GET"])
        router.add_api_route(LOGIN, self.log_in, methods=["POST"])
        router.add_api_route("/console/logout", self.log_out, methods=["POST"])
        return router

    async def form(self, request: Request, services: ServicesDep) -> Response:
        """Ask for name and password or key, unless they were given already."""
        if services.logins.actor_of(request.cookies.get(COOKIE, "")) is not None:
            return RedirectResponse(HOME, 303)
        return _form(services)

    async def log_in(self, request: Request, services: ServicesDep) -> Response:
        """Start a session for the right secret; answer a wrong one late."""
        require_same_origin(request)
        address = request.client.host if request.client else ""
        name, secret = await _presented(request)
        try:
            services.guesses.begin(address, name)
        except RateLimited as error:
            response = _form(services, status_code=error.status_code, message=error.caller_detail)
            response.headers["retry-after"] = str(error.retry_after_s)
            return response
        try:
            actor = await self._actor(services, name, secret)
        except AuthenticationFailed as error:
            await asyncio.sleep(FAILURE_DELAY_S)
            return _form(services, status_code=401, message=error.caller_detail, name=name)
        services.guesses.succeeded(address, name)
        answer = RedirectResponse(HOME, 303)
        keep_login(answer, request, services.logins.issue(actor))
        return answer

    async def _actor(self, services: Services, name: str, secret: str) -> Actor:
        """Whoever that is.

        Raises:
            AuthenticationFailed: nobody.
        """
        if not name or secret.startswith(f"{ADMIN_PREFIX}-"):
            return services.admins.actor_of(secret)
        person = services.admins.person_named(name)
        if not await services.guesses.matches(None if person is None else person.password_hash, secret):
            raise AuthenticationFailed("That name and password do not belong together.")
        assert person is not None  # noqa: S101 - nobody's password never matches
        return actor_of_person(person)

    async def log_out(self, request: Request, services: ServicesDep) -> Response:
        """End the session."""
        require_same_origin(request)
        services.logins.end(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(
            COOKIE, path=COOKIE_PATH, secure=request.url.scheme == "https", httponly=True, samesite="strict"
        )
        return answer


def _form(services: Services, *, status_code: int = 200, message: str = "", name: str = "") -> Response:
    has_sign_on = services.settings.oidc.issuer is not None
    return page("login.html", status_code=status_code, message=message, name=name, has_sign_on=has_sign_on)


async def _presented(request: Request) -> tuple[str, str]:
    """The fields `name` and `key` of a form.

    Raises:
        PayloadTooLarge: more than a login form can hold.
        InvalidRequest: not a form.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise PayloadTooLarge("That is too long for a name and a password.")
    try:
        fields = parse_qs(body.decode(), errors="replace", max_num_fields=8)
    except ValueError:
        raise InvalidRequest("The login form could not be read. Open the console and try again.") from None
    name, secret = fields.get("name", [""])[0].strip()[:NAME_CHARS], fields.get("key", [""])[0]
    # Keys are pasted with what stood around them; a password may begin or end with a space.
    return name, secret if name else secret.strip()
