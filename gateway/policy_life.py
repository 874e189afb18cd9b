"""How does a policy come into force, and how does the one before come back?

Draft → checked → active → retired. What comes into force fits the fleet as whoever activates it knows it: its
pools exist, its rates can be kept, the keys of its external targets are configured. Activation is one
compare-and-swap under a lock; running gateways learn of it through `changes` (`policy_in_force.py`). All
functions flush and leave the commit to their caller. The command line and the API are two renderings of them.
Whoever reads YAML here does so in a thread: the process may be one that serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from backends.pool import PoolSpec
from backends.yaml_source import YamlSourceError, load_yaml_with_lines
from gateway.audit import Act, Actor, ActorKind, Source
from gateway.clock import instant_text
from gateway.errors import ConfigurationError, NotFound, PayloadTooLarge
from gateway.identity.roles import Role
from gateway.pricing.catalog import Card, cards_of
from gateway.pricing.store import remember_versions
from gateway.routing.policy import Policy, load_policy, parse_policy
from gateway.routing.policy_check import Severity, check_policy
from gateway.routing.versions import (
    Activation,
    Origin,
    Version,
    activate,
    find_version,
    lock_activations,
    read_active,
    record_check,
    refuse_other,
    show_version,
    store,
    text_of,
)
from gateway.settings import Settings

TEXT_BYTES_MAX = 500_000
"""Of a policy's YAML: 200 rules take a tenth of it."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What there is for a policy to name, as this process knows it."""

    pools: Mapping[str, PoolSpec]
    keys: Collection[str] | None
    """Names of the configured keys of external targets; None: those are another machine's matter."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A policy that somebody wants."""

    text: str
    source: str
    """What to call it in messages, usually its file's path."""
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Fitting:
    """A policy that could serve here."""

    policy: Policy
    cards: Mapping[str, Card]
    """What the files say that each target costs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an activation came to."""

    before: Activation | None
    """What was in force; None: nothing."""
    active: Activation
    """What is in force now."""

    @property
    def is_changed(self) -> bool:
        """Another version is in force than before."""
        return self.before is None or self.before.number != self.active.number


def fit(text: str, *, source: str, supply: Supply) -> Fitting:
    """A policy's text as what decisions use.

    Raises:
        ConfigurationError: it is wrong, or it does not fit what there is; one sentence per mistake.
    """
    policy = parse_policy(text, source=source, pools=supply.pools)
    cards = cards_of(supply.pools, {name: target.rates for name, target in policy.external.items()})
    missing = [] if supply.keys is None else policy.missing_keys(supply.keys)
    if missing:
        raise ConfigurationError("\n".join(f"{source}: {sentence}" for sentence in missing))
    return Fitting(policy, cards)


def fit_new(text: str, *, source: str, supply: Supply) -> Fitting:
    """The same for a policy that somebody wants: its rules must do what they seem to say, too.

    What was in force once may come back although a check has become stricter since.

    Raises:
        ConfigurationError: it is wrong, or it does not fit what there is; one sentence per mistake.
    """
    fitting = fit(text, source=source, supply=supply)
    prices = {name: card.price for name, card in fitting.cards.items() if card.price is not None}
    _, found = check_policy(text, source=source, pools=supply.pools, prices=prices)
    mistakes = [each.told(source) for each in found if each.severity is Severity.ERROR]
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    return fitting


def read_policy(text: str, *, source: str) -> Policy:
    """A policy's text by its grammar alone, as if every pool that it names existed: any version ever stored.

    Raises:
        ConfigurationError: it is wrong; one sentence per mistake.
    """
    try:
        value, _ = load_yaml_with_lines(text)
    except YamlSourceError as error:
        raise ConfigurationError(f"{source}:{error.line}: {error}") from None
    external = value.get("external") if isinstance(value, Mapping) else None
    outside = set(external) if isinstance(external, Mapping) else set()
    return parse_policy(text, source=source, pools=sorted(set(_words(value)) - outside))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _words(name)
            yield from _words(each)
    elif isinstance(value, list):
        for each in value:
            yield from _words(each)


# ------------------------------------------------------------------------------------------------ the steps
async def draft(session: AsyncSession, proposal: Proposal, *, act: Act, supply: Supply) -> Version:
    """Store a version, and whether it fits; nothing follows it yet.

    Raises:
        ConfigurationError: the text is not a policy.
        InvalidRequest: the message is no message.
        PayloadTooLarge: the text is longer than a policy may be.
    """
    refuse_large(proposal.text, source=proposal.source)
    policy = await asyncio.to_thread(read_policy, proposal.text, source=proposal.source)
    complaint = await asyncio.to_thread(_complaint, policy.text, source=policy.version, supply=supply)
    await store(session, policy, act=act, message=proposal.message, complaint=complaint)
    return await show_version(session, policy.version)


async def check(session: AsyncSession, wanted: str, *, act: Act, supply: Supply) -> Version:
    """Look whether a stored version fits, and write down what was found.

    Raises:
        NotFound, InvalidRequest: there is no such version, or several.
    """
    version = await find_version(session, wanted)
    text = await text_of(session, version)
    complaint = await asyncio.to_thread(_complaint, text, source=version, supply=supply)
    await record_check(session, version, act=act, complaint=complaint)
    return await show_version(session, version)


def _complaint(text: str, *, source: str, supply: Supply) -> str | None:
    """What does not fit; None: everything does."""
    try:
        fit_new(text, source=source, supply=supply)
    except ConfigurationError as error:
        return str(error)
    return None


async def publish(
    session: AsyncSession,
    proposal: Proposal,
    *,
    act: Act,
    supply: Supply,
    expected: str | None = None,
    origin: Origin = Origin.PUBLISH,
) -> Outcome:
    """Store a policy, check it and put it into force; nothing, if it is in force already.

    Args:
        session: the caller's.
        proposal: what shall be in force.
        act: who does it, and when.
        supply: what there is.
        expected: the version that must be in force now; None: any.
        origin: why.

    Raises:
        ConfigurationError: it is wrong or does not fit; nothing was stored.
        Conflict: another version is in force than expected.
        InvalidRequest: the message is no message.
        PayloadTooLarge: the text is longer than a policy may be.
    """
    # A gateway that starts takes any file that it can follow; whoever publishes is told what makes no sense.
    fits = fit if origin is Origin.SEED else fit_new
    refuse_large(proposal.text, source=proposal.source)
    fitting = await asyncio.to_thread(fits, proposal.text, source=proposal.source, supply=supply)
    await lock_activations(session)
    before = await read_active(session)
    refuse_other(before, expected)
    if before is not None and before.version == fitting.policy.version:
        return Outcome(before, before)
    return await _activated(session, fitting, before, origin=origin, act=act, message=proposal.message)


async def put_into_force(
    session: AsyncSession,
    wanted: str,
    *,
    act: Act,
    supply: Supply,
    expected: str | None = None,
    message: str | None = None,
    origin: Origin = Origin.PUBLISH,
) -> Outcome:
    """Put a stored version into force; nothing, if it is already. Arguments as those of `publish`.

    Raises:
        ConfigurationError: it does not fit (any more).
        Conflict: another version is in force than expected.
        NotFound, InvalidRequest: there is no such version, or several; or the message is no message.
    """
    await lock_activations(session)
    before = await read_active(session)
    refuse_other(before, expected)
    version = await find_version(session, wanted)
    if before is not None and before.version == version:
        return Outcome(before, before)
    text = await text_of(session, version)
    fitting = await asyncio.to_thread(fit, text, source=version, supply=supply)
    # Its name is what it was when it was stored.
    fitting = replace(fitting, policy=replace(fitting.policy, version=version))
    return await _activated(session, fitting, before, origin=origin, act=act, message=message)


async def roll_back(
    session: AsyncSession,
    wanted: str | None,
    *,
    act: Act,
    supply: Supply,
    expected: str | None = None,
    message: str | None = None,
) -> Outcome:
    """Put an older version back into force: the one before the active one, or a given one.

    Raises:
        NotFound: nothing was active before.
        ConfigurationError, Conflict, InvalidRequest: see `put_into_force`.
    """
    await lock_activations(session)
    target = wanted
    if target is None:
        active = await read_active(session)
        if active is None or active.previous is None:
            raise NotFound("There is nothing to roll back to: only one policy was ever active.")
        target = active.previous
    return await put_into_force(
        session,
        target,
        act=act,
        supply=supply,
        expected=expected,
        message=message,
        origin=Origin.ROLLBACK,
    )


async def _activated(
    session: AsyncSession,
    fitting: Fitting,
    before: Activation | None,
    *,
    origin: Origin,
    act: Act,
    message: str | None,
) -> Outcome:
    # Before any row refers to them.
    prices = {name: card.price for name, card in fitting.cards.items() if card.price is not None}
    await remember_versions(session, prices, now_ms=act.at_ms)
    active = await activate(session, fitting.policy, after=before, origin=origin, act=act, message=message)
    return Outcome(before, active)


def refuse_large(text: str, *, source: str) -> None:
    """Insist that a text is not longer than a policy may be, before anybody reads it.

    Raises:
        PayloadTooLarge: it is.
    """
    # "surrogatepass": what cannot be encoded is told by whoever reads it.
    size_bytes = len(text.encode(errors="surrogatepass"))
    if size_bytes > TEXT_BYTES_MAX:
        raise PayloadTooLarge(
            f"{source}: a policy has at most {TEXT_BYTES_MAX:,} bytes, this one {size_bytes:,}."
        )


# ------------------------------------------------------------------------------------------- what is in force
def supply_of(settings: Settings, pools: Mapping[str, PoolSpec]) -> Supply:
    """What there is by these settings."""
    return Supply(pools, frozenset(settings.external_keys))


async def begin(session: AsyncSession, settings: Settings, supply: Supply, *, at_ms: int) -> Activation:
    """What is in force as a gateway starts. Where nobody has published anything, the policy's file is seeded.

    On an embedded install the file is followed from start to start until somebody publishes: whoever edits it
    and starts again expects that. Several replicas may have several files: there the first start counts.

    Raises:
        ConfigurationError: the file is needed and wrong.
    """
    active = await read_active(session)
    if active is not None and not is_the_files(active, settings):
        return active
    policy = load_policy(settings.policy, pools=supply.pools)
    if active is not None and active.version == policy.version:
        return active
    actor = Actor(kind=ActorKind.GATEWAY, id="gateway", name="gateway", role=Role.ADMIN)
    act = Act(actor=actor, source=Source.START, at_ms=at_ms)
    await lock_activations(session)
    active = await read_active(session)  # another replica may have been faster
    if active is not None and not is_the_files(active, settings):
        return active
    proposal = Proposal(policy.text, str(settings.policy))
    return (await publish(session, proposal, act=act, supply=supply, origin=Origin.SEED)).active


async def require_usable(session: AsyncSession, settings: Settings, supply: Supply) -> None:
    """Look whether a gateway could start here; writes nothing.

    Raises:
        ConfigurationError: it could not; says what to do.
    """
    active = await read_active(session)
    if active is None or is_the_files(active, settings):
        policy = load_policy(settings.policy, pools=supply.pools)
        fit(policy.text, source=str(settings.policy), supply=supply)
        return
    try:
        fit(await text_of(session, active.version), source=active.version, supply=supply)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the active policy cannot be used here: {error}\nBring back what it names, or let requests"
            " follow another one: tollgate policy publish FILE"
        ) from None


def is_the_files(active: Activation, settings: Settings) -> bool:
    """Whether the policy's file says what is in force."""
    return settings.is_embedded and active.origin is Origin.SEED


async def active_policy(session: AsyncSession, settings: Settings, pools: Mapping[str, PoolSpec]) -> Policy:
    """The policy in force; the file's, where no gateway has started yet.

    Raises:
        ConfigurationError: it does not fit the pools; or the file is needed and wrong.
    """
    active = await read_active(session)
    if active is None or is_the_files(active, settings):
        return load_policy(settings.policy, pools=pools)
    return parse_policy(await text_of(session, active.version), source=active.version, pools=pools)


def difference_from_file(active: Activation, settings: Settings) -> str | None:
    """What to tell whoever may think that the policy's file is in force; None: it is, or there is none."""
    if not settings.policy.exists():
        return None
    try:
        version = read_policy(
            settings.policy.read_text(encoding="utf-8"), source=str(settings.policy)
        ).version
    except (ConfigurationError, OSError, UnicodeDecodeError) as error:
        version = f"not readable: {error}"
    if version == active.version:
        return None
    return (
        f"{settings.policy} ({version}) is not in force: requests follow {active.version},"
        f" activated {instant_text(active.at_ms)} by {active.actor}. To let them follow the file:"
        f" `tollgate policy publish {settings.policy}`; to see the difference first:"
        f" `tollgate policy diff active {settings.policy}`; who did what: `tollgate policy history`."
    )
