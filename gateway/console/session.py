"""Who looks at the console?

A login with a name and a password, with any administrator's key, or with the company's own login, kept in a
cookie whose value `identity/admins.py` issues and checks. Nothing is stored here but the failed logins per
address and per name, in this process and bounded. Who may see which page
is said in `identity/roles.py`. Behind a proxy the address and the scheme are those that uvicorn takes from
the headers of a trusted proxy (on loopback by default).
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import OrderedDict
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gateway.audit import Actor
from gateway.console.navigation import HOME
from gateway.console.pages import LOGIN, PageRoute, page
from gateway.dependencies import COOKIE, Services, ServicesDep, require_same_origin
from gateway.errors import (
    AuthenticationFailed,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
)
from gateway.identity.admins import LOGIN_S, actor_of_person
from gateway.identity.credentials import ADMIN_PREFIX, NAME_CHARS
from gateway.identity.passwords import PasswordCheck

FAILURES_MAX = 10
"""So many wrong secrets from one address within FAILURES_WINDOW_S, then no more tries until it is over."""
NAME_FAILURES_MAX = 50
"""The same for one name from all addresses together: many, so that nobody is locked out by a neighbour."""
FAILURES_WINDOW_S = 300.0
FAILURE_DELAY_S = 0.5
REMEMBERED_MAX = 4096
"""Addresses that are remembered; the oldest are forgotten first."""
FORM_BYTES_MAX = 4096
COOKIE_PATH = "/"
"""The pages call the admin API with it."""

_IPV6_NETWORK_BITS = 64
"""One subscriber's addresses: whoever has one has all of them."""


class FailedLogins:
    """How often did each address, or each name, come with a wrong secret lately?"""

    def __init__(self, failures_max: int = FAILURES_MAX) -> None:
        self._failures_max = failures_max
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str, now_s: float) -> None:
        """Let the address try.

        Raises:
            RateLimited: it failed too often.
        """
        failures, since_s = self._failures.get(address, (0, now_s))
        wait_s = since_s + FAILURES_WINDOW_S - now_s
        if failures >= self._failures_max and wait_s > 0:
            raise RateLimited(
                f"Too many failed logins. Try again in {math.ceil(wait_s / 60)} min.",
                retry_after_s=math.ceil(wait_s),
            )

    def note(self, address: str, now_s: float) -> None:
        """One more failure; the first one starts the window."""
        failures, since_s = self._failures.pop(address, (0, now_s))
        if now_s >= since_s + FAILURES_WINDOW_S:
            failures, since_s = 0, now_s
        self._failures[address] = (failures + 1, since_s)
        if len(self._failures) > REMEMBERED_MAX:
            self._failures.popitem(last=False)

    def forget(self, address: str) -> None:
        """It knows the key."""
        self._failures.pop(address, None)


class Door:
    """The login and the logout."""

    def __init__(self) -> None:
        self._failed = FailedLogins()
        self._failed_names = FailedLogins(NAME_FAILURES_MAX)
        self._passwords: PasswordCheck | None = None

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
        address = network_of(request.client.host if request.client else "")
        name, secret = await _presented(request)
        now_s = services.clock.monotonic_s()
        try:
            self._failed.check(address, now_s)
            if name:
                self._failed_names.check(name, now_s)
        except RateLimited as error:
            response = _form(services, status_code=error.status_code, message=error.caller_detail)
            response.headers["retry-after"] = str(error.retry_after_s)
            return response
        # Counted before anything is waited for: tries in parallel gain nothing. It is taken back below.
        self._failed.note(address, now_s)
        if name:
            self._failed_names.note(name, now_s)
        try:
            actor = await self._actor(services, name, secret)
        except AuthenticationFailed as error:
            await asyncio.sleep(FAILURE_DELAY_S)
            return _form(services, status_code=401, message=error.caller_detail, name=name)
        self._failed.forget(address)
        self._failed_names.forget(name)
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
        if self._passwords is None:
            self._passwords = PasswordCheck()
        if not await self._passwords.matches(None if person is None else person.password_hash, secret):
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


def keep_login(answer: Response, request: Request, login: str) -> None:
    """Let the browser keep a login."""
    answer.set_cookie(
        COOKIE,
        login,
        max_age=LOGIN_S,
        path=COOKIE_PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _form(services: Services, *, status_code: int = 200, message: str = "", name: str = "") -> Response:
    has_sign_on = services.settings.oidc.issuer is not None
    return page("login.html", status_code=status_code, message=message, name=name, has_sign_on=has_sign_on)


def network_of(address: str) -> str:
    """What failed logins are counted by: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_NETWORK_BITS), strict=False))


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
