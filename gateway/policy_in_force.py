"""Which policy do requests follow in this process, and how is another one taken over?

A request takes one `Routing` and keeps it to its end: policy, prices and what is derived from them are made
ready first, beside the requests, and then exchanged in one assignment. A version that cannot be used here (a
pool that this process does not know, a key that it does not have) is not half taken over: the one before
stays, `/readyz` and the metrics say so, the control plane and the log why. A candidate beside the active
policy, a canary's or a shadow's, is a further field of `Routing`, made ready and exchanged in the same way;
where it cannot be used, everybody follows the active one and nothing is copied.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncSession

from backends.pool import PoolSpec
from gateway.cache.key import answer_scope
from gateway.clock import Clock
from gateway.db import SessionFactory
from gateway.economist import Economist
from gateway.errors import ConfigurationError
from gateway.plan import Beside, Routing
from gateway.policy_life import Fitting, begin, difference_from_file, fit, supply_of
from gateway.pricing.book import Entry, PriceBook
from gateway.pricing.catalog import cards_of
from gateway.pricing.store import list_entries, remember_versions
from gateway.routing.canaries import Canary, live_canary
from gateway.routing.policy import Policy
from gateway.routing.shadows import Shadow, live_shadow
from gateway.routing.versions import Activation, read_active, text_of
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.upstream.outside import Endpoint, OutsideByVersion

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refused:
    """A version that is active and cannot be used here."""

    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the database says is in force."""

    activation: Activation
    text: str
    canary: Canary | None = None
    shadow: Shadow | None = None
    """There is one of the two at most."""
    candidate: str | None = None
    """The YAML of its candidate."""

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """What tells it from others."""
        beside = (None if each is None else each.number for each in (self.canary, self.shadow))
        return self.activation.number, *beside


class PolicyInForce:
    """The policy of one gateway process."""

    def __init__(
        self, settings: Settings, *, pools: Mapping[str, PoolSpec], economist: Economist, clock: Clock
    ) -> None:
        """Know of none yet.

        Args:
            settings: for keys of external targets, and the file that seeds a fresh install.
            pools: what there is to route to.
            economist: who predicts, whatever the policy.
            clock: the time of a takeover.
        """
        self._settings = settings
        self.supply = supply_of(settings, pools)
        self._economist = economist
        self._clock = clock
        self.outside = OutsideByVersion(
            clock,
            connect_timeout_s=settings.timeouts.connect_s,
            keep_s=max(settings.timeouts.total_s, settings.timeouts.stream_total_s),
        )
        self._entries: list[Entry] = []
        self._fitting: Fitting | None = None
        self._fitting_beside: Fitting | None = None
        self._routing: Routing | None = None
        self._take: Callable[[Routing], None] = lambda _: None
        self._wanted: _Wanted | None = None
        self._changed = asyncio.Event()
        self._is_stopping = False
        self.activation: Activation | None = None
        """Of the version that requests follow here."""
        self.refused: Refused | None = None
        """The active version, if it is another one."""
        self.canary: Canary | None = None
        """The one that lives, whether or not its candidate can be used here."""
        self.candidate_refused: Refused | None = None
        """Its candidate, or that of a shadow, if it cannot."""
        self.shadow: Shadow | None = None
        """The one that lives, whether or not its candidate can be used here."""
        self.on_canary: Callable[[], None] = lambda: None
        """Is told when one begins or ends."""
        self.takeovers = 0

    @property
    def routing(self) -> Routing:
        """What a request takes with it.

        Raises:
            RuntimeError: asked before the start.
        """
        if self._routing is None:
            raise RuntimeError("there is no policy yet: start it first")
        return self._routing

    # ------------------------------------------------------------------------------------ start and stop
    async def start(self, sessions: SessionFactory) -> None:
        """Find out what is in force, or seed it; write down what rows will refer to.

        Raises:
            ConfigurationError: it cannot be used here, or the file that is needed is wrong.
        """
        async with sessions() as session:
            activation = await begin(session, self._settings, self.supply, at_ms=self._clock.epoch_ms())
            wanted = await _wanted(session, activation, now_ms=self._clock.epoch_ms())
            self._entries = await list_entries(session)
            await session.commit()
        await self._take_over(wanted)
        self._wanted = wanted
        async with sessions() as session:
            now_ms = self._clock.epoch_ms()
            await remember_versions(session, self.routing.prices.at(now_ms).by_target, now_ms=now_ms)
            await session.commit()
        difference = await asyncio.to_thread(difference_from_file, activation, self._settings)
        if difference is not None:
            _log.warning("%s", difference)

    def follow(self, take: Callable[[Routing], None]) -> None:
        """Tell somebody of every change from now on."""
        self._take = take

    async def run(self) -> None:
        """Take over what becomes active, until stopped."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._is_stopping:
                return
            wanted = self._wanted
            if wanted is None:
                continue
            try:
                await self._take_over(wanted)
            except Exception as error:  # noqa: BLE001 - libraries outside fail in any way; what serves goes on
                self.refused = Refused(wanted.activation.version, str(error) or type(error).__name__)
                self._exchange(replace(self.routing, beside=None))  # it stood beside what is over
                self._tell_canary(None)
                self.shadow = None
                _log.error(
                    "policy %s is active and cannot be used here, %s stays in force: %s",
                    wanted.activation.version,
                    self.routing.policy.version,
                    error,
                )

    def stop(self) -> None:
        """Let `run` end."""
        self._is_stopping = True
        self._changed.set()

    # ------------------------------------------------------------------------------------ changes
    async def reload(self, session: AsyncSession) -> None:
        """See what is active now; it is taken over by `run`, so that other changes do not wait for it."""
        activation = await read_active(session)
        if activation is None:
            return
        wanted = await _wanted(session, activation, now_ms=self._clock.epoch_ms())
        if self._wanted is not None and self._wanted.numbers == wanted.numbers:
            return
        self._wanted = wanted
        self._changed.set()

    async def reload_prices(self, session: AsyncSession) -> None:
        """Take over what finance has entered."""
        self._entries = await list_entries(session)
        if self._fitting is not None:
            beside = self.routing.beside
            if beside is not None and self._fitting_beside is not None:
                theirs = replace(beside.routing, prices=self._book(self._fitting_beside))
                beside = replace(beside, routing=theirs)
            self._exchange(replace(self.routing, prices=self._book(self._fitting), beside=beside))

    async def _take_over(self, wanted: _Wanted) -> None:
        activation = wanted.activation
        # Reading YAML takes milliseconds, in which requests must not stand still.
        fitting = await asyncio.to_thread(fit, wanted.text, source=activation.version, supply=self.supply)
        # Its name is what it was when it was stored.
        policy = replace(fitting.policy, version=activation.version)
        await self.outside.load(policy.version, self._endpoints(policy))
        beside = await self._made_ready(wanted, beside=policy.version)
        # From here to the end nothing waits: a request sees all of it or nothing.
        self._fitting = replace(fitting, policy=policy)
        self._exchange(replace(self._routing_of(self._fitting), beside=beside))
        replaced, self.activation = self.activation, activation
        self.refused = None
        self._tell_canary(wanted.canary)
        self._tell_shadow(wanted.shadow)
        if replaced is not None and replaced.number != activation.number:
            self.takeovers += 1
            _log.info(
                "policy %s is in force, activated by %s; before: %s",
                activation.version,
                activation.actor,
                replaced.version,
            )

    async def _made_ready(self, wanted: _Wanted, *, beside: str) -> Beside | None:
        """The candidate that is wanted; None: there is none, or it cannot be used here."""
        self.candidate_refused = self._fitting_beside = None
        asked, text = wanted.canary or wanted.shadow, wanted.candidate
        if asked is None or text is None:
            return None
        try:
            fitting = await asyncio.to_thread(fit, text, source=asked.version, supply=self.supply)
            policy = replace(fitting.policy, version=asked.version)
            await self.outside.load(policy.version, self._endpoints(policy), beside=beside)
        except (ConfigurationError, ImportError) as error:
            self.candidate_refused = Refused(asked.version, str(error))
            _log.error("candidate %s cannot be used here, nobody follows it: %s", asked.version, error)
            return None
        self._fitting_beside = replace(fitting, policy=policy)
        routing = self._routing_of(self._fitting_beside)
        if wanted.shadow is not None:  # what it believes must not take the place of what serves
            routing = replace(routing, economist=self._economist.beside)
        return Beside(asked.terms.split, routing, wanted.shadow)

    def _routing_of(self, fitting: Fitting) -> Routing:
        return Routing(
            policy=fitting.policy,
            prices=self._book(fitting),
            answer_scopes=self._answer_scopes(fitting.policy),
            economist=self._economist,
        )

    def _tell_canary(self, canary: Canary | None) -> None:
        replaced, self.canary = self.canary, canary
        before, now = (None if each is None else each.number for each in (replaced, canary))
        if before == now:
            return
        if canary is None:
            _log.info("there is no canary any more: all requests follow the active policy")
        else:
            _log.info(
                "canary %d: %.3g %% follow %s, started by %s",
                canary.number,
                canary.terms.split.share * 100,
                canary.version,
                canary.actor,
            )
        self.on_canary()

    def _tell_shadow(self, shadow: Shadow | None) -> None:
        replaced, self.shadow = self.shadow, shadow
        before, now = (None if each is None else each.number for each in (replaced, shadow))
        if before == now:
            return
        if shadow is None:
            _log.info("there is no shadow any more: no request is copied")
        else:
            _log.info(
                "shadow %d: copies of %.3g %% go to %s, started by %s",
                shadow.number,
                shadow.terms.split.share * 100,
                shadow.version,
                shadow.actor,
            )

    def _exchange(self, routing: Routing) -> None:
        self._routing = routing
        self._take(routing)

    def _book(self, fitting: Fitting) -> PriceBook:
        return PriceBook(fitting.cards, self._entries, allows_unpriced=fitting.policy.allow_unpriced)

    def book_of(self, policy: Policy) -> PriceBook:
        """What each target would cost if a policy were in force here: its own rates, finance's before them.

        Raises:
            ConfigurationError: a rate that cannot be kept.
        """
        cards = cards_of(self.supply.pools, {name: target.rates for name, target in policy.external.items()})
        return PriceBook(cards, self._entries, allows_unpriced=policy.allow_unpriced)

    def _answer_scopes(self, policy: Policy) -> dict[str, str]:
        specs = self.supply.pools
        return {
            alias: answer_scope(
                policy.version,
                (f"{name} {specs[name].model.path} {specs[name].model.served_name}" for name in pools),
            )
            for alias, pools in policy.models.items()
        }

    def _endpoints(self, policy: Policy) -> dict[str, Endpoint]:
        keys = {name: key.get_secret_value() for name, key in self._settings.external_keys.items()}
        return {
            name: Endpoint(target.api_base, None if target.key_name is None else keys[target.key_name])
            for name, target in policy.external.items()
        }

    # ------------------------------------------------------------------------------------ what is shown
    def watch(self, telemetry: Telemetry) -> None:
        """Show by metrics what is in force here."""
        telemetry.watch_each(
            "tollgate_policy_info",
            "1: requests follow this version here",
            label="version",
            read=lambda: {} if self.activation is None else {self.activation.version: 1},
        )
        telemetry.watch(
            "tollgate_policy_activation",
            "Number of the activation that requests follow here; all processes have the same",
            lambda: 0 if self.activation is None else self.activation.number,
        )
        telemetry.watch(
            "tollgate_policy_refused",
            "1: the active policy cannot be used here, the one before stays in force",
            lambda: self.refused is not None,
        )
        telemetry.watch_each(
            "tollgate_policy_canary_info",
            "1: a part of the requests here follows this candidate",
            label="version",
            read=lambda: self._shown_beside(is_shadow=False),
        )
        telemetry.watch_each(
            "tollgate_shadow_info",
            "1: a part of the requests here is copied to this candidate",
            label="version",
            read=lambda: self._shown_beside(is_shadow=True),
        )
        telemetry.watch(
            "tollgate_policy_canary_refused",
            "1: the candidate of the canary cannot be used here, nobody here follows it",
            lambda: self.candidate_refused is not None and self.shadow is None,
        )
        telemetry.watch(
            "tollgate_shadow_refused",
            "1: the candidate of the shadow cannot be used here, nothing here is copied to it",
            lambda: self.candidate_refused is not None and self.shadow is not None,
        )
        telemetry.count(
            "tollgate_policy_takeovers", "Times that another policy came into force", lambda: self.takeovers
        )

    def _shown_beside(self, *, is_shadow: bool) -> dict[str, float]:
        beside = None if self._routing is None else self._routing.beside
        if beside is None or (beside.shadow is not None) is not is_shadow:
            return {}
        return {beside.routing.policy.version: 1}

    def shown(self) -> dict[str, object]:
        """For /readyz, which anybody may ask: not why."""
        refused = self.refused
        return {
            "in_force": self.routing.policy.version,
            "refused": None if refused is None else refused.version,
        }


async def _wanted(session: AsyncSession, activation: Activation, *, now_ms: int) -> _Wanted:
    """What the database says, the candidate beside it included."""
    canary = await live_canary(session)
    shadow = None if canary is not None else await live_shadow(session, now_ms=now_ms)
    asked = canary or shadow
    return _Wanted(
        activation,
        await text_of(session, activation.version),
        canary,
        shadow,
        None if asked is None else await text_of(session, asked.version),
    )
