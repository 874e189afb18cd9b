"""How are canaries kept? All SQL of the noun; flushes, never commits.

A canary is a row, its end is another one; nothing is ever changed. It lives while it has no end and the
activation that it began under is the newest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.paging import Page, PageRequest, page_of, seek
from gateway.routing.split import Split, Stickiness
from gateway.routing.tables import MESSAGE_CHARS, PolicyCanary, PolicyCanaryEnd
from gateway.routing.versions import Activation, read_active

SHARE_MAX = 0.5
"""Beyond it is the control that would be the canary."""


class How(StrEnum):
    """How a canary ended."""

    STOPPED = "stopped"
    ROLLED_BACK = "rolled_back"
    """By its guard."""
    PROMOTED = "promoted"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    """Another version was activated; there is no row of it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator asks of a canary."""

    split: Split
    units_max: int
    until_ms: int
    auto_promote: bool = False
    message: str | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How a canary ended."""

    how: How
    reason: str
    at_ms: int | None
    """None: with the activation that followed."""
    actor: str | None
    evidence: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Canary:
    """A candidate beside the active version."""

    number: int
    version: str
    control: str
    activation: int
    terms: Terms
    at_ms: int
    actor: str
    end: End | None
    """None: it lives."""


async def live_canary(session: AsyncSession) -> Canary | None:
    """The one that lives; there is one at most."""
    newest = select(PolicyCanary).order_by(col(PolicyCanary.number).desc()).limit(1)
    row = (await session.execute(newest)).scalar_one_or_none()
    if row is None:
        return None
    found = (await _described(session, [row]))[0]
    return found if found.end is None else None


async def page_canaries(session: AsyncSession, page: PageRequest) -> Page[Canary]:
    """All that ever were, the newest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(
        select(PolicyCanary),
        page,
        at=col(PolicyCanary.number),
        row_id=col(PolicyCanary.version),
        newest_first=True,
    )
    rows = list((await session.execute(statement)).scalars())
    return page_of(await _described(session, rows), page, lambda one: (one.number, one.version))


async def next_number(session: AsyncSession) -> int:
    """What the next canary is called; the caller holds the lock of activations."""
    newest = select(PolicyCanary.number).order_by(col(PolicyCanary.number).desc()).limit(1)
    return ((await session.execute(newest)).scalar_one_or_none() or 0) + 1


async def begin_canary(
    session: AsyncSession, version: str, *, beside: Activation, terms: Terms, act: Act
) -> Canary:
    """Let a part of the requests follow a stored version that fits the fleet.

    Args:
        session: the caller's, who holds the lock of activations and has seen that none lives.
        version: the candidate.
        beside: what is active.
        terms: how much, and for how long.
        act: who does it, and when.

    Raises:
        Conflict: somebody else began one at the same moment.
        InvalidRequest: the message is no message.
    """
    split, message = terms.split, terms.message
    if message is not None and not (0 < len(message) <= MESSAGE_CHARS and message.isprintable()):
        raise InvalidRequest(
            f"A message has 1 to {MESSAGE_CHARS} characters, and no line breaks.", param="message"
        )
    row = PolicyCanary(
        number=split.number,
        version=version,
        control=beside.version,
        activation=beside.number,
        share=split.share,
        stickiness=split.stickiness,
        tenants=sorted(split.tenants),
        models=sorted(split.models),
        units_max=terms.units_max,
        until_ms=terms.until_ms,
        auto_promote=terms.auto_promote,
        at_ms=act.at_ms,
        actor_id=act.actor.id,
        actor_name=act.actor.name,
        message=message,
    )
    await audit.write(session, act, "policy.canary", row=row)
    return (await _described(session, [row]))[0]


async def end_canary(
    session: AsyncSession,
    canary: Canary,
    how: How,
    *,
    reason: str,
    act: Act,
    evidence: dict[str, Any] | None = None,
) -> None:
    """Let no request follow the candidate any more.

    Args:
        session: the caller's, who holds the lock of activations and has seen that it lives.
        canary: which.
        how: what is done.
        reason: why, for people.
        act: who does it, and when.
        evidence: what a guard saw.

    Raises:
        Conflict: somebody else ended it at the same moment.
    """
    row = PolicyCanaryEnd(
        number=canary.number,
        version=canary.version,
        how=how,
        reason=reason,
        evidence=evidence,
        at_ms=act.at_ms,
        actor_id=act.actor.id,
        actor_name=act.actor.name,
    )
    conflict = "Somebody else ended this canary at the same moment. Nothing was changed."
    await audit.write(session, act, f"policy.canary_{how}", row=row, conflict=conflict)


def refuse_no_canary(canary: Canary | None, number: int | None = None) -> Canary:
    """Insist that a canary lives.

    Raises:
        NotFound: none does.
        Conflict: another one does.
    """
    if canary is None:
        raise NotFound(
            "There is no canary now: `tollgate policy canary status` shows how the last one ended."
        )
    if number is not None and canary.number != number:
        raise Conflict(f"The canary that lives is number {canary.number}, not {number}. Nothing was changed.")
    return canary


async def _described(session: AsyncSession, rows: list[PolicyCanary]) -> list[Canary]:
    statement = select(PolicyCanaryEnd).where(col(PolicyCanaryEnd.number).in_([row.number for row in rows]))
    ends = {row.number: row for row in (await session.execute(statement)).scalars()}
    active = await read_active(session)
    return [_canary(row, ends.get(row.number), active) for row in rows]


def _canary(row: PolicyCanary, ended: PolicyCanaryEnd | None, active: Activation | None) -> Canary:
    end: End | None = None
    if ended is not None:
        end = End(How(ended.how), ended.reason, ended.at_ms, ended.actor_name, ended.evidence)
    elif active is None or active.number != row.activation:
        end = End(How.SUPERSEDED, "another version was activated", None, None)
    split = Split(
        number=row.number,
        share=row.share,
        stickiness=Stickiness(row.stickiness),
        tenants=frozenset(row.tenants),
        models=frozenset(row.models),
    )
    terms = Terms(
        split,
        units_max=row.units_max,
        until_ms=row.until_ms,
        auto_promote=row.auto_promote,
        message=row.message,
    )
    return Canary(
        number=row.number,
        version=row.version,
        control=row.control,
        activation=row.activation,
        terms=terms,
        at_ms=row.at_ms,
        actor=row.actor_name,
        end=end,
    )
