"""What do the edge, the control plane and the console share while the program runs, and who may come in?

One value that `app.py` fills in when it starts. No container and no locator: whoever needs a part takes it
as an argument or through the aliases here. `guard` stands before every route that FastAPI serves; what a
route asks for is said in `identity/roles.py` and nowhere else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.routing import BaseRoute

from backends.registry import PoolRegistry
from gateway.audit import Act, Actor, Source
from gateway.clock import Clock
from gateway.db import SessionFactory
from gateway.errors import AuthenticationFailed, Overloaded, PermissionDenied
from gateway.identity.admins import LOGIN_S, AdminRing, Logins
from gateway.identity.auth import KeyRing
from gateway.identity.guesses import Guesses
from gateway.identity.roles import RULES, Credential, Rule
from gateway.inference import new_id
from gateway.jobs.backtests import Backtests
from gateway.ledger.spool import Spool
from gateway.paging import ROWS_DEFAULT, ROWS_MAX, PageRequest
from gateway.pipeline import Pipeline
from gateway.policy_in_force import PolicyInForce
from gateway.protocols.openai import ParseLimits
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.upstream.waking import Waker


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that serves requests."""

    settings: Settings
    clock: Clock
    sessions: SessionFactory
    keys: KeyRing
    admins: AdminRing
    logins: Logins
    guesses: Guesses
    registry: PoolRegistry
    pipeline: Pipeline
    policies: PolicyInForce
    backtests: Backtests
    spool: Spool
    telemetry: Telemetry
    waker: Waker
    parse_limits: ParseLimits
    admin_key: str
    root_key: bytes


class Runtime:
    """Holds the services from start to stop; requests outside of that are refused."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.services: Services | None = None
        self.telemetry = telemetry

    def current(self) -> Services:
        """The services.

        Raises:
            Overloaded: the program starts or stops.
        """
        if self.services is None:
            raise Overloaded("Tollgate is starting or stopping. Try again shortly.")
        return self.services


def services_of(request: Request) -> Services:
    """The services of the app that handles the request."""
    runtime: Runtime = request.app.state.runtime
    return runtime.current()


ServicesDep = Annotated[Services, Depends(services_of)]


async def _session(services: ServicesDep) -> AsyncIterator[AsyncSession]:
    async with services.sessions() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(_session)]
"""For the control plane and the console only: the data plane holds no session while it streams."""


# ------------------------------------------------------------------------------------------ who may come in
COOKIE = "tollgate_session"
"""Holds a login to the console."""
COOKIE_PATH = "/"
"""The pages call the admin API with it."""
REQUEST_ID = "x-request-id"
CONSOLE_HEADER = "x-tollgate-console"
"""On changes with a login: a page of another site cannot send it without being asked about it first."""
_SAFE_METHODS = frozenset({"GET", "HEAD"})
CLIENT_CHARS = 64
"""Kept of a client's address: IPv6 with a zone, at most."""


async def guard(request: Request, response: Response) -> None:
    """Let those through whom the table of rules names for this route; a route that it does not name is shut.

    Raises:
        AuthenticationFailed: no key or login, or none of ours.
        PermissionDenied: a role that may not do this, or a route without a rule.
        Overloaded: the program starts or stops, or keys cannot be checked.
    """
    template = getattr(request.scope.get("route"), "path", "")
    rule = RULES.get((request.method, template))
    if rule is None or rule.credential is Credential.TENANT_KEY:
        raise PermissionDenied(
            "Nobody may use this: there is no rule for it.",
            operator_detail=f"no rule for {request.method} {template}: add it to gateway/identity/roles.py",
        )
    if rule.credential is Credential.NOTHING:
        return
    services = services_of(request)
    request.state.request_id = new_id("req_", services.clock.epoch_ms())
    response.headers[REQUEST_ID] = request.state.request_id
    request.state.source = Source.API
    if rule.is_open_on_loopback and _is_loopback(request):
        return
    request.state.actor = actor = _actor_of(request, services, rule)
    if actor.role not in rule.roles:
        raise PermissionDenied(
            f"Your key {actor.name!r} has the role {actor.role}, which may not do this."
            f" It takes one of: {rule.roles_text()}."
        )


def require_guarded(app: FastAPI) -> None:
    """Refuse to be a program with a door that has no guard: a mount, or a route that is not FastAPI's.

    Raises:
        RuntimeError: there is one.
    """
    for route in _written(app.router.routes):
        if not isinstance(route, APIRoute):
            path = getattr(route, "path", route)
            raise RuntimeError(f"no guard stands before {path!r}: make it a route of FastAPI")  # noqa: TRY004 - it is the program that is wrong


def _written(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """The routes as they were written, whichever router they are on: `build_routes` costs far more."""
    for route in routes:
        # An included router (FastAPI 0.165); if it were called otherwise, nothing would pass the check above.
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from _written(included.routes)


def build_routes(app: FastAPI) -> None:
    """Let FastAPI build every route now, which it puts off until a request looks for one (0.165).

    It takes a tenth of a second of a processor, in which a process that serves would serve nobody.
    """
    for _ in iter_route_contexts(app.router.routes):
        pass


def _actor_of(request: Request, services: Services, rule: Rule) -> Actor:
    """Who asks: by a key, or by a login to the console, whose pages call the admin API."""
    if rule.credential is Credential.ADMIN_KEY and "authorization" in request.headers:
        return services.admins.authenticate(request.headers)
    actor = services.logins.actor_of(request.cookies.get(COOKIE, ""))
    if actor is None:
        if rule.credential is Credential.ADMIN_KEY:
            return services.admins.authenticate(request.headers)
        raise AuthenticationFailed("Log in first.")
    request.state.source = Source.CONSOLE
    if request.method not in _SAFE_METHODS:
        require_same_origin(request)
        if rule.credential is Credential.ADMIN_KEY and CONSOLE_HEADER not in request.headers:
            raise PermissionDenied(
                f"With a login, a change needs the header {CONSOLE_HEADER}, which the console's pages send."
                " Programs use an administrator key."
            )
    return actor


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


def _is_loopback(request: Request) -> bool:
    # A proxy in front connects from loopback too and says for whom it asks.
    if request.client is None or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _current_actor(request: Request) -> Actor:
    actor: Actor = request.state.actor
    return actor


def _act(request: Request, services: ServicesDep) -> Act:
    return Act(
        actor=_current_actor(request),
        source=request.state.source,
        at_ms=services.clock.epoch_ms(),
        request_id=request.state.request_id,
        client=None if request.client is None else request.client.host[:CLIENT_CHARS],
    )


def _page(
    limit: Annotated[int, Query(description=f"rows of a page, 1 to {ROWS_MAX}")] = ROWS_DEFAULT,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> PageRequest:
    return PageRequest(limit=limit, cursor=cursor)


PageDep = Annotated[PageRequest, Depends(_page)]
"""Which piece of a list is wanted."""
ActorDep = Annotated[Actor, Depends(_current_actor)]
"""Who asks, on routes for administrators."""
ActDep = Annotated[Act, Depends(_act)]
"""The circumstances of a change, for whatever changes something."""
