"""How is a month closed, and is a closed one still what it was?

Closing looks at the books first and refuses if anything is wrong. Then it writes the report down, byte for
byte, with its hash, from a snapshot that nobody waits for; and while nothing of earlier months can be booked,
it looks whether that still holds and seals it: the seal names the hash and the seal of the period before, and
is signed. All of that is one transaction: whoever dies on the way leaves the month open. Verifying reads the
report again from the attempts and compares.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit import Act, write
from gateway.clock import Clock, instant_text
from gateway.db import SessionFactory, begin_writing, database_ms
from gateway.errors import Conflict, GatewayError
from gateway.ledger.closed_report import ledger_section, nanos_of
from gateway.ledger.findings import Extent, Finding
from gateway.ledger.invariants import examine, take_snapshot
from gateway.ledger.late_usage import lock_periods
from gateway.ledger.period_tables import ClosedPeriod
from gateway.ledger.periods import (
    Month,
    closed_periods,
    lent_and_lost,
    missing_supply,
    read_closed,
    require_closed,
    require_in_order,
    require_over,
    unbooked,
)
from gateway.ledger.supply import Terms
from gateway.money import usd_text
from gateway.period_draft import FORMAT, Draft, draft_of, encode, still_holds
from gateway.seals import Signer, is_signed

NO_SEAL = "0" * 64
"""Stands where there is no period before."""
DRAFTS_MAX = 3
"""So often the report is written down anew because usage of the month came meanwhile."""


class BooksAreWrong(GatewayError):
    """An invariant is broken: no month is closed over wrong books."""

    code = "books_are_wrong"
    status_code = 409

    def __init__(self, findings: list[Finding]) -> None:
        """Take what is broken."""
        said = "; ".join(f"{each.id} ({each.says}): {each.breaches}" for each in findings)
        super().__init__(
            f"The books are wrong, nothing is closed. Broken: {said}. `tollgate audit` shows examples."
        )
        self.findings = findings


@dataclass(frozen=True, slots=True)
class Wish:
    """Which month is to be closed, by whom, and under which circumstances."""

    month: Month
    act: Act
    grace_ms: int
    is_early: bool = False
    """Before the grace is over."""
    terms: Mapping[str, Terms] | None = None
    """Of the pools: their hours must be frozen."""
    in_spools: frozenset[str] = frozenset()
    """Attempts of the month or earlier that spools of this machine name."""
    slice_grace_ms: int = 0


@dataclass(frozen=True, slots=True)
class Closing:
    """What came of it."""

    period: ClosedPeriod
    is_new: bool
    """False: it was closed already."""
    warnings: tuple[str, ...] = ()


async def close_period(sessions: SessionFactory, wish: Wish, *, signer: Signer, clock: Clock) -> Closing:
    """Close a month, for ever; a closed one is told as it is.

    Raises:
        Conflict: it is not over, usage may still arrive, supply is not counted, or another month is first.
        BooksAreWrong: an invariant is broken.
    """
    async with sessions() as session:
        found = await read_closed(session, wish.month)
        if found is not None:
            return Closing(found, is_new=False)
        warnings = await _preconditions(session, wish, clock)
    await _look_at_the_books(sessions, wish, clock)
    for attempt in range(DRAFTS_MAX):
        draft = await _drafted(sessions, wish, clock)
        async with sessions() as session:
            await begin_writing(session)
            await lock_periods(session, exclusively=True)
            found = await read_closed(session, wish.month)
            if found is not None:
                return Closing(found, is_new=False)
            await require_in_order(session, wish.month)
            if not await still_holds(session, draft, wish.month):
                if attempt + 1 < DRAFTS_MAX:
                    continue
                # Something is booked for the month all the time: write it down while nothing can be.
                draft = await draft_of(
                    session, wish.month, wish.act, now_ms=await database_ms(session, clock)
                )
            period = await _closed(session, wish, draft, signer=signer)
            await session.commit()
            return Closing(period, is_new=True, warnings=warnings)
    raise AssertionError("the last draft is sealed or found closed")


async def _drafted(sessions: SessionFactory, wish: Wish, clock: Clock) -> Draft:
    """The report as of one instant; nobody waits for it."""
    async with sessions() as session:
        await take_snapshot(session)
        return await draft_of(session, wish.month, wish.act, now_ms=await database_ms(session, clock))


async def _preconditions(session: AsyncSession, wish: Wish, clock: Clock) -> tuple[str, ...]:
    month, now_ms = wish.month, await database_ms(session, clock)
    require_over(month, now_ms=now_ms, grace_ms=wish.grace_ms, is_early=wish.is_early)
    await require_in_order(session, month)
    missing = await missing_supply(session, wish.terms or {}, month)
    if missing:
        said = ", ".join(f"{hours} of {pool}" for pool, hours in sorted(missing.items()))
        raise Conflict(
            f"Pool-hours of {month.id} are not frozen yet: {said}. A running gateway freezes them"
            " TOLLGATE_SUPPLY__GRACE_S after their end: close the month then."
        )
    open_ends = []
    waiting = await unbooked(session, set(wish.in_spools))
    if waiting:
        open_ends.append(f"{len(waiting)} attempts wait in spools of this machine, such as {min(waiting)}")
    lost = await lent_and_lost(session, month)
    if lost:
        open_ends.append(
            f"{usd_text(lost)} USD was lent to processes that died and whose records are missing"
        )
    if open_ends and not wish.is_early:
        raise Conflict(
            f"Usage of {month.id} may still arrive: {'; '.join(open_ends)}. Start the gateway that has them,"
            " or close it `--now`: what arrives later becomes a correction in the next period."
        )
    if wish.is_early and now_ms < month.end_ms + wish.grace_ms:
        open_ends.append(f"closed before its grace is over at {instant_text(month.end_ms + wish.grace_ms)}")
    return tuple(f"{each}: what arrives later is a correction in the next period" for each in open_ends)


async def _look_at_the_books(sessions: SessionFactory, wish: Wish, clock: Clock) -> None:
    async with sessions() as session:
        await take_snapshot(session)
        extent = Extent(
            since_ms=wish.month.start_ms,
            now_ms=await database_ms(session, clock),
            grace_ms=wish.slice_grace_ms,
        )
        broken = [finding async for finding in examine(session, extent) if finding.breaches]
    if broken:
        raise BooksAreWrong(broken)


async def _closed(session: AsyncSession, wish: Wish, draft: Draft, *, signer: Signer) -> ClosedPeriod:
    """Seal a draft that still holds; the caller has the lock and commits."""
    month = wish.month
    before = await closed_periods(session)
    seal = encode(
        {
            "format": FORMAT,
            "period": month.id,
            "report_sha256": draft.sha256,
            "report_bytes": draft.body_bytes,
            "previous_period": before[-1].id if before else None,
            "previous_seal_sha256": before[-1].seal_sha256 if before else NO_SEAL,
            "ledger_high_water": draft.high_water,
            "closed_at": instant_text(draft.at_ms),
            "closed_by": wish.act.actor.id,
            "public_key": signer.public_key,
        }
    )
    totals = draft.totals
    row = ClosedPeriod(
        id=month.id,
        name=month.id,
        start_ms=month.start_ms,
        end_ms=month.end_ms,
        report=draft.compressed,
        report_bytes=draft.body_bytes,
        report_sha256=draft.sha256,
        seal=seal.decode(),
        seal_sha256=hashlib.sha256(seal).hexdigest(),
        signature=signer.sign(seal),
        public_key=signer.public_key,
        closed_at_ms=draft.at_ms,
        closed_by=wish.act.actor.id,
        high_water=draft.high_water,
        charge_usd_nanos=nanos_of(totals["charge_usd"]),
        platform_usd_nanos=nanos_of(totals["platform_usd"]),
        adjustments_usd_nanos=nanos_of(totals["adjustments_usd"]),
        supply_usd_nanos=nanos_of(totals["supply_usd"]),
    )
    await write(session, wish.act, "period.close", row=row)
    return row


def report_of(period: ClosedPeriod) -> bytes:
    """The closed report, byte for byte as it was written."""
    return zlib.decompress(period.report)


@dataclass(frozen=True, slots=True)
class Check:
    """Whether one thing about a closed period holds."""

    what: str
    holds: bool
    why: str = ""
    """What is wrong."""


async def verify_period(session: AsyncSession, month: Month, signer: Signer) -> list[Check]:
    """Is a closed month still what it was? Read again from the attempts; the session is a fresh one.

    Raises:
        NotFound: it is not closed.
    """
    await take_snapshot(session)
    period = await require_closed(session, month)
    checks = [*_of_bytes(period), *_of_seal(period, signer), await _of_chain(session, period)]
    try:
        stored = msgspec.json.decode(report_of(period))["ledger"]
    except (zlib.error, msgspec.DecodeError, KeyError):
        return [*checks, Check("the report says what the ledger says", holds=False, why="it is unreadable")]
    again = await ledger_section(session, start_ms=month.start_ms, end_ms=month.end_ms, by_attempts=True)
    now = msgspec.json.decode(encode(again))
    # Totals follow from the others: what differs in those says more.
    differing = sorted((name for name in stored if stored[name] != now.get(name)), key="totals".__eq__)
    why = "" if not differing else f"{', '.join(differing)}: {_first_difference(stored, now, differing[0])}"
    return [*checks, Check("the report says what the ledger says", holds=not differing, why=why)]


def _first_difference(stored: dict[str, Any], now: dict[str, Any], name: str) -> str:
    was, found = stored[name], now[name]
    if name in {"usage", "corrections"}:
        known = {encode(row) for row in was["rows"]}
        fresh = {encode(row) for row in found["rows"]}
        lost, new = sorted(known - fresh), sorted(fresh - known)
        shown = (lost or [b"nothing"])[0].decode(), (new or [b"nothing"])[0].decode()
        return f"{len(lost)} rows closed as {shown[0]} are now {shown[1]}"
    return f"closed as {encode(was)[:200].decode()}, now {encode(found)[:200].decode()}"


def _of_bytes(period: ClosedPeriod) -> list[Check]:
    try:
        body = report_of(period)
    except zlib.error as error:
        return [Check("the report has its hash", holds=False, why=f"it is unreadable: {error}")]
    sha256 = hashlib.sha256(body).hexdigest()
    return [
        Check(
            "the report has its hash",
            holds=sha256 == period.report_sha256,
            why="" if sha256 == period.report_sha256 else f"it is {sha256}, not {period.report_sha256}",
        )
    ]


def _of_seal(period: ClosedPeriod, signer: Signer) -> list[Check]:
    seal = period.seal.encode()
    said: dict[str, Any] = msgspec.json.decode(seal)
    wanted = {
        "period": period.id,
        "report_sha256": period.report_sha256,
        "report_bytes": period.report_bytes,
        "closed_at": instant_text(period.closed_at_ms),
        "closed_by": period.closed_by,
        "ledger_high_water": period.high_water,
        "public_key": period.public_key,
    }
    differing = [name for name, value in wanted.items() if said.get(name) != value]
    is_hash = hashlib.sha256(seal).hexdigest() == period.seal_sha256
    known = signer.knows(period.public_key)
    return [
        Check(
            "the seal says what the period says",
            holds=not differing and is_hash,
            why=f"it says otherwise of {', '.join(differing) or 'its own hash'}"
            if differing or not is_hash
            else "",
        ),
        Check(
            "the seal is signed",
            holds=is_signed(seal, signature=period.signature, public_key=period.public_key),
        ),
        Check(
            "by a secret key of this installation",
            holds=known,
            why=""
            if known
            else f"none of TOLLGATE_SECRET_KEY makes the public key {period.public_key}:"
            " keep old keys in its list, after the new one",
        ),
    ]


async def _of_chain(session: AsyncSession, period: ClosedPeriod) -> Check:
    periods = await closed_periods(session)
    at = [each.id for each in periods].index(period.id)
    before = periods[at - 1] if at else None
    wanted = (NO_SEAL, None) if before is None else (before.seal_sha256, before.id)
    said = msgspec.json.decode(period.seal)
    holds = (said.get("previous_seal_sha256"), said.get("previous_period")) == wanted
    follows = before is None or before.end_ms == period.start_ms
    return Check(
        "it follows the period before",
        holds=holds and follows,
        why="" if holds and follows else f"the seal before is {wanted[0]}, of {wanted[1]}",
    )
