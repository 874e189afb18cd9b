"""Who looks at the console?

A login with the bootstrap administrator key, kept as a signed cookie for 12 hours: when it ends, a nonce, and
an HMAC-SHA-256 over both and the administrator key, so that a new key ends every session. Nothing is stored
but what has to be remembered against misuse, in this process and bounded: failed logins per address, and
sessions that were logged out before their end. Behind a proxy the address and the scheme are those that
uvicorn takes from the headers of a trusted proxy (on loopback by default).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import math
import secrets
from collections import OrderedDict
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gateway.clock import Clock
from gateway.console.pages import HOME, LOGIN, PageRoute, page
from gateway.dependencies import Services, ServicesDep, is_admin_key
from gateway.errors import (
    AuthenticationFailed,
    InvalidRequest,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
)
from gateway.identity.root_key import derive

COOKIE = "tollgate_session"
SESSION_S = 12 * 3600
FAILURES_MAX = 10
"""So many wrong keys from one address within FAILURES_WINDOW_S, then no more tries until it is over."""
FAILURES_WINDOW_S = 300.0
FAILURE_DELAY_S = 0.5
REMEMBERED_MAX = 4096
"""Addresses, and ended sessions, that are remembered; the oldest are forgotten first."""
FORM_BYTES_MAX = 4096

_IPV6_NETWORK_BITS = 64
"""One subscriber's addresses: whoever has one has all of them."""


class FailedLogins:
    """How often did each address present a wrong key lately?"""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str, now_s: float) -> None:
        """Let the address try.

        Raises:
            RateLimited: it failed too often.
        """
        failures, since_s = self._failures.get(address, (0, now_s))
        wait_s = since_s + FAILURES_WINDOW_S - now_s
        if failures >= FAILURES_MAX and wait_s > 0:
            raise RateLimited(
                f"Too many failed logins from this address. Try again in {math.ceil(wait_s / 60)} min.",
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


class Sessions:
    """Issues and checks the cookie's value."""

    def __init__(self) -> None:
        self._ended: OrderedDict[str, None] = OrderedDict()

    def issue(self, services: Services) -> str:
        """A new session's value."""
        ends_s = _epoch_s(services.clock) + SESSION_S
        nonce = secrets.token_hex(16)
        return f"{ends_s}.{nonce}.{_signature(services, ends_s, nonce)}"

    def is_valid(self, services: Services, value: str) -> bool:
        """Ours, not over and not logged out. The signature is compared in constant time, and first."""
        ends_text, _, rest = value.partition(".")
        nonce, _, signature = rest.partition(".")
        if not (ends_text.isascii() and ends_text.isdecimal() and len(ends_text) < len(str(2**63))):
            return False
        ends_s = int(ends_text)
        expected = _signature(services, ends_s, nonce)
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            return False
        return _epoch_s(services.clock) < ends_s and nonce not in self._ended

    def end(self, services: Services, value: str) -> None:
        """Make a session useless in this process before its time."""
        if self.is_valid(services, value):
            self._ended[value.split(".")[1]] = None
            if len(self._ended) > REMEMBERED_MAX:
                self._ended.popitem(last=False)


class Door:
    """The login, the logout, and the guard of every other page."""

    def __init__(self) -> None:
        self._failed = FailedLogins()
        self._sessions = Sessions()

    def router(self) -> APIRouter:
        """Its own pages."""
        router = APIRouter(route_class=PageRoute, include_in_schema=False)
        router.add_api_route(LOGIN, self.form, methods=["GET"])
        router.add_api_route(LOGIN, self.log_in, methods=["POST"])
        router.add_api_route("/console/logout", self.log_out, methods=["POST"])
        return router

    async def require_login(self, request: Request, services: ServicesDep) -> None:
        """Let only those with a session through.

        Raises:
            AuthenticationFailed: there is none; `PageRoute` leads to the login.
        """
        if not self._sessions.is_valid(services, request.cookies.get(COOKIE, "")):
            raise AuthenticationFailed("Log in first.")

    async def form(self, request: Request, services: ServicesDep) -> Response:
        """Ask for the key, unless it was given already."""
        if self._sessions.is_valid(services, request.cookies.get(COOKIE, "")):
            return RedirectResponse(HOME, 303)
        return page("login.html", message="")

    async def log_in(self, request: Request, services: ServicesDep) -> Response:
        """Start a session for the right key; answer a wrong one late."""
        require_same_origin(request)
        address = network_of(request.client.host if request.client else "")
        try:
            self._failed.check(address, services.clock.monotonic_s())
        except RateLimited as error:
            response = page("login.html", status_code=error.status_code, message=error.caller_detail)
            response.headers["retry-after"] = str(error.retry_after_s)
            return response
        key = await _presented_key(request)
        if not is_admin_key(services, key):
            # Counted before the delay: tries in parallel gain nothing.
            self._failed.note(address, services.clock.monotonic_s())
            await asyncio.sleep(FAILURE_DELAY_S)
            return page("login.html", status_code=401, message="That is not the administrator key.")
        self._failed.forget(address)
        answer = RedirectResponse(HOME, 303)
        answer.set_cookie(
            COOKIE,
            self._sessions.issue(services),
            max_age=SESSION_S,
            path=HOME,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    async def log_out(self, request: Request, services: ServicesDep) -> Response:
        """End the session."""
        require_same_origin(request)
        self._sessions.end(services, request.cookies.get(COOKIE, ""))
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(
            COOKIE, path=HOME, secure=request.url.scheme == "https", httponly=True, samesite="strict"
        )
        return answer


def require_same_origin(request: Request) -> None:
    """Refuse forms of other sites; SameSite=Strict stands before this, for browsers that know it.

    Only the host is compared: a proxy that ends TLS may not tell us the scheme.

    Raises:
        PermissionDenied: no Origin, or another one.
    """
    origin = request.headers.get("origin", "")
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        host = ""
    if not host or host.lower() != request.headers.get("host", "").lower():
        raise PermissionDenied(
            "This form was not sent from the console itself. Open the console and try again."
        )


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


async def _presented_key(request: Request) -> str:
    """The field `key` of a form.

    Raises:
        PayloadTooLarge: more than a login form can hold.
        InvalidRequest: not a form.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise PayloadTooLarge("That is too long for an administrator key.")
    try:
        fields = parse_qs(body.decode(), errors="replace", max_num_fields=8)
    except ValueError:
        raise InvalidRequest("The login form could not be read. Open the console and try again.") from None
    return fields.get("key", [""])[0].strip()


def _signature(services: Services, ends_s: int, nonce: str) -> str:
    message = f"{ends_s}.{nonce}.{services.admin_key}".encode()
    return hmac.digest(derive(services.root_key, "console-session"), message, hashlib.sha256).hex()


def _epoch_s(clock: Clock) -> int:
    return clock.epoch_ms() // 1000
