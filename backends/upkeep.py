"""Which tokens did an engine read and write for us, not for a tenant?

Warming up and looking whether an engine lives cost machine time: each time is an `Upkeep`, which whoever
keeps books puts on the platform's account (where there are none, as under `tollgate pools up` alone, it is
counted and logged). Values only. What was not answered is not here: nobody knows what it cost.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class UpkeepKind(StrEnum):
    """What for."""

    WARM_UP = "warm_up"
    """Completions before a replica is ready."""
    HEARTBEAT = "heartbeat"
    """A token, to see that one comes."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one or several answers used, as the engine counted."""

    input: int = 0
    """Fresh ones."""
    cached_input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.input + self.cached_input + self.output

    def __add__(self, other: Tokens) -> Tokens:
        """Both together."""
        return Tokens(
            self.input + other.input, self.cached_input + other.cached_input, self.output + other.output
        )


@dataclass(frozen=True, slots=True)
class Upkeep:
    """One warm-up, or one look."""

    id: str
    """20 hexadecimal digits that are never the same again: it is booked once, whoever tells of it."""
    pool: str
    replica: str
    kind: UpkeepKind
    at_ms: int
    """When it began, epoch milliseconds."""
    took_ms: int
    tokens: Tokens


OnUpkeep = Callable[[Upkeep], None]


def epoch_ms() -> int:
    """Milliseconds since 1970 as this machine believes."""
    return time.time_ns() // 1_000_000


def new_upkeep(pool: str, replica: str, kind: UpkeepKind, *, tokens: Tokens, took_s: float) -> Upkeep:
    """One that has just ended."""
    took_ms = round(took_s * 1000)
    return Upkeep(secrets.token_hex(10), pool, replica, kind, epoch_ms() - took_ms, took_ms, tokens)


def tokens_of(usage: Any) -> Tokens:
    """The `usage` of an OpenAI answer; what cannot be, such as less than nothing, is taken as nothing.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    details = usage.get("prompt_tokens_details") or {}
    read = max(0, int(usage.get("prompt_tokens") or 0))
    cached = min(read, max(0, int(details.get("cached_tokens") or 0)))
    return Tokens(input=read - cached, cached_input=cached, output=max(0, int(usage["completion_tokens"])))
