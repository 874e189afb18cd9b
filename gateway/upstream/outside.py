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

from gateway.clock import Clock
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


class Loader(Protocol):
    """Makes what speaks to external targets."""

    async def __call__(
        self, endpoints: Mapping[str, Endpoint], *, connect_timeout_s: float
    ) -> Outside | None:
        """See `load_outside`."""


class OutsideByVersion:
    """Speaks to the external targets of the policy version that decided: one attempt, one version.

    What a version does not need any more is closed some time after it was left, for calls that it decided may
    still be under way.
    """

    def __init__(
        self, clock: Clock, *, connect_timeout_s: float, keep_s: float, load: Loader | None = None
    ) -> None:
        """Know no version.

        Args:
            clock: for the time since a version was left.
            connect_timeout_s: until a connection stands.
            keep_s: how long the longest answer takes.
            load: makes what speaks to external targets; None: `load_outside`.
        """
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._keep_s = keep_s
        self._load = load_outside if load is None else load
        self._of: dict[str, Outside | None] = {}
        """By version; those with the same endpoints share one."""
        self._endpoints: dict[str, Mapping[str, Endpoint]] = {}
        """By version."""
        self._left_at_s: dict[str, float] = {}

    async def load(
        self, version: str, endpoints: Mapping[str, Endpoint], *, beside: str | None = None
    ) -> None:
        """Get ready for a version; takes seconds for the first one that has external targets.

        Args:
            version: of the policy.
            endpoints: its external targets.
            beside: another version that stays in use.
        """
        shared = next((known for known, theirs in self._endpoints.items() if theirs == endpoints), None)
        if shared is None:
            outside = await self._load(endpoints, connect_timeout_s=self._connect_timeout_s)
        else:
            outside = self._of[shared]
        now_s = self._clock.monotonic_s()
        for known in self._of:
            if known != beside:
                self._left_at_s.setdefault(known, now_s)
        self._left_at_s.pop(version, None)
        # A version's endpoints are its own for ever: what it had before is what it has now.
        self._of[version], self._endpoints[version] = outside, endpoints
        for known in [one for one, left_s in self._left_at_s.items() if now_s - left_s > self._keep_s]:
            del self._left_at_s[known]
            del self._endpoints[known]
            left = self._of.pop(known)
            if left is not None and left not in self._of.values():
                await left.close()

    async def complete(self, call: Call, decision: RouteDecision, target: Target) -> Completion:
        """A whole answer.

        Raises:
            UpstreamError: there is none.
        """
        return await self._whose(decision).complete(call, decision, target)

    async def open(self, call: Call, decision: RouteDecision, target: Target) -> EventSource:
        """A stream whose status is good; the caller closes it.

        Raises:
            UpstreamError: there is none.
        """
        return await self._whose(decision).open(call, decision, target)

    async def close(self) -> None:
        """Close every connection, also those in use."""
        for outside in {id(each): each for each in self._of.values() if each is not None}.values():
            await outside.close()

    def _whose(self, decision: RouteDecision) -> Outside:
        outside = self._of.get(decision.policy_version)
        if outside is None:
            raise RuntimeError(
                f"{decision.policy_version} names an external target, and nothing that speaks to it is loaded"
            )
        return outside


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
