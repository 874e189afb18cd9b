"""Which requests follow the candidate? The same answer in every gateway, and for every turn. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from backends.choice import key_of
from gateway.inference import Call
from gateway.protocols.affinity import conversation_key

PARTS: Final = 1_000_000


class Stickiness(StrEnum):
    """What stays with one version."""

    CONVERSATION = "conversation"
    KEY = "key"
    REQUEST = "request"


class Unit(NamedTuple):
    """What requests have in common that follow one version together."""

    split: int
    """The number of the split by which it was found: to another one it says nothing."""
    key: int
    """64 bits."""

    @property
    def name(self) -> str:
        """As receipts and refusals have it, hexadecimal."""
        return f"{self.key:016x}"


@dataclass(frozen=True, slots=True)
class Split:
    """How traffic is divided between the active version and a candidate."""

    number: int
    """Of the canary: another canary divides differently."""
    share: float
    """Of the units that follow the candidate, 0 to 1."""
    stickiness: Stickiness
    tenants: frozenset[str]
    """Names; none: all tenants."""
    models: frozenset[str]
    """Aliases; none: all."""

    def unit_of(self, call: Call, *, tenant: str, key_id: str, request_id: str) -> Unit | None:
        """The unit that a request belongs to; None: the canary is not about it.

        Args:
            call: the request.
            tenant: the tenant's name.
            key_id: the oldest of the keys that its own took the place of.
            request_id: ours.
        """
        if self.tenants and tenant not in self.tenants:
            return None
        if self.models and call.model_alias not in self.models:
            return None
        match self.stickiness:
            case Stickiness.CONVERSATION:
                what = conversation_key(call, tenant)
            case Stickiness.KEY:
                what = key_id.encode()
            case Stickiness.REQUEST:
                what = request_id.encode()
        return Unit(self.number, key_of(b"%d\0%s" % (self.number, what)))

    def is_candidates(self, unit: Unit) -> bool:
        """Whether the unit's requests follow the candidate."""
        return unit.key % PARTS < self.share * PARTS
