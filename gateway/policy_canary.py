"""How does a candidate come to stand beside the active policy, and what becomes of it?

It begins beside an activation and ends with the next one, whoever makes it: promoted, stopped by a person,
rolled back by its guard, or superseded. All functions hold the lock of activations, flush, and leave the
commit to their caller; the command line, the API and the guard are three renderings of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit import Act
from gateway.errors import InvalidRequest
from gateway.policy_candidate import active_alone, candidate_of
from gateway.policy_life import Outcome, Proposal, Supply, put_into_force
from gateway.routing.canaries import (
    SHARE_MAX,
    Canary,
    How,
    Terms,
    begin_canary,
    end_canary,
    live_canary,
    next_number,
    refuse_no_canary,
)
from gateway.routing.split import Split, Stickiness
from gateway.routing.versions import lock_activations

UNITS_DEFAULT: Final = 2_000
HOURS_DEFAULT: Final = 24.0
HOURS_MAX: Final = 24.0 * 30
UNITS_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants of a canary."""

    percent: float
    stickiness: Stickiness = Stickiness.CONVERSATION
    tenants: Sequence[str] = ()
    models: Sequence[str] = ()
    units: int = UNITS_DEFAULT
    hours: float = HOURS_DEFAULT
    auto_promote: bool = False
    message: str | None = None


async def start_canary(
    session: AsyncSession,
    candidate: str | Proposal,
    order: Order,
    *,
    act: Act,
    supply: Supply,
    expected: str | None = None,
) -> Canary:
    """Let a part of the requests follow a candidate.

    Args:
        session: the caller's.
        candidate: a stored version, or a policy that is stored with it.
        order: how much, and for how long.
        act: who does it, and when.
        supply: what there is.
        expected: the version that must be active now; None: any.

    Raises:
        ConfigurationError: it is no policy, or does not fit what there is.
        Conflict: there is a canary or a shadow already, another version is active than expected, or it is
            the candidate.
        NotFound, InvalidRequest: there is no such version, or several; or the order cannot be followed.
        PayloadTooLarge: its text is longer than a policy may be.
    """
    _check(order)
    active = await active_alone(session, now_ms=act.at_ms, expected=expected)
    models = frozenset(order.models)
    version = await candidate_of(session, candidate, active, models=models, act=act, supply=supply)
    split = Split(
        number=await next_number(session),
        share=order.percent / 100,
        stickiness=order.stickiness,
        tenants=frozenset(order.tenants),
        models=models,
    )
    terms = Terms(
        split,
        units_max=order.units,
        until_ms=act.at_ms + int(order.hours * 3_600_000),
        auto_promote=order.auto_promote,
        message=order.message,
    )
    return await begin_canary(session, version, beside=active, terms=terms, act=act)


def _check(order: Order) -> None:
    if not 0 < order.percent <= SHARE_MAX * 100:
        raise InvalidRequest(f"A canary takes more than 0 and at most {SHARE_MAX:.0%}.", param="percent")
    if not 1 <= order.units <= UNITS_MAX:
        raise InvalidRequest(f"A verdict needs 1 to {UNITS_MAX} units.", param="units")
    if not 0 < order.hours <= HOURS_MAX:
        raise InvalidRequest(f"A canary takes more than 0 and at most {HOURS_MAX:g} hours.", param="hours")


async def stop_canary(
    session: AsyncSession,
    *,
    act: Act,
    reason: str,
    how: How = How.STOPPED,
    number: int | None = None,
    evidence: dict[str, Any] | None = None,
) -> Canary:
    """Let every request follow the active version again.

    Args:
        session: the caller's.
        act: who does it, and when.
        reason: why, for people.
        how: stopped, or rolled back by a guard.
        number: which canary; None: whichever lives.
        evidence: what a guard saw.

    Raises:
        NotFound: no canary lives.
        Conflict: another one does.
    """
    await lock_activations(session)
    canary = refuse_no_canary(await live_canary(session), number)
    await end_canary(session, canary, how, reason=reason, act=act, evidence=evidence)
    return canary


async def promote_canary(
    session: AsyncSession,
    *,
    act: Act,
    supply: Supply,
    number: int | None = None,
    message: str | None = None,
    evidence: dict[str, Any] | None = None,
) -> Outcome:
    """Let every request follow the candidate: an activation, if its control is still what is active.

    Raises:
        NotFound: no canary lives.
        Conflict: another one does.
        ConfigurationError: the candidate does not fit any more.
        InvalidRequest: the message is no message.
    """
    await lock_activations(session)
    canary = refuse_no_canary(await live_canary(session), number)
    reason = message or "promoted"
    await end_canary(session, canary, How.PROMOTED, reason=reason, act=act, evidence=evidence)
    return await put_into_force(
        session, canary.version, act=act, supply=supply, expected=canary.control, message=message
    )
