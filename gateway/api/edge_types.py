"""What does a handler of the data plane get?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from gateway.api.streaming import Response
from gateway.dependencies import Services
from gateway.identity.auth import Caller


class EdgeRequest(msgspec.Struct, frozen=True):
    """One authenticated request with its whole body."""

    services: Services
    caller: Caller
    headers: Mapping[str, str]
    """Those that are read at all (`edge.READ`), by lower-case name."""
    body: bytes
    path: str
    request_id: str


Handler = Callable[[EdgeRequest], Awaitable[Response]]
