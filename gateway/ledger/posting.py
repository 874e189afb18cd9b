"""What is written down when attempts are booked?

One transaction for a whole batch: the attempts themselves, one booking of the journal whose entries add up
to zero, the hourly sums, what it takes from budgets and from the slices lent on them, and the receipts.
An attempt that is booked already changes nothing, whoever sends it again and however often.

Locks are taken in one order everywhere (attempts, windows by budget and start, slices, hours by key, what is
learned), so that processes wait for each other and never in a circle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import begin_writing, driver_of
from gateway.inference import AttemptState, Payer, new_id
from gateway.ledger.buckets import Bucket
from gateway.ledger.late_usage import note_late
from gateway.ledger.records import NO_RECEIPT, OURS, Ended
from gateway.ledger.slice_store import SliceState, WindowState
from gateway.ledger.writers import (
    InsertReceipts,
    Learn,
    Outcome,
    PostgresWriter,
    SessionWriter,
    Writer,
    learn_nothing,
)

MS_PER_HOUR = 3_600_000
PLATFORM = "platform"
USAGE = "usage"
_HOUR_KEYS = ("tenant_id", "project_id", "key_id", "model_alias", "pool", "task", "payer")
HOUR_SUMS = (
    "requests",
    "attempts",
    "failed_attempts",
    "unpriced_attempts",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "charge_usd_nanos",
    "cache_hits",
)


@dataclass(frozen=True, slots=True)
class Alert:
    """A share of a budget was used up just now."""

    bucket: Bucket
    percent: int
    posted_usd_nanos: int
    limit_usd_nanos: int


@dataclass(slots=True)
class Booked:
    """What a batch did."""

    count: int = 0
    """Attempts that were not booked before."""
    slices: dict[Bucket, int] = field(default_factory=dict)
    """What is left of the owner's slices of the buckets that the batch names, nano-USD."""
    alerts: list[Alert] = field(default_factory=list)
    overage_usd_nanos: int = 0
    """What no slice covered, in all buckets together."""
    contradictions: list[tuple[Ended, str]] = field(default_factory=list)
    """Attempts that are booked with another end than this one, and how."""


async def book(
    session: AsyncSession,
    batch: Sequence[Ended],
    *,
    owner_id: str,
    now_ms: int,
    insert_receipts: InsertReceipts,
    learn: Learn = learn_nothing,
    driver: Any = None,
) -> Booked:
    """Book a batch in the caller's transaction.

    Args:
        session: a fresh transaction; committed by the caller.
        batch: attempts of one process.
        owner_id: that process, whose slices cover them.
        now_ms: epoch milliseconds.
        insert_receipts: see there.
        learn: see there.
        driver: asyncpg's connection of that transaction, which has begun; None: it is looked for.

    Raises:
        BookedMeanwhile: somebody else has booked one of them just now; begin again.
        StatementError: a value is refused, or the database is away.
    """
    writer: Writer
    if session.get_bind().dialect.name == "postgresql":
        writer = PostgresWriter(driver or await driver_of(session), session, insert_receipts, learn=learn)
    else:
        await begin_writing(session)
        writer = SessionWriter(session, insert_receipts, learn)
    booked, outcome = await _book(writer, batch, owner_id=owner_id, now_ms=now_ms)
    await note_late(session, outcome.hours, outcome.journal_id, now_ms=now_ms)
    return booked


async def _book(
    writer: Writer, batch: Sequence[Ended], *, owner_id: str, now_ms: int
) -> tuple[Booked, Outcome]:
    booked = Booked()
    fresh = _fresh(booked, batch, await writer.known(batch))
    journal_id, hours = new_id("jtx_", now_ms), _hours(fresh)
    if fresh:
        await writer.insert_attempts(fresh, journal_id=journal_id)
    outcome = Outcome(journal_id, len(fresh), _owed(hours), hours)
    reached: list[Alert] = []
    # Those of a caller are one tuple, mostly: looking at each of its buckets once is enough.
    mentioned = sorted({Bucket(*each) for each in chain(*{ended.start.buckets for ended in batch})})
    if mentioned:
        windows, slices = await writer.locked(mentioned, owner_id)
        reached = _draw_on_budgets(
            booked, outcome, windows, slices=slices, spent=charges_by_bucket(fresh), owner_id=owner_id
        )
    if fresh:
        outcome.receipts = _receipts(fresh)
        await writer.write(outcome, now_ms=now_ms)
    if fresh:
        await writer.learn(fresh, now_ms=now_ms)
    if reached:
        booked.alerts += await _tell_once(writer, reached, now_ms=now_ms)
    return booked, outcome


def _fresh(booked: Booked, batch: Sequence[Ended], known: dict[str, tuple[str, int | None]]) -> list[Ended]:
    """Those that are not booked yet, each once, in the order of their ids."""
    new: dict[str, Ended] = {}
    for ended in batch:
        attempt_id = ended.start.attempt_id
        if attempt_id in known:
            _note_contradiction(booked, ended, known[attempt_id])
        elif (first := new.setdefault(attempt_id, ended)) is not ended:
            _note_contradiction(booked, ended, (first.end.state.value, first.end.charge_usd_nanos))
    booked.count = len(new)
    return [new[attempt_id] for attempt_id in sorted(new)]


def _receipts(fresh: Sequence[Ended]) -> list[dict[str, Any]]:
    no_receipt = bytes(NO_RECEIPT)
    return [
        {
            "request_id": start.request_id,
            "started_at_ms": start.started_at_ms,
            "tenant_id": start.tenant_id,
            "body": body.decode(),
        }
        for start, _ in fresh
        if (body := bytes(start.receipt)) != no_receipt
    ]


def _note_contradiction(booked: Booked, ended: Ended, known: tuple[str, int | None]) -> None:
    state, charge = known
    end = ended.end
    if (end.state.value, end.charge_usd_nanos) == (state, charge) or end.error_code == "gateway_died":
        return  # the same again, or a guess about an attempt whose true end arrived
    if end.payer is Payer.PLATFORM and end.state is AttemptState.ANSWERED:
        return  # upkeep that its driver tells again at other rates: the first price holds
    booked.contradictions.append((ended, f"booked already as {state} at {charge} nano-USD"))


def _owed(hours: list[dict[str, Any]]) -> dict[str, int]:
    """What the journal says of these sums: amounts by account, nano-USD, together zero."""
    owed: defaultdict[str, int] = defaultdict(int)
    for hour in hours:
        amount = hour["charge_usd_nanos"]
        account = f"tenant:{hour['tenant_id']}" if hour["payer"] == Payer.TENANT else PLATFORM
        owed[account] += amount
        owed[USAGE] -= amount
    return owed


def charges_by_bucket(batch: Sequence[Ended]) -> dict[Bucket, int]:
    """What these attempts draw on budgets, by the buckets in which it counts, nano-USD.

    That is what tenants pay, and what the platform's own attempts come to (see `evaluation`).
    """
    together: defaultdict[tuple[tuple[str, int], ...], int] = defaultdict(int)
    for start, end in batch:
        if end.charge_usd_nanos and (end.payer is Payer.TENANT or start.tenant_id == OURS):
            together[start.buckets] += end.charge_usd_nanos
    charges: defaultdict[Bucket, int] = defaultdict(int)
    for buckets, amount in together.items():
        for each in buckets:
            charges[Bucket(*each)] += amount
    return charges


def _draw_on_budgets(
    booked: Booked,
    outcome: Outcome,
    windows: dict[Bucket, WindowState],
    *,
    slices: dict[Bucket, SliceState],
    spent: dict[Bucket, int],
    owner_id: str,
) -> list[Alert]:
    """Take from locked buckets and their slices what was spent; returns the shares that are used up."""
    reached: list[Alert] = []
    for bucket, window in windows.items():
        slice_, amount = slices.get(bucket), spent.get(bucket, 0)
        if amount:
            overage = _draw(window, slice_, amount)
            booked.overage_usd_nanos += overage
            reached += _reached(bucket, window)
            posting = {"transaction_id": outcome.journal_id, "owner_id": owner_id, "amount_usd_nanos": amount}
            outcome.postings.append({**posting, **bucket._asdict(), "overage_usd_nanos": overage})
            outcome.windows[bucket] = window
            if slice_ is not None:
                outcome.slices.append((bucket, slice_))
        booked.slices[bucket] = 0 if slice_ is None else slice_.amount_usd_nanos
    return reached


def _draw(window: WindowState, slice_: SliceState | None, amount: int) -> int:
    """Move an amount from what was lent to what is booked; returns what no slice covered."""
    covered = 0 if slice_ is None else min(max(amount, 0), slice_.amount_usd_nanos)
    if slice_ is not None and covered:
        slice_.amount_usd_nanos -= covered
        if slice_.is_unattributed:
            window.unattributed_usd_nanos -= covered
        else:
            window.leased_usd_nanos -= covered
    # A soft budget lends nothing: it only counts.
    overage = max(amount, 0) - covered if window.is_hard else 0
    window.posted_usd_nanos += amount
    window.overage_usd_nanos += overage
    return overage


def _reached(bucket: Bucket, window: WindowState) -> list[Alert]:
    """The shares of the limit that are used up, told or not: the limit may have moved since."""
    posted, limit = window.posted_usd_nanos, window.limit_usd_nanos
    return [
        Alert(bucket, percent, posted_usd_nanos=posted, limit_usd_nanos=limit)
        for percent in window.alert_percents
        if limit * percent <= posted * 100
    ]


async def _tell_once(writer: Writer, reached: list[Alert], *, now_ms: int) -> list[Alert]:
    """Write down those that nobody was told of in their window; the windows are locked."""
    told = await writer.told(sorted({alert.bucket for alert in reached}))
    new = [alert for alert in reached if (alert.bucket, alert.percent) not in told]
    if new:
        await writer.tell(
            [
                {
                    **alert.bucket._asdict(),
                    "percent": alert.percent,
                    "at_ms": now_ms,
                    "posted_usd_nanos": alert.posted_usd_nanos,
                }
                for alert in new
            ]
        )
    return new


def _hours(fresh: Sequence[Ended]) -> list[dict[str, Any]]:
    """The hourly sums of some attempts, in the order in which they are locked."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    for start, end in fresh:
        at_ms = start.started_at_ms
        key = (
            at_ms - at_ms % MS_PER_HOUR,
            start.tenant_id,
            start.project_id,
            start.key_id,
            start.model_alias,
            start.pool,
            start.task,
            end.payer.value,
        )
        found = sums.get(key)
        if found is None:
            found = sums[key] = [0] * len(HOUR_SUMS)
        charge = end.charge_usd_nanos
        found[0] += start.attempt_number == 1
        found[1] += 1
        found[2] += end.state is AttemptState.FAILED
        found[3] += charge is None
        found[4] += end.input_tokens
        found[5] += end.cached_input_tokens
        found[6] += end.cache_write_tokens
        found[7] += end.output_tokens
        found[8] += end.reasoning_tokens
        found[9] += charge or 0
        found[10] += start.cache == "hit"
    names = ("hour_start_ms", *_HOUR_KEYS, *HOUR_SUMS)
    return [dict(zip(names, (*key, *sums[key]), strict=True)) for key in sorted(sums)]
