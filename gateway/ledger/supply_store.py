"""Where are replica time, bills and their lines kept, and which attempts were in which engine? All SQL of it.

Flushes, never commits. Hours are frozen once, in order, pool by pool; what comes to be known of a frozen hour
later is booked in the next hour that is frozen, as a correction that names it. Which attempts a frozen hour
knows of is exact: those booked before an instant that it names, and the next pass begins there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import case, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from backends.replica_time import Phase, Run
from backends.supply_spec import Count, PriceKind
from gateway.db import insert_ignoring_duplicates
from gateway.inference import Payer, UsageSource
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.supply import (
    METHOD,
    MS_PER_HOUR,
    NOTHING,
    Key,
    Line,
    LineKind,
    PoolHour,
    Price,
    ReplicaMs,
    Span,
    Terms,
    TokenWeights,
    Work,
)
from gateway.ledger.supply_tables import ReplicaPhase, ReplicaRun, SupplyHour, SupplyLine
from gateway.ledger.tables import Attempt, JournalTransaction

LONGEST_MS = 4 * MS_PER_HOUR
"""No attempt takes longer (`timeouts.stream_total_s` is an hour): older ones are not looked at."""
_UPKEEP = {kind.value: kind for kind in (LineKind.WARM_UP, LineKind.HEARTBEAT, LineKind.EVALUATION)}
TIMES = ("starting_ms", "serving_ms", "busy_ms", "asleep_ms", "broken_ms", "unused_ms")


# ------------------------------------------------------------------------------------------- replica time
async def record_runs(session: AsyncSession, runs: Sequence[Run], *, source: str) -> None:
    """Take over what drivers wrote; again and from several processes without harm."""
    rows = [
        {"run_id": run.id, "source": source, "seen_until_ms": run.seen_until_ms, "is_over": run.is_over}
        for run in runs
    ]
    await insert_ignoring_duplicates(session, ReplicaRun, rows)
    phases = [
        {
            "run_id": run.id,
            "number": change.number,
            "pool": change.pool,
            "replica": change.replica,
            "phase": change.phase.value,
            "at_ms": change.at_ms,
        }
        for run in runs
        for change in run.changes
    ]
    await insert_ignoring_duplicates(session, ReplicaPhase, phases)
    for run in runs:
        await extend_run(session, run.id, seen_until_ms=run.seen_until_ms, is_over=run.is_over)


async def extend_run(session: AsyncSession, run_id: str, *, seen_until_ms: int, is_over: bool) -> None:
    """It was seen until then; never back."""
    await session.execute(
        update(ReplicaRun)
        .where(
            col(ReplicaRun.run_id) == run_id,
            (col(ReplicaRun.seen_until_ms) < seen_until_ms) | (col(ReplicaRun.is_over) != is_over),
        )
        .values(
            seen_until_ms=case(
                (col(ReplicaRun.seen_until_ms) < seen_until_ms, seen_until_ms),
                else_=col(ReplicaRun.seen_until_ms),
            ),
            is_over=is_over,
        )
    )


async def open_observations(session: AsyncSession, *, since_ms: int) -> dict[tuple[str, str], str]:
    """Runs that gateways observe and that are not over, by pool and replica."""
    found = await session.execute(
        select(col(ReplicaPhase.pool), col(ReplicaPhase.replica), col(ReplicaRun.run_id))
        .join(ReplicaRun, col(ReplicaRun.run_id) == col(ReplicaPhase.run_id))
        .where(
            col(ReplicaRun.source) == "observed",
            col(ReplicaRun.is_over).is_(False),
            col(ReplicaRun.seen_until_ms) >= since_ms,
        )
    )
    return {(pool, replica): run_id for pool, replica, run_id in found}


async def spans_of(session: AsyncSession, *, start_ms: int, end_ms: int) -> dict[str, list[Span]]:
    """Replica time that touches an interval, by pool."""
    found = await session.execute(
        select(
            col(ReplicaPhase.run_id),
            col(ReplicaPhase.pool),
            col(ReplicaPhase.replica),
            col(ReplicaPhase.phase),
            col(ReplicaPhase.at_ms),
            col(ReplicaRun.seen_until_ms),
        )
        .join(ReplicaRun, col(ReplicaRun.run_id) == col(ReplicaPhase.run_id))
        .where(col(ReplicaRun.seen_until_ms) > start_ms, col(ReplicaPhase.at_ms) < end_ms)
        .order_by(col(ReplicaPhase.run_id), col(ReplicaPhase.number))
    )
    changes: defaultdict[tuple[str, str, str], list[tuple[Phase, int, int]]] = defaultdict(list)
    for run_id, pool, replica, phase, at_ms, seen_ms in found:
        changes[run_id, pool, replica].append((Phase(phase), at_ms, seen_ms))
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    for (_, pool, replica), of_replica in changes.items():
        ends = [at_ms for _, at_ms, _ in of_replica[1:]]
        for (phase, at_ms, seen_ms), over_ms in zip(of_replica, [*ends, None], strict=True):
            until_ms = seen_ms if over_ms is None else over_ms
            if until_ms > start_ms and at_ms < until_ms:
                spans[pool].append(Span(replica, phase, at_ms, until_ms))
    return spans


async def last_seen(session: AsyncSession) -> dict[str, int]:
    """By pool: until when a replica of it was seen, epoch ms."""
    found = await session.execute(
        select(col(ReplicaPhase.pool), func.max(ReplicaRun.seen_until_ms))
        .join(ReplicaRun, col(ReplicaRun.run_id) == col(ReplicaPhase.run_id))
        .group_by(col(ReplicaPhase.pool))
    )
    return {pool: int(seen_ms) for pool, seen_ms in found}


# ----------------------------------------------------------------------------------------------- attempts
async def works_of(
    session: AsyncSession,
    pool: str,
    weights: TokenWeights,
    *,
    start_ms: int,
    end_ms: int,
    booked_before_ms: int | None = None,
) -> list[Work]:
    """Attempts that were in the engines of a pool in an interval.

    Args:
        session: where to ask.
        pool: which.
        weights: of tokens.
        start_ms: first instant.
        end_ms: first instant after it.
        booked_before_ms: only those booked before; None: all that there are.
    """
    query = select(
        col(Attempt.attempt_id),
        col(Attempt.replica),
        col(Attempt.started_at_ms),
        col(Attempt.ended_at_ms),
        col(Attempt.queue_ms),
        (col(Attempt.input_tokens) + col(Attempt.cache_write_tokens)),
        col(Attempt.cached_input_tokens),
        (col(Attempt.output_tokens) + col(Attempt.reasoning_tokens)),
        col(Attempt.payer),
        col(Attempt.tenant_id),
        col(Attempt.project_id),
        col(Attempt.key_id),
        col(Attempt.model_alias),
        col(Attempt.task),
    ).where(*_in_an_engine(pool, start_ms, end_ms))
    if booked_before_ms is not None:
        query = query.join(JournalTransaction, col(JournalTransaction.id) == col(Attempt.journal_id)).where(
            col(JournalTransaction.at_ms) < booked_before_ms
        )
    works = []
    for row in await session.execute(query):
        attempt_id, replica, started_ms, ended_ms, queue_ms, read, cached, written, payer, *about = row
        # A queue that is longer than the attempt is of an engine that measures otherwise.
        began_ms = min(started_ms + round(queue_ms or 0), max(started_ms, ended_ms))
        kind = _kind_of(payer, about[0], about[-1])
        works.append(
            Work(
                attempt_id=attempt_id,
                replica=replica,
                start_ms=began_ms,
                end_ms=max(ended_ms, began_ms + 1),
                units=weights.units(read, cached, written),
                key=Key(kind, *about),
            )
        )
    return works


def _in_an_engine(pool: str, start_ms: int, end_ms: int) -> list[Any]:
    return [
        col(Attempt.pool) == pool,
        col(Attempt.started_at_ms) >= start_ms - LONGEST_MS,
        col(Attempt.started_at_ms) < end_ms,
        col(Attempt.ended_at_ms) >= start_ms,
        col(Attempt.usage_source) != UsageSource.NONE.value,
        col(Attempt.cache) != "hit",
    ]


def _kind_of(payer: str, tenant_id: str, task: str) -> LineKind:
    if tenant_id == PLATFORM_TENANT:
        return _UPKEEP.get(task, LineKind.EVALUATION)
    return LineKind.REQUEST if payer == Payer.TENANT.value else LineKind.FAILED


async def hours_of_late(
    session: AsyncSession, pool: str, *, booked_from_ms: int, booked_before_ms: int, before_ms: int
) -> set[int]:
    """Hours before an instant that attempts touch which were booked between two others."""
    found = await session.execute(
        select(col(Attempt.started_at_ms), col(Attempt.ended_at_ms))
        .join(JournalTransaction, col(JournalTransaction.id) == col(Attempt.journal_id))
        .where(
            col(JournalTransaction.at_ms) >= booked_from_ms,
            col(JournalTransaction.at_ms) < booked_before_ms,
            col(Attempt.pool) == pool,
            col(Attempt.started_at_ms) < before_ms,
            col(Attempt.usage_source) != UsageSource.NONE.value,
            col(Attempt.cache) != "hit",
        )
    )
    hours: set[int] = set()
    for started_ms, ended_ms in found:
        first, last = started_ms // MS_PER_HOUR, min(max(ended_ms, started_ms), before_ms - 1) // MS_PER_HOUR
        hours |= {hour * MS_PER_HOUR for hour in range(first, last + 1)}
    return hours


# -------------------------------------------------------------------------------------------------- bills
async def frontiers(session: AsyncSession) -> dict[str, tuple[int, int]]:
    """By pool: the last hour that is frozen, and before which instant its attempts were booked."""
    found = await session.execute(
        select(
            col(SupplyHour.pool),
            func.max(SupplyHour.hour_start_ms),
            func.max(SupplyHour.booked_before_ms),
        ).group_by(col(SupplyHour.pool))
    )
    return {pool: (int(hour), int(before)) for pool, hour, before in found}


@dataclass(frozen=True, slots=True)
class Booked:
    """What is booked of a frozen hour so far, corrections included."""

    terms: Terms
    """Those that it was frozen with."""
    bill_usd_nanos: int
    time: ReplicaMs
    lines: dict[Key, Line]


async def booked_of(session: AsyncSession, terms: Terms, hours: Sequence[int]) -> dict[int, Booked]:
    """What is booked of those hours of a pool that are frozen."""
    if not hours:
        return {}
    booked: dict[int, Booked] = {}
    bills = await session.execute(
        select(SupplyHour)
        .where(col(SupplyHour.pool) == terms.pool, col(SupplyHour.corrects_hour_ms).in_(hours))
        .order_by(col(SupplyHour.hour_start_ms))
    )
    for bill in bills.scalars():
        hour_ms, time = bill.corrects_hour_ms, ReplicaMs(*(getattr(bill, name) for name in TIMES))
        before = booked.get(hour_ms)
        if before is None:  # the first is the bill itself, what follows corrects it
            booked[hour_ms] = Booked(_terms_of(bill), bill.bill_usd_nanos, time, {})
        else:
            total = before.bill_usd_nanos + bill.bill_usd_nanos
            booked[hour_ms] = Booked(before.terms, total, before.time + time, {})
    keys = [getattr(SupplyLine, name) for name in Key._fields]
    sums = [func.sum(getattr(SupplyLine, name)) for name in ("cost_usd_nanos", "engine_us", "attempts")]
    lines = await session.execute(
        select(col(SupplyLine.corrects_hour_ms), *keys, *sums)
        .where(col(SupplyLine.pool) == terms.pool, col(SupplyLine.corrects_hour_ms).in_(hours))
        .group_by(col(SupplyLine.corrects_hour_ms), *keys)
    )
    for hour_ms, kind, *rest in lines:
        *about, cost, engine_us, attempts = rest
        line = Line(int(cost), int(engine_us), int(attempts))
        if line != NOTHING:
            booked[hour_ms].lines[Key(LineKind(kind), *about)] = line
    return booked


def _terms_of(bill: SupplyHour) -> Terms:
    prices = tuple(
        Price(each["since_ms"], PriceKind(each["kind"]), each["usd_nanos_per_hour"]) for each in bill.prices
    )
    is_declared = bill.time_source == Count.DECLARED.value
    return Terms(
        pool=bill.pool,
        prices=prices,
        count=Count.DECLARED if is_declared else Count.SEEN,
        time_source=bill.time_source,
        replicas=tuple(f"{bill.pool}-{index}" for index in range(bill.replicas)),
        gpus_per_replica=bill.gpus_per_replica,
        weights=TokenWeights.parse(bill.weights),
    )


async def terms_of_gone(session: AsyncSession, pools: Collection[str]) -> dict[str, Terms]:
    """Terms of pools that have no file any more: those of their last bill, with nothing reserved."""
    gone: dict[str, Terms] = {}
    is_bill = col(SupplyHour.corrects_hour_ms) == col(SupplyHour.hour_start_ms)
    for pool in pools:
        found = await session.execute(
            select(SupplyHour)
            .where(col(SupplyHour.pool) == pool, is_bill)
            .order_by(col(SupplyHour.hour_start_ms).desc())
            .limit(1)
        )
        bill = found.scalar_one_or_none()
        if bill is not None:
            gone[pool] = replace(_terms_of(bill), replicas=())
    return gone


async def book_hour(
    session: AsyncSession,
    terms: Terms,
    hour: PoolHour,
    *,
    booked_in_ms: int,
    booked_before_ms: int,
    now_ms: int,
) -> None:
    """Freeze a bill, or a correction; once for ever.

    Args:
        session: the caller's transaction.
        terms: how it is paid for.
        hour: the bill; of a correction what has to be added.
        booked_in_ms: the hour in which it counts.
        booked_before_ms: which attempts it knows of.
        now_ms: epoch ms.
    """
    of_bill = {"hour_start_ms": booked_in_ms, "pool": hour.pool, "corrects_hour_ms": hour.hour_start_ms}
    row = {
        **of_bill,
        "bill_usd_nanos": hour.bill_usd_nanos,
        **{name: getattr(hour.time, name) for name in TIMES},
        "gpus_per_replica": terms.gpus_per_replica,
        "prices": [
            {
                "since_ms": price.since_ms,
                "kind": price.kind.value,
                "usd_nanos_per_hour": price.usd_nanos_per_hour,
            }
            for price in hour.prices
        ],
        "time_source": terms.time_source,
        "method": METHOD,
        "weights": terms.weights.text(),
        "replicas": len(terms.replicas),
        "attempts": hour.attempts,
        "booked_before_ms": booked_before_ms,
        "frozen_at_ms": now_ms,
    }
    await session.execute(insert(SupplyHour), [row])
    lines = [
        {
            **of_bill,
            **key._asdict(),
            "line": key.line.value,
            "cost_usd_nanos": line.usd_nanos,
            "engine_us": line.engine_us,
            "attempts": line.attempts,
        }
        for key, line in hour.lines.items()
    ]
    if lines:
        await session.execute(insert(SupplyLine), lines)
