"""Which misbehaviour is switched on, and for how many more requests?

A fault is a name, a value and a number of times (None: until cleared). Several may be on at once. A
generation request uses up one time of every generation fault that is on, whatever it then does with it;
`refuse` counts connections and `unhealthy` counts health checks.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

FaultValue = str | int | float | None


class FaultError(ValueError):
    """The name or the value of a fault is not one this program knows."""


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One entry of the catalogue."""

    form: str
    """How the value is written, as shown in --help; empty: no value."""
    meaning: str
    scope: str = "generation"
    """What uses it up: generation, connection or health."""


CATALOGUE: Final[dict[str, FaultKind]] = {
    "refuse": FaultKind("", "close every connection as soon as it is accepted", "connection"),
    "unhealthy": FaultKind("", "/health answers 503", "health"),
    "hang": FaultKind("", "accept the request and never answer"),
    "hold": FaultKind("", "accept the request and answer once the faults are cleared"),
    "status": FaultKind("CODE[,RETRY_AFTER]", "answer CODE with vLLM's error body (and a Retry-After)"),
    "error_string_body": FaultKind(
        "", 'answer 401 with {"error":"Unauthorized"}, a string where others have an object'
    ),
    "garbage": FaultKind(
        "[event]", "answer 200 with a body that is no JSON and no SSE; event: framed, but no JSON inside"
    ),
    "wrong_length": FaultKind(
        "", "announce more bytes than are sent, then close (streams: cut the last HTTP chunk)"
    ),
    "slow_headers": FaultKind("SECONDS", "send the response headers in small pieces over SECONDS"),
    "stall_before_first": FaultKind(
        "SECONDS", "streams: headers, then silence; plain: silence before everything"
    ),
    "stall_mid_stream": FaultKind("K,SECONDS", "silence after K content chunks"),
    "die_before_first_chunk": FaultKind("", "close after the headers"),
    "error_first_event": FaultKind(
        "", "200, then an error as the first event, as an engine-side refusal arrives"
    ),
    "error_before_first_content": FaultKind("", "role chunk, then an error event and [DONE]"),
    "error_mid_stream": FaultKind("K", "an error event and [DONE] after K content chunks"),
    "die_mid_stream": FaultKind("K", "close after K content chunks (plain: in the middle of the body)"),
    "half_event": FaultKind("K", "half of an event after K content chunks, then close"),
    "no_usage": FaultKind("", "leave the usage chunk out of streams"),
    "no_done": FaultKind("", "end the stream properly, but without data: [DONE]"),
    "split": FaultKind("N", "write streams in pieces of N bytes, ignoring event borders"),
    "coalesce": FaultKind("N", "write N events in one piece"),
}

_NUMBERS: Final = {
    "CODE[,RETRY_AFTER]": (1, 2),
    "SECONDS": (1, 1),
    "K,SECONDS": (2, 2),
    "K": (1, 1),
    "N": (1, 1),
}


@dataclass(slots=True)
class Fault:
    """A fault that is on."""

    name: str
    numbers: tuple[float, ...]
    text: str
    times: int | None
    """How often it still happens; None: until it is cleared."""

    def as_json(self) -> dict[str, object]:
        """What /_stats shows of it."""
        return {"fault": self.name, "value": self.text, "times": self.times}


Hits = dict[str, tuple[float, ...]]
"""The faults one request meets: name → numbers of the value."""


def parse_fault(name: str, value: FaultValue = None, times: int | None = None) -> Fault:
    """Check a fault against the catalogue.

    Raises:
        FaultError: unknown name, or a value of another form.
    """
    kind = CATALOGUE.get(name)
    if kind is None:
        raise FaultError(f"unknown fault {name!r}; known: {', '.join(sorted(CATALOGUE))}")
    text = "" if value is None else str(value)
    if kind.form == "[event]":
        if text not in {"", "event"}:
            raise FaultError(f"{name} takes no value or 'event', not {text!r}")
        return Fault(name, (1.0,) if text else (), text, times)
    if not kind.form:
        if text:
            raise FaultError(f"{name} takes no value, not {text!r}")
        return Fault(name, (), text, times)
    least, most = _NUMBERS[kind.form]
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not least <= len(numbers) <= most or any(number < 0 for number in numbers):
        raise FaultError(f"{name} takes {kind.form}, not {text!r}")
    if kind.form == "N" and numbers[0] < 1:
        raise FaultError(f"{name} takes a number from 1 on, not {text!r}")
    return Fault(name, numbers, text, times)


def parse_switch(written: str) -> Fault:
    """A fault as it stands on the command line: NAME or NAME=VALUE.

    Raises:
        FaultError: as parse_fault.
    """
    name, _, value = written.partition("=")
    return parse_fault(name, value or None)


class Faults:
    """The faults that are on."""

    def __init__(self) -> None:
        self._on: dict[str, Fault] = {}
        self.cleared = asyncio.Event()
        """Whoever holds it is told of the next clearing."""

    def switch(self, fault: Fault) -> None:
        """Turn a fault on; with times 0, off."""
        if fault.times == 0:
            self._on.pop(fault.name, None)
        else:
            self._on[fault.name] = fault

    def clear(self) -> None:
        """Behave again."""
        self._on.clear()
        self.cleared.set()
        self.cleared = asyncio.Event()

    def take(self, scope: str) -> Hits:
        """The faults a request of this scope meets, each used up by one."""
        if not self._on:
            return {}
        hits: Hits = {}
        for fault in [fault for fault in self._on.values() if CATALOGUE[fault.name].scope == scope]:
            hits[fault.name] = fault.numbers
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    del self._on[fault.name]
        return hits

    def as_json(self) -> list[dict[str, object]]:
        """What /_stats shows."""
        return [fault.as_json() for fault in self._on.values()]


def catalogue_text() -> str:
    """The catalogue for --help."""
    lines = []
    for name, kind in CATALOGUE.items():
        written = f"{name}={kind.form}" if kind.form else name
        lines.append(f"  {written:<32} {kind.meaning}")
    return "\n".join(lines)
