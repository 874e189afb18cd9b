"""How does a call reach a model outside the company, without the program carrying litellm for nothing?

Here are only the forms: what an external target is to this room, and what the dispatcher wants of whoever
speaks to it. The one implementation, `upstream/external.py`, imports litellm (3 s, 160 MB), so it is loaded
by name, in a thread, when a policy names an external target, and never otherwise.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.inference import Call, Completion, RouteDecision, Target

REPLICA = "external"
"""Stands where an attempt at a pool names its replica."""
_DOOR = "gateway.upstream.external"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an external target answers."""

    api_base: str
    api_key: str | None
    """The secret itself; None: none is sent."""


class EventSource(Protocol):
    """An answer that is still coming, as bytes of OpenAI's server-sent events."""

    async def read(self) -> bytes:
        """As much as has arrived; nothing once it has ended.

        Raises:
            UpstreamError: it broke, or whoever answers reported an error.
        """

    def close(self) -> None:
        """Let go of it; if it had not ended, its connection is closed."""


class Outside(Protocol):
    """Speaks to external targets."""

    async def complete(self, call: Call, decision: RouteDecision, target: Target) -> Completion:
        """A whole answer.

        Raises:
            UpstreamError: there is none.
        """

    async def open(self, call: Call, decision: RouteDecision, target: Target) -> EventSource:
        """A stream whose status is good; the caller closes it.

        Raises:
            UpstreamError: there is none.
        """

    async def close(self) -> None:
        """Close every connection, also those in use."""


async def load_outside(endpoints: Mapping[str, Endpoint], *, connect_timeout_s: float) -> Outside | None:
    """Whoever speaks to these external targets; None, and nothing is loaded, if there is no target."""
    if not endpoints:
        return None
    door = await asyncio.to_thread(_load)
    outside: Outside = door.Litellm(endpoints, connect_timeout_s=connect_timeout_s)
    return outside


def _load() -> Any:
    """The module; takes seconds, so in a thread."""
    door: Any = importlib.import_module(_DOOR)
    door.warm_up()
    return door
