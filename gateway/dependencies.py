"""What do the edge, the control plane and the console share while the program runs?

One value that `app.py` fills in when it starts. No container and no locator: whoever needs a part takes it
as an argument or through the aliases here.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from backends.registry import PoolRegistry
from gateway.clock import Clock
from gateway.db import SessionFactory
from gateway.errors import AuthenticationFailed, Overloaded
from gateway.identity.auth import KeyRing
from gateway.ledger.spool import Spool
from gateway.pipeline import Pipeline
from gateway.protocols.openai import ParseLimits
from gateway.settings import Settings
from gateway.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that serves requests."""

    settings: Settings
    clock: Clock
    sessions: SessionFactory
    keys: KeyRing
    registry: PoolRegistry
    pipeline: Pipeline
    spool: Spool
    telemetry: Telemetry
    parse_limits: ParseLimits
    admin_key: str
    root_key: bytes


class Runtime:
    """Holds the services from start to stop; requests outside of that are refused."""

    def __init__(self) -> None:
        self.services: Services | None = None

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


def is_admin_key(services: Services, presented: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(presented.encode(), services.admin_key.encode())


def require_admin(request: Request, services: ServicesDep) -> None:
    """Let only the bootstrap administrator through.

    Raises:
        AuthenticationFailed: no or a wrong administrator key.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not is_admin_key(services, key.strip()):
        raise AuthenticationFailed(
            "The control plane needs the administrator key: 'Authorization: Bearer <admin key>'."
            " On an embedded install it is in the state folder, file admin-key."
        )


AdminDep = Depends(require_admin)
