"""Is it another person who approves what somebody proposed?

A person is known by a login to the console or by an administrator's key: a key, those that it was rotated
from and into, and keys and logins of the same name are one person's. At a terminal everybody who is the same
user of the machine is one too, so an approval there is made with a key. The bootstrap key is nobody's in
particular and approves nothing.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit import Act, ActorKind
from gateway.errors import PermissionDenied
from gateway.identity.admin_store import Whoever, whoever_is
from gateway.identity.admins import BOOTSTRAP
from gateway.ledger.adjustments import decide, get_proposal
from gateway.ledger.period_tables import Proposal

_NAMED = frozenset({ActorKind.ADMIN_KEY, ActorKind.PERSON})


async def decide_as(
    session: AsyncSession,
    proposal_id: str,
    *,
    is_approved: bool,
    act: Act,
    now_ms: int,
    terminal_user: str | None = None,
) -> Proposal:
    """Approve as a second person, and it is booked; or reject, as anybody may.

    Args:
        session: a fresh one; committed by the caller.
        proposal_id: which.
        is_approved: or rejected.
        act: by whom.
        now_ms: the database's clock.
        terminal_user: who has the process, if it is done at a terminal: cli:<user of the machine>.

    Raises:
        NotFound: there is none.
        Conflict: it is decided already.
        PermissionDenied: the same person proposed it, or nobody knows who approves.
    """
    if is_approved:
        proposed_by = (await get_proposal(session, proposal_id)).proposed_by
        await _require_another(session, proposal_id, proposed_by, act=act, terminal_user=terminal_user)
        await session.rollback()  # `decide` begins with the write lock, before it reads
    return await decide(session, proposal_id, is_approved=is_approved, act=act, now_ms=now_ms)


async def _require_another(
    session: AsyncSession, proposal_id: str, proposed_by: str, *, act: Act, terminal_user: str | None
) -> None:
    begins = f"{proposal_id} was proposed by {proposed_by}: a second person approves it, with"
    if act.actor.kind not in _NAMED:
        who = "The bootstrap key is" if act.actor.id == BOOTSTRAP.id else f"{act.actor.id} is"
        raise PermissionDenied(
            f"{begins} a key of their own (`tollgate admins create`). {who} nobody's name."
        )
    proposer, approver = await whoever_is(session, proposed_by), await whoever_is(session, act.actor.id)
    if proposed_by == terminal_user:
        raise PermissionDenied(f"{begins} a key and as another user of this machine, or over the API.")
    if _are_one(proposer, approver):
        raise PermissionDenied(
            f"{begins} another key. {act.actor.id} is of the same person: it was rotated from or into the"
            " proposer's, or has the same name."
        )


def _are_one(one: Whoever, other: Whoever) -> bool:
    return one.first_key == other.first_key or one.name.casefold() == other.name.casefold()
