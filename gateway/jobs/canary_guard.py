"""Does the canary do harm? Looks every few seconds, and if it does, takes the candidate back by itself.

One process at a time looks (`leases.py`), at the requests of all of them, as they are booked. What it knows
so far is kept as its job's result, so that any process goes on where another one stopped. The statistics are
`routing/harm.py`; here is what they are told: each unit of the canary once, by its first request that ended
or was refused, in stretches that end by counting units and never by how those fared. A candidate is good
after so many units that it served; to refuse them is harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.audit import Act, Actor, ActorKind, Source
from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.errors import ConfigurationError, Conflict, NotFound
from gateway.identity.roles import Role
from gateway.jobs.leases import LeaseLost, Turn, begin_turn, job_states
from gateway.ledger.comparison import Bookings, Fared, fared_before, fared_since
from gateway.policy_canary import promote_canary, stop_canary
from gateway.policy_in_force import PolicyInForce
from gateway.routing.canaries import Canary, How, live_canary
from gateway.routing.canary_state import JOB, State, evidence_of, state_of, told_harm
from gateway.routing.harm import Observation, Suspicion, Tolerance
from gateway.routing.receipts import units_of
from gateway.routing.refusal_store import RefusedUnit, refused_units
from gateway.settings import Settings
from gateway.telemetry import Telemetry

TURN_S: Final = 10.0
STRETCH_UNITS: Final = 4
"""A stretch ends when so many of its units should be the candidate's: by counting all, so that which one is
the last says nothing."""
UNITS_KNOWN_MAX: Final = 20_000
"""So many units are remembered, so that none counts twice."""
STARTED_MS: Final = 60_000
"""Requests of a canary started so long before it at the earliest, by clocks that differ."""
BEFORE_MS: Final = 3_600_000
"""So far back the control is looked at before a canary begins."""
_SHORT: Final = 8
"""Hexadecimal digits by which a unit is remembered."""

_log = logging.getLogger(__name__)


class CanaryGuard:
    """Watches over the canary of one database, in turn with other processes."""

    def __init__(
        self,
        sessions: SessionFactory,
        clock: Clock,
        *,
        policies: PolicyInForce,
        settings: Settings,
        holder: str,
    ) -> None:
        """Look at nothing yet.

        Args:
            sessions: where the books are.
            clock: for SQLite, which has none of its own.
            policies: know whether there is a canary.
            settings: how sure to be, and how often to look.
            holder: what this process is called.
        """
        self._sessions = sessions
        self._clock = clock
        self._policies = policies
        self._settings = settings.canary
        self._holder = holder
        self._wake = asyncio.Event()
        self._is_stopping = False
        self.rolled_back = 0
        """By this process."""
        self.log_e: dict[str, float] = {}
        """By measure, as this process last saw it."""
        policies.on_canary = self._wake.set

    def stop(self) -> None:
        """Let `run` end soon."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Look at every canary that there is, until stopped. Without one nothing is asked of the database."""
        while not self._is_stopping:
            if self._policies.canary is None:
                self.log_e = {}
                await self._wake.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._settings.interval_s)
            self._wake.clear()
            if self._is_stopping or self._policies.canary is None:
                continue
            try:
                await self.look()
            except (SQLAlchemyError, OSError, LeaseLost) as error:
                _log.warning("the canary is not watched, it is tried again: %s", error)

    async def look(self) -> None:
        """Look once, if nobody else does.

        Raises:
            SQLAlchemyError, OSError, LeaseLost: it was not done.
        """
        turn = await begin_turn(
            self._sessions,
            self._clock,
            JOB,
            holder=self._holder,
            ttl_s=TURN_S,
            every_s=self._settings.interval_s * 0.9,
        )
        if turn is None:
            return
        async with self._sessions() as session:
            canary = await live_canary(session)
            kept = (await job_states(session))[JOB].last_result
            if canary is None:
                await session.commit()
                await turn.end(kept)
                return
            now_ms = await database_ms(session, self._clock)
            state = state_of(kept, canary.number) or await self._begun(session, canary)
            await self._read(session, canary, state, now_ms=now_ms)
            await session.commit()
        self.log_e = {name: one.log_e for name, one in state.suspicion.evidence.items()}
        await self._judge(turn, canary, state, now_ms=now_ms)
        await turn.end(msgspec.json.encode(state).decode())

    async def _begun(self, session: AsyncSession, canary: Canary) -> State:
        settings = self._settings
        tolerance = Tolerance(settings.tolerated_latency_ratio, settings.tolerated_cost_ratio)
        state = State(canary.number, canary.at_ms, Suspicion(tolerance), canary.at_ms, canary.at_ms)
        before = await fared_before(
            session, canary.control, after_ms=canary.at_ms - BEFORE_MS, until_ms=canary.at_ms
        )
        state.suspicion.begin([_observation(one, canary) for one in before])
        return state

    async def _read(self, session: AsyncSession, canary: Canary, state: State, *, now_ms: int) -> None:
        """Take in what was booked, and what was refused, since the last look."""
        versions = [canary.control, canary.version]
        bookings = Bookings(state.booked_until_ms, state.booked)
        rows = await fared_since(session, versions, bookings, started_after_ms=canary.at_ms - STARTED_MS)
        refused = await refused_units(
            session, canary.number, versions, written_until_ms=state.refused_until_ms
        )
        state.booked_until_ms, state.booked = bookings.until_ms, bookings.seen
        state.refused_until_ms = max([state.refused_until_ms, *(one.written_at_ms for one in refused)])
        state.seen_until_ms = now_ms
        units = await units_of(
            session, [(one.request_id, one.started_at_ms) for one in rows], split=canary.number
        )
        told = [(one.ended_at_ms, units.get(one.request_id, ""), _observation(one, canary)) for one in rows]
        told += [(one.at_ms, one.unit, _refusal(one, canary)) for one in refused]
        known = set(state.known)
        # Where refusals stand among the answers must not depend on who reads them first.
        for _, whole, observation in sorted(told, key=lambda each: each[:2]):
            unit = whole[:_SHORT]
            if not unit or unit in known:
                continue  # no canary was about it, or its unit has been heard
            known.add(unit)
            state.known.append(unit)
            state.open.append(observation)
            if len(state.open) * canary.terms.split.share >= STRETCH_UNITS:
                state.suspicion.add(state.open)
                state.open = []
        state.known = state.known[-UNITS_KNOWN_MAX:]

    async def _judge(self, turn: Turn, canary: Canary, state: State, *, now_ms: int) -> None:
        """Do what follows from what is known."""
        suspicion, settings, terms = state.suspicion, self._settings, canary.terms
        harmed = suspicion.harmed(error_probability=settings.error_probability, units_min=settings.units_min)
        act = _act(now_ms)
        try:
            if harmed is not None:
                reason = told_harm(suspicion, harmed, error_probability=settings.error_probability)
                async with turn.writing() as session:
                    await stop_canary(
                        session,
                        act=act,
                        reason=reason,
                        how=How.ROLLED_BACK,
                        number=canary.number,
                        evidence=evidence_of(suspicion, harmed),
                    )
                self.rolled_back += 1
                state.verdict = reason
                _log.error("canary %d (%s) is rolled back: %s", canary.number, canary.version, reason)
            elif suspicion.served >= terms.units_max and state.verdict is None:
                state.verdict = (
                    f"no harm found in {suspicion.units} units of the candidate, {suspicion.served} of them"
                    " served"
                )
                _log.info("canary %d (%s): %s", canary.number, canary.version, state.verdict)
                if terms.auto_promote:
                    await self._promote(turn, canary, state, act=act)
            elif now_ms >= terms.until_ms:
                reason = state.verdict or (
                    f"time is up after {suspicion.units} units of which {suspicion.served} were served, of"
                    f" {terms.units_max}: neither harm found nor enough seen"
                )
                async with turn.writing() as session:
                    await stop_canary(session, act=act, reason=reason, how=How.EXPIRED, number=canary.number)
                _log.warning("canary %d (%s) has expired: %s", canary.number, canary.version, reason)
        except (Conflict, NotFound) as error:  # a person was faster
            _log.info("canary %d: %s", canary.number, error)

    async def _promote(self, turn: Turn, canary: Canary, state: State, *, act: Act) -> None:
        try:
            async with turn.writing() as session:
                await promote_canary(
                    session,
                    act=act,
                    supply=self._policies.supply,
                    number=canary.number,
                    message=state.verdict,
                    evidence=evidence_of(state.suspicion, None),
                )
        except ConfigurationError as error:
            _log.error("canary %d cannot be promoted: %s", canary.number, error)

    def watch(self, telemetry: Telemetry) -> None:
        """Show by metrics what it sees and does."""
        telemetry.count(
            "tollgate_policy_canary_rollbacks",
            "Candidates that the guard took back in this process",
            lambda: self.rolled_back,
        )
        telemetry.watch_each(
            "tollgate_policy_canary_evidence",
            "Logarithm of the evidence against the candidate, as this process last saw it",
            label="measure",
            read=lambda: self.log_e,
        )


def _act(now_ms: int) -> Act:
    actor = Actor(kind=ActorKind.GUARD, id="guard", name="guard", role=Role.OPERATOR)
    return Act(actor=actor, source=Source.JOB, at_ms=now_ms)


def _observation(one: Fared, canary: Canary) -> Observation:
    return Observation(
        is_candidate=one.policy_version == canary.version,
        is_failure=one.is_failure,
        latency_class=one.latency_class,
        ttft_ms=one.ttft_ms,
        total_ms=one.total_ms,
        cost_usd_nanos=one.charge_usd_nanos,
    )


def _refusal(one: RefusedUnit, canary: Canary) -> Observation:
    return Observation(
        is_candidate=one.version == canary.version,
        is_failure=True,
        latency_class="",
        ttft_ms=None,
        total_ms=None,
        cost_usd_nanos=None,
    )
