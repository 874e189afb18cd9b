"""What does a canary's guard know, and how is it told? Pure; the guard keeps it as its job's result."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.routing.harm import FAILURES, Observation, Suspicion

JOB: Final = "canary"
"""The job whose result it is."""


class State(msgspec.Struct):
    """What is known of the canary under way."""

    number: int
    seen_until_ms: int
    """When the guard looked last, epoch ms."""
    suspicion: Suspicion
    booked_until_ms: int
    """The latest booking that was read, epoch ms."""
    refused_until_ms: int
    """When the latest refusal that was read was written down, epoch ms."""
    booked: dict[str, int] = msgspec.field(default_factory=dict)
    """Bookings that were read and may be come across again."""
    known: list[str] = msgspec.field(default_factory=list)
    """Units that were counted, the latest last."""
    open: list[Observation] = msgspec.field(default_factory=list)
    """The stretch that has not ended yet."""
    verdict: str | None = None
    """What was found; None: nothing yet."""


def state_of(text: str | None, number: int) -> State | None:
    """What was kept of a canary; None: nothing, or of another one."""
    if text is None:
        return None
    try:
        state = msgspec.json.decode(text, type=State)
    except msgspec.MsgspecError:
        return None
    return state if state.number == number else None


def told_harm(suspicion: Suspicion, measure: str, *, error_probability: float) -> str:
    """What was seen, for people."""
    seen = suspicion.evidence[measure]
    theirs, ours = seen.total / max(1, seen.units), seen.control_total / max(1, seen.control_units)
    if measure == FAILURES:
        what = f"{theirs:.1%} of its requests failed or were refused, {ours:.1%} of the control's"
    elif measure == "cost":
        what = f"a request costs {theirs / ours - 1:.0%} more than the control's" if ours else "it costs more"
    else:
        kind, _, tier = measure.partition("_")
        name = "the time to the first token" if kind == "ttft" else "the whole time"
        what = (
            f"{theirs:.1%} of its {tier} requests exceed the control's P95 of {name}, {ours:.1%} of its own"
        )
    return (
        f"{what} ({seen.units} units against {seen.control_units}; by chance with a probability of at most"
        f" {error_probability:g})"
    )


def evidence_of(suspicion: Suspicion, harmed: str | None) -> dict[str, Any]:
    """What was seen, for the record."""
    return {
        "harmed": harmed,
        "units": suspicion.units,
        "served_units": suspicion.served,
        "control_units": suspicion.control_units,
        "measures": {
            name: {
                "units": one.units,
                "control_units": one.control_units,
                "mean": round(one.total / one.units, 6) if one.units else None,
                "control_mean": round(one.control_total / one.control_units, 6)
                if one.control_units
                else None,
                "log_e": round(one.log_e, 3),
            }
            for name, one in suspicion.evidence.items()
        },
    }
