"""How is a charge corrected that is posted and never changes? By a booking that two people agree on.

One proposes a credit or a correction, another one approves it, and only then the journal gets a transaction:
the account owes more or less, `adjustments` is its counterpart. It counts in the month in which it is booked,
whatever month it is about, and reports show it as a line of its own beside the charge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, case, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.audit import Act, write
from gateway.db import begin_writing, metadata
from gateway.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from gateway.inference import new_id
from gateway.ledger.cuts import PERIODS, Cut, period_bounds
from gateway.ledger.journal import write_transaction
from gateway.ledger.late_usage import lock_periods
from gateway.ledger.period_tables import Adjustment, Proposal, Reconciliation
from gateway.ledger.posting import PLATFORM
from gateway.money import NANOS_PER_USD, USD_MAX, usd_text

KINDS = ("credit", "correction", "reconciliation")
COUNTERPART = "adjustments"
"""The journal's account against which all of them are booked."""
REASON_CHARS = 512
PIECE_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class NewAdjustment:
    """What somebody proposes."""

    kind: str
    tenant_id: str
    """`platform`: our own account."""
    amount_usd_nanos: int
    """Negative: the account owes less."""
    reason: str
    charge_month: str | None = None
    pool: str | None = None
    reconciliation_id: str | None = None
    gap: str | None = None

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidRequest: says what.
        """
        if self.kind not in KINDS:
            raise InvalidRequest(
                f"`kind` is one of {', '.join(KINDS)}, not {self.kind[:40]!r}.", param="kind"
            )
        if not self.amount_usd_nanos:
            raise InvalidRequest(
                "An adjustment of nothing is none: say an amount in USD.", param="amount_usd"
            )
        if abs(self.amount_usd_nanos) > USD_MAX * NANOS_PER_USD:
            raise InvalidRequest("The amount is larger than any that is kept.", param="amount_usd")
        if self.kind == "credit" and self.amount_usd_nanos > 0:
            raise InvalidRequest(
                "A credit makes an account owe less: its amount is below zero, such as -12.50.",
                param="amount_usd",
            )
        if not self.reason.strip() or len(self.reason) > REASON_CHARS:
            raise InvalidRequest(
                f"Say why, in 1 to {REASON_CHARS} characters: people sign for it.", param="reason"
            )


async def propose(session: AsyncSession, new: NewAdjustment, *, act: Act) -> Proposal:
    """Write down what somebody proposes; nothing is booked.

    Raises:
        InvalidRequest: it makes no sense.
    """
    new.check()
    row = Proposal(
        id=new_id("adj_", act.at_ms),
        name=f"{new.kind} {usd_text(new.amount_usd_nanos)} {new.charge_month or ''}".strip(),
        kind=new.kind,
        tenant_id=new.tenant_id,
        amount_usd_nanos=new.amount_usd_nanos,
        charge_month=new.charge_month,
        pool=new.pool,
        reason=new.reason.strip(),
        reconciliation_id=new.reconciliation_id,
        gap=new.gap,
        state="proposed",
        proposed_by=act.actor.id,
        proposed_at_ms=act.at_ms,
    )
    await write(session, act, "adjustment.propose", row=row)
    return row


async def decide(
    session: AsyncSession, proposal_id: str, *, is_approved: bool, act: Act, now_ms: int
) -> Proposal:
    """A second person approves, and it is booked, or rejects it. Who is a second person: `two_people`.

    Args:
        session: a fresh one; committed by the caller.
        proposal_id: which.
        is_approved: or rejected.
        act: by whom.
        now_ms: the database's clock; its month is the one in which it counts.

    Raises:
        NotFound: there is none.
        Conflict: it is decided already.
        PermissionDenied: whoever proposed it wants to approve it.
    """
    await begin_writing(session)
    found = await session.execute(select(Proposal).where(col(Proposal.id) == proposal_id).with_for_update())
    row = _known(found.scalar_one_or_none(), proposal_id)
    if row.state != "proposed":
        raise Conflict(f"{row.id} was {row.state} by {row.decided_by} already.")
    if is_approved and row.proposed_by == act.actor.id:
        raise PermissionDenied(
            f"{row.id} was proposed by {row.proposed_by}: a second person approves it, with another key."
        )
    changes = {"state": "rejected", "decided_by": act.actor.id, "decided_at_ms": now_ms}
    if is_approved:
        changes |= {"state": "approved", "journal_id": await _book(session, row, now_ms=now_ms)}
    verb = "approve" if is_approved else "reject"
    await write(session, act, f"adjustment.{verb}", row=row, changes=changes)
    return row


async def get_proposal(session: AsyncSession, proposal_id: str) -> Proposal:
    """One of them.

    Raises:
        NotFound: there is none.
    """
    found = await session.execute(select(Proposal).where(col(Proposal.id) == proposal_id))
    return _known(found.scalar_one_or_none(), proposal_id)


def _known(row: Proposal | None, proposal_id: str) -> Proposal:
    if row is None:
        raise NotFound(
            f"There is no proposal {proposal_id[:64]!r}: `tollgate period adjustments` lists them."
        )
    return row


async def withdraw(session: AsyncSession, row: Proposal, *, act: Act) -> None:
    """Reject an open proposal because another one takes its place; flushed."""
    changes = {"state": "rejected", "decided_by": act.actor.id, "decided_at_ms": act.at_ms}
    await write(session, act, "adjustment.reject", row=row, changes=changes)


async def _book(session: AsyncSession, row: Proposal, *, now_ms: int) -> str:
    await lock_periods(session, exclusively=False)
    journal_id, amount = new_id("jtx_", now_ms), row.amount_usd_nanos
    account = PLATFORM if row.tenant_id == PLATFORM else f"tenant:{row.tenant_id}"
    await write_transaction(
        session,
        journal_id,
        kind="adjustment",
        owed={account: amount, COUNTERPART: -amount},
        now_ms=now_ms,
        note=f"{row.id}: {row.reason}"[:256],
    )
    await session.execute(
        insert(metadata.tables["adjustments"]),
        [
            {
                "id": row.id,
                "journal_id": journal_id,
                "kind": row.kind,
                "tenant_id": row.tenant_id,
                "amount_usd_nanos": amount,
                "charge_month": row.charge_month,
                "pool": row.pool,
                "reason": row.reason,
                "at_ms": now_ms,
            }
        ],
    )
    return journal_id


async def list_proposals(session: AsyncSession, *, only_open: bool) -> list[Proposal]:
    """Proposals, the newest first."""
    statement = select(Proposal).order_by(col(Proposal.proposed_at_ms).desc(), col(Proposal.id).desc())
    if only_open:
        statement = statement.where(col(Proposal.state) == "proposed")
    return list((await session.execute(statement.limit(1_000))).scalars())


async def proposals_of(session: AsyncSession, reconciliation_id: str) -> list[Proposal]:
    """Those that come from one comparison, in their order."""
    found = await session.execute(
        select(Proposal)
        .where(col(Proposal.reconciliation_id) == reconciliation_id)
        .order_by(col(Proposal.id))
    )
    return list(found.scalars())


async def standing_proposals(session: AsyncSession, *, kind: str, month: str) -> list[Proposal]:
    """What comparisons of a month have proposed and nobody has rejected, the oldest first.

    Args:
        session: where to ask.
        kind: of the bills: provider or gpu.
        month: such as 2026-10.
    """
    found = await session.execute(
        select(Proposal)
        .join(Reconciliation, col(Reconciliation.id) == col(Proposal.reconciliation_id))
        .where(
            col(Reconciliation.kind) == kind,
            col(Reconciliation.period) == month,
            col(Proposal.state) != "rejected",
            col(Proposal.gap).is_not(None),
        )
        .order_by(col(Proposal.proposed_at_ms), col(Proposal.id))
    )
    return list(found.scalars())


@dataclass(frozen=True, slots=True)
class AdjustmentLine:
    """What was booked in a report's time, of one kind, tenant and month."""

    kind: str
    tenant_id: str
    charge_month: str | None
    amount_usd_nanos: int
    count: int


async def adjustment_lines(session: AsyncSession, cut: Cut) -> tuple[AdjustmentLine, ...]:
    """Adjustments booked between the bounds of a cut, summed up; see `adjustments_in` for which."""
    conditions = _conditions(cut)
    if conditions is None:
        return ()
    keys = (col(Adjustment.kind), col(Adjustment.tenant_id), col(Adjustment.charge_month))
    statement = (
        select(*keys, func.sum(col(Adjustment.amount_usd_nanos)), func.count())
        .where(*conditions)
        .group_by(*keys)
        .order_by(*keys)
    )
    return tuple(
        AdjustmentLine(kind, tenant, month, int(amount), int(count))
        for kind, tenant, month, amount, count in await session.execute(statement)
    )


async def adjustments_in(session: AsyncSession, cut: Cut) -> AsyncIterator[Sequence[Adjustment]]:
    """The same one by one, in pieces, in the order in which they were booked.

    Of the tenants and periods that the cut's filters name. Filters by anything else leave all of them out: an
    adjustment is a tenant's, not a pool's or a task's.
    """
    conditions = _conditions(cut)
    if conditions is None:
        return
    found = await session.stream(
        select(Adjustment).where(*conditions).order_by(col(Adjustment.at_ms), col(Adjustment.id)),
        execution_options={"yield_per": PIECE_ROWS},
    )
    async for part in found.scalars().partitions():
        yield part


@dataclass(frozen=True, slots=True)
class AdjustmentTotal:
    """What adjustments come to."""

    tenants_usd_nanos: int = 0
    platform_usd_nanos: int = 0
    """On our own account."""
    count: int = 0


async def adjustment_total(session: AsyncSession, cut: Cut) -> AdjustmentTotal:
    """What the same come to by a sum of its own."""
    conditions = _conditions(cut)
    if conditions is None:
        return AdjustmentTotal()
    amount, is_ours = col(Adjustment.amount_usd_nanos), col(Adjustment.tenant_id) == PLATFORM
    (row,) = await session.execute(
        select(
            func.sum(case((is_ours, 0), else_=amount)),
            func.sum(case((is_ours, amount), else_=0)),
            func.count(),
        ).where(*conditions)
    )
    return AdjustmentTotal(*(int(value or 0) for value in row))


def _conditions(cut: Cut) -> list[ColumnElement[bool]] | None:
    """What adjustments of a cut meet; None: it has none."""
    at = col(Adjustment.at_ms)
    conditions = [at >= cut.start_ms, at < cut.end_ms]
    for each in cut.filters:
        if each.name == "tenant":
            conditions.append(col(Adjustment.tenant_id).in_(each.values))
        elif each.name in PERIODS:
            bounds = [period_bounds(each.name, value) for value in each.values]
            conditions.append(or_(*(and_(at >= start, at < end) for start, end in bounds)))
        else:
            return None
    return conditions
