"""Which stored version may stand beside the active one, as a canary or as a shadow?"""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit import Act
from gateway.errors import Conflict, InvalidRequest
from gateway.policy_life import Fitting, Proposal, Supply, draft, fit, refuse_large
from gateway.pricing.store import remember_versions
from gateway.routing.canaries import live_canary
from gateway.routing.shadows import live_shadow
from gateway.routing.versions import Activation, find_version, lock_activations, read_active, refuse_other
from gateway.routing.versions import text_of as stored_text


async def active_alone(session: AsyncSession, *, now_ms: int, expected: str | None) -> Activation:
    """What is active, with nothing beside it; nobody else may begin anything until the transaction ends.

    Args:
        session: the caller's.
        now_ms: a shadow may be over by then.
        expected: the version that must be active; None: any.

    Raises:
        Conflict: nothing is, another version is, or a canary or a shadow stands beside it.
    """
    await lock_activations(session)
    active = await read_active(session)
    refuse_other(active, expected)
    if active is None:
        raise Conflict("No policy is active that a candidate could stand beside: start a gateway first.")
    canary = await live_canary(session)
    if canary is not None:
        raise Conflict(
            f"Canary {canary.number} ({canary.version}) is under way: stop or promote it first"
            " (`tollgate policy canary stop`)."
        )
    shadow = await live_shadow(session, now_ms=now_ms)
    if shadow is not None:
        raise Conflict(
            f"Shadow {shadow.number} ({shadow.version}) is under way: stop it first"
            " (`tollgate policy shadow stop`)."
        )
    return active


async def candidate_of(
    session: AsyncSession,
    candidate: str | Proposal,
    active: Activation,
    *,
    models: frozenset[str],
    act: Act,
    supply: Supply,
) -> str:
    """A version that could serve; what rows will refer to is written down.

    Args:
        session: the caller's.
        candidate: a stored version, or a policy that is stored with it.
        active: what it shall stand beside.
        models: aliases that it must have.
        act: who does it, and when.
        supply: what there is.

    Raises:
        ConfigurationError: it is no policy, or does not fit what there is.
        Conflict: it is active already.
        NotFound, InvalidRequest: there is no such version, or several; or it lacks an alias.
        PayloadTooLarge: its text is longer than a policy may be.
    """
    if isinstance(candidate, Proposal):
        refuse_large(candidate.text, source=candidate.source)
        await asyncio.to_thread(fit, candidate.text, source=candidate.source, supply=supply)
        version = (await draft(session, candidate, act=act, supply=supply)).version
    else:
        version = await find_version(session, candidate)
    if version == active.version:
        raise Conflict(f"{version} is active already: there is nothing to compare.")
    text = await stored_text(session, version)
    # Reading YAML takes milliseconds, in which requests must not stand still.
    fitting: Fitting = await asyncio.to_thread(fit, text, source=version, supply=supply)
    prices = {name: card.price for name, card in fitting.cards.items() if card.price is not None}
    await remember_versions(session, prices, now_ms=act.at_ms)
    unknown = sorted(models - fitting.policy.models.keys())
    if unknown:
        raise InvalidRequest(f"The candidate has no alias {unknown[0]!r}.", param="models")
    return version
