"""How are shadows kept? All SQL of the noun; flushes, never commits.

A shadow is a candidate that is asked for copies of requests, whose answers nobody gets. It is a row, its end
is another one; nothing of them is ever changed. It lives while it has no end, its time is not over, and the
activation that it began under is the newest. Beside it a count of the requests that were not copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.db import insert_adding
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.paging import Page, PageRequest, page_of, seek
from gateway.routing.split import Split, Stickiness
from gateway.routing.tables import MESSAGE_CHARS, PolicyShadow, PolicyShadowEnd, ShadowSkip
from gateway.routing.versions import Activation, read_active


class How(StrEnum):
    """How a shadow ended."""

    STOPPED = "stopped"
    EXPIRED = "expired"
    """Its time was over; there is no row of it."""
    SUPERSEDED = "superseded"
    """Another version was activated; there is no row of it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator asks of a shadow."""

    split: Split
    """Which requests are copied."""
    budget_id: str
    """What their copies draw on."""
    until_ms: int
    message: str | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How a shadow ended."""

    how: How
    reason: str
    at_ms: int | None
    """None: with the activation that followed."""
    actor: str | None


@dataclass(frozen=True, slots=True)
class Shadow:
    """A candidate that is asked for copies."""

    number: int
    version: str
    control: str
    activation: int
    terms: Terms
    at_ms: int
    actor: str
    end: End | None
    """None: it lives."""


async def live_shadow(session: AsyncSession, *, now_ms: int) -> Shadow | None:
    """The one that lives; there is one at most."""
    found = await newest_shadow(session, now_ms=now_ms)
    return found if found is not None and found.end is None else None


async def newest_shadow(session: AsyncSession, *, now_ms: int) -> Shadow | None:
    """The last that ever began; None: none did."""
    newest = select(PolicyShadow).order_by(col(PolicyShadow.number).desc()).limit(1)
    row = (await session.execute(newest)).scalar_one_or_none()
    return None if row is None else (await _described(session, [row], now_ms=now_ms))[0]


async def page_shadows(session: AsyncSession, page: PageRequest, *, now_ms: int) -> Page[Shadow]:
    """All that ever were, the newest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(
        select(PolicyShadow),
        page,
        at=col(PolicyShadow.number),
        row_id=col(PolicyShadow.version),
        newest_first=True,
    )
    rows = list((await session.execute(statement)).scalars())
    described = await _described(session, rows, now_ms=now_ms)
    return page_of(described, page, lambda one: (one.number, one.version))


async def begin_shadow(
    session: AsyncSession, version: str, *, number: int, beside: Activation, terms: Terms, act: Act
) -> Shadow:
    """Let copies of a part of the requests go to a stored version that fits the fleet.

    Args:
        session: the caller's, who holds the lock of activations and has seen that none lives.
        version: the candidate.
        number: the last one's, and one more.
        beside: what is active.
        terms: of which requests, on which budget, and for how long.
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
    row = PolicyShadow(
        number=number,
        version=version,
        control=beside.version,
        activation=beside.number,
        share=split.share,
        stickiness=split.stickiness,
        tenants=sorted(split.tenants),
        models=sorted(split.models),
        budget_id=terms.budget_id,
        until_ms=terms.until_ms,
        at_ms=act.at_ms,
        actor_id=act.actor.id,
        actor_name=act.actor.name,
        message=message,
    )
    await audit.write(session, act, "policy.shadow", row=row)
    return (await _described(session, [row], now_ms=act.at_ms))[0]


async def end_shadow(session: AsyncSession, shadow: Shadow, *, reason: str, act: Act) -> None:
    """Let no copy go to the candidate any more.

    Args:
        session: the caller's, who holds the lock of activations and has seen that it lives.
        shadow: which.
        reason: why, for people.
        act: who does it, and when.

    Raises:
        Conflict: somebody else ended it at the same moment.
    """
    row = PolicyShadowEnd(
        number=shadow.number,
        version=shadow.version,
        reason=reason,
        at_ms=act.at_ms,
        actor_id=act.actor.id,
        actor_name=act.actor.name,
    )
    conflict = "Somebody else ended this shadow at the same moment. Nothing was changed."
    await audit.write(session, act, "policy.shadow_stopped", row=row, conflict=conflict)


def refuse_no_shadow(shadow: Shadow | None, number: int | None = None) -> Shadow:
    """Insist that a shadow lives.

    Raises:
        NotFound: none does.
        Conflict: another one does.
    """
    if shadow is None:
        raise NotFound(
            "There is no shadow now: `tollgate policy shadow status` shows how the last one fared."
        )
    if number is not None and shadow.number != number:
        raise Conflict(f"The shadow that lives is number {shadow.number}, not {number}. Nothing was changed.")
    return shadow


async def count_skips(session: AsyncSession, skips: Mapping[tuple[int, str], int]) -> None:
    """So many more requests were not copied.

    Args:
        session: the caller's.
        skips: by the shadow's number and the reason.
    """
    rows = [
        {"number": number, "reason": reason, "requests": requests}
        for (number, reason), requests in sorted(skips.items())
    ]
    await insert_adding(session, ShadowSkip, rows)


async def read_skips(session: AsyncSession, number: int) -> dict[str, int]:
    """How many requests of a shadow were not copied, by reason."""
    found = await session.execute(
        select(ShadowSkip).where(col(ShadowSkip.number) == number).order_by(col(ShadowSkip.reason))
    )
    return {row.reason: row.requests for row in found.scalars()}


async def _described(session: AsyncSession, rows: Sequence[PolicyShadow], *, now_ms: int) -> list[Shadow]:
    statement = select(PolicyShadowEnd).where(col(PolicyShadowEnd.number).in_([row.number for row in rows]))
    ends = {row.number: row for row in (await session.execute(statement)).scalars()}
    active = await read_active(session)
    return [_shadow(row, ends.get(row.number), active, now_ms=now_ms) for row in rows]


def _shadow(
    row: PolicyShadow, ended: PolicyShadowEnd | None, active: Activation | None, *, now_ms: int
) -> Shadow:
    end: End | None = None
    if ended is not None:
        end = End(How.STOPPED, ended.reason, ended.at_ms, ended.actor_name)
    elif active is None or active.number != row.activation:
        end = End(How.SUPERSEDED, "another version was activated", None, None)
    elif now_ms >= row.until_ms:
        end = End(How.EXPIRED, "its time was over", row.until_ms, None)
    split = Split(
        number=-row.number,  # below zero, so that a canary of the same number divides differently
        share=row.share,
        stickiness=Stickiness(row.stickiness),
        tenants=frozenset(row.tenants),
        models=frozenset(row.models),
    )
    return Shadow(
        number=row.number,
        version=row.version,
        control=row.control,
        activation=row.activation,
        terms=Terms(split, row.budget_id, row.until_ms, row.message),
        at_ms=row.at_ms,
        actor=row.actor_name,
        end=end,
    )
