"""What does a handler of the data plane get?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from gateway.api.client_watch import ClientWatch
from gateway.api.streaming import Response
from gateway.dependencies import Services
from gateway.identity.auth import Caller


@dataclass(frozen=True, slots=True)
class EdgeRequest:
    """One authenticated request with its whole body."""

    services: Services
    caller: Caller
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes
    path: str
    request_id: str
    watch: ClientWatch


Handler = Callable[[EdgeRequest], Awaitable[Response]]
