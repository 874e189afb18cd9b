"""How does a candidate come to be asked for copies of requests, and how does that end?

It begins beside an activation and ends with the next one, when a person stops it, or when its time is over.
All functions hold the lock of activations, flush, and leave the commit to their caller; the command line and
the API are two renderings of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit import Act
from gateway.errors import InvalidRequest
from gateway.ledger.buckets import Window
from gateway.ledger.budget_store import create_budget, get_budget, retire_budget
from gateway.ledger.evaluation import shadow_key, shadow_owner
from gateway.policy_candidate import active_alone, candidate_of
from gateway.policy_life import Proposal, Supply
from gateway.routing.shadows import (
    Shadow,
    Terms,
    begin_shadow,
    end_shadow,
    live_shadow,
    newest_shadow,
    refuse_no_shadow,
)
from gateway.routing.split import Split, Stickiness
from gateway.routing.versions import lock_activations

HOURS_DEFAULT: Final = 24.0 * 7
HOURS_MAX: Final = 24.0 * 30
WINDOWS: Final = (Window.DAY, Window.MONTH)
"""Of its budget."""


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants of a shadow."""

    percent: float
    budget_usd_nanos: int
    """The most that its copies may come to in a window."""
    window: Window = Window.DAY
    stickiness: Stickiness = Stickiness.CONVERSATION
    tenants: Sequence[str] = ()
    models: Sequence[str] = ()
    hours: float = HOURS_DEFAULT
    message: str | None = None


async def start_shadow(
    session: AsyncSession,
    candidate: str | Proposal,
    order: Order,
    *,
    act: Act,
    supply: Supply,
    expected: str | None = None,
) -> Shadow:
    """Let copies of a part of the requests go to a candidate, on a budget of its own.

    Args:
        session: the caller's.
        candidate: a stored version, or a policy that is stored with it.
        order: how much, for how long, and for how much money.
        act: who does it, and when.
        supply: what there is.
        expected: the version that must be active now; None: any.

    Raises:
        ConfigurationError: it is no policy, or does not fit what there is.
        Conflict: there is a canary or a shadow already, another version is active than expected, or it is
            the candidate.
        NotFound, InvalidRequest: there is no such version, or several; or the order cannot be followed.
    """
    _check(order)
    active = await active_alone(session, now_ms=act.at_ms, expected=expected)
    models = frozenset(order.models)
    version = await candidate_of(session, candidate, active, models=models, act=act, supply=supply)
    last = await newest_shadow(session, now_ms=act.at_ms)
    if last is not None:  # one that ended by itself left its budget in force
        await _retire(session, last, act=act)
    number = 1 if last is None else last.number + 1
    budget = await create_budget(
        session,
        f"evaluation, {shadow_key(number)}",
        owner=shadow_owner(number),
        window=order.window,
        limit_usd_nanos=order.budget_usd_nanos,
        is_hard=True,
        act=act,
    )
    split = Split(
        number=-number,
        share=order.percent / 100,
        stickiness=order.stickiness,
        tenants=frozenset(order.tenants),
        models=models,
    )
    until_ms = act.at_ms + int(order.hours * 3_600_000)
    terms = Terms(split, budget.id, until_ms, order.message)
    return await begin_shadow(session, version, number=number, beside=active, terms=terms, act=act)


def _check(order: Order) -> None:
    if not 0 < order.percent <= 100:  # noqa: PLR2004 - percent
        raise InvalidRequest("A shadow copies more than 0 and at most 100 percent.", param="percent")
    if order.budget_usd_nanos <= 0:
        raise InvalidRequest(
            "A shadow needs a budget of more than 0 USD: its copies are paid for by the platform.",
            param="budget_usd",
        )
    if order.window not in WINDOWS:
        raise InvalidRequest(
            f"The budget of a shadow is per {' or '.join(WINDOWS)}, not {order.window}.", param="window"
        )
    if not 0 < order.hours <= HOURS_MAX:
        raise InvalidRequest(f"A shadow takes more than 0 and at most {HOURS_MAX:g} hours.", param="hours")


async def stop_shadow(session: AsyncSession, *, act: Act, reason: str, number: int | None = None) -> Shadow:
    """Let no copy be made any more.

    Args:
        session: the caller's.
        act: who does it, and when.
        reason: why, for people.
        number: which shadow; None: whichever lives.

    Raises:
        NotFound: no shadow lives.
        Conflict: another one does.
    """
    await lock_activations(session)
    shadow = refuse_no_shadow(await live_shadow(session, now_ms=act.at_ms), number)
    await end_shadow(session, shadow, reason=reason, act=act)
    await _retire(session, shadow, act=act)
    return shadow


async def _retire(session: AsyncSession, shadow: Shadow, *, act: Act) -> None:
    budget = await get_budget(session, shadow.terms.budget_id)
    if budget.retired_at_ms is None:
        await retire_budget(session, budget.id, act=act)
