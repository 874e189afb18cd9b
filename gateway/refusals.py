"""What did policies refuse before any attempt?

Such requests leave no row in the books, for nothing was spent. They are counted here by policy version, for
metrics, for backtests, and for the guard of a canary, to which a version that refuses everything would look
like one that never fails. Plain sums in memory, which a task writes down; what a process that dies had not
written yet (a second's worth) is lost, and money does not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from gateway.attempt_log import AttemptLog
from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.errors import GatewayError
from gateway.identity.auth import Caller
from gateway.plan import Plan, Routing
from gateway.routing.refusal_store import add_refusals
from gateway.routing.split import Unit
from gateway.telemetry import Telemetry

INTERVAL_S: Final = 1.0
UNITS_MAX: Final = 5_000
"""Units of a canary that wait to be written down; further ones are only counted."""
HOURS_MAX: Final = 20_000
"""Sums that wait to be written down."""
LEFT: Final = "client_left"
"""Code of a request whose client left before any attempt began."""
_MS_PER_HOUR: Final = 3_600_000

_log = logging.getLogger(__name__)


class Refusals:
    """Those of one process."""

    def __init__(self, clock: Clock) -> None:
        """None yet.

        Args:
            clock: says in which hour it was.
        """
        self._clock = clock
        self._hours: dict[tuple[int, str, str, str], int] = {}
        self._units: dict[tuple[int, str], dict[str, Any]] = {}
        self.seen: dict[tuple[str, ...], float] = {}
        """By policy version and code, since the start."""
        self.unwritten = 0
        """Too many to be kept until they can be written down."""

    def saw(self, code: str, *, version: str, tenant_id: str, unit: Unit | None = None) -> None:
        """A request was refused.

        Args:
            code: of the error.
            version: of the policy that was asked.
            tenant_id: whose request it was.
            unit: what the request belongs to in the canary that it was planned under, which may be over by
                now; None: there was none, or it is not about this request.
        """
        key = (version, code)
        self.seen[key] = self.seen.get(key, 0) + 1
        now_ms = self._clock.epoch_ms()
        hour = (now_ms - now_ms % _MS_PER_HOUR, tenant_id, version, code)
        if hour in self._hours or len(self._hours) < HOURS_MAX:
            self._hours[hour] = self._hours.get(hour, 0) + 1
        else:
            self.unwritten += 1
        if unit is None or unit.split < 0:  # whoever makes a shadow's copies counts them
            return
        if len(self._units) >= UNITS_MAX:
            self.unwritten += 1
            return
        row = {
            "number": unit.split,
            "unit": unit.name,
            "version": version,
            "code": code,
            "at_ms": now_ms,
        }
        self._units.setdefault((unit.split, unit.name), row)

    # What the pipeline says, in its own words.
    def before(self, error: GatewayError, routing: Routing, caller: Caller, *, unit: Unit | None) -> None:
        """A request was refused when it was decided."""
        self._refused(error, routing.policy.version, caller, unit=unit)

    def unsent(self, log: AttemptLog, error: BaseException | None) -> None:
        """A request ends by an error, or (None) because its client left; counts if nothing was sent."""
        if not log.has_begun:
            plan = log.plan
            self._refused(error, plan.decision.policy_version, plan.caller, unit=plan.unit)

    async def told(self, reserving: Awaitable[AttemptLog], plan: Plan) -> AttemptLog:
        """What is awaited; counts where it fails."""
        try:
            return await reserving
        except (GatewayError, asyncio.CancelledError) as error:
            self._refused(error, plan.decision.policy_version, plan.caller, unit=plan.unit)
            raise

    def _refused(
        self, error: BaseException | None, version: str, caller: Caller, *, unit: Unit | None
    ) -> None:
        if error is None or isinstance(error, asyncio.CancelledError):
            code = LEFT
        else:
            code = error.code if isinstance(error, GatewayError) else GatewayError.code
        self.saw(code, version=version, tenant_id=caller.tenant_id, unit=unit)

    async def write(self, sessions: SessionFactory) -> None:
        """Write down what came since the last time.

        Raises:
            SQLAlchemyError, OSError: the database is away; it is kept for the next time.
        """
        if not self._hours:
            return
        hours, units = self._hours, self._units
        self._hours, self._units = {}, {}
        try:
            async with sessions() as session:
                written_at_ms = await database_ms(session, self._clock)
                names = ("hour_start_ms", "tenant_id", "policy_version", "code")
                await add_refusals(
                    session,
                    [{**dict(zip(names, key, strict=True)), "requests": hours[key]} for key in sorted(hours)],
                    [{**row, "written_at_ms": written_at_ms} for _, row in sorted(units.items())],
                )
                await session.commit()
        except BaseException:
            for hour, count in hours.items():
                self._hours[hour] = self._hours.get(hour, 0) + count
            self._units = {**self._units, **units}
            raise

    def watch(self, telemetry: Telemetry) -> None:
        """Show them by metrics."""
        telemetry.count_by_labels(
            "tollgate_policy_refusals",
            "Requests that were refused before any attempt, by the policy that was asked",
            labels=("version", "code"),
            read=lambda: self.seen,
        )
        telemetry.count(
            "tollgate_policy_refusals_unwritten",
            "Refusals that nobody but these metrics learns of, for they were too many at once",
            lambda: self.unwritten,
        )


class RefusalWriter:
    """Writes them down at intervals."""

    def __init__(
        self, refusals: Refusals, sessions: SessionFactory, *, interval_s: float = INTERVAL_S
    ) -> None:
        """Only remembers."""
        self._refusals = refusals
        self._sessions = sessions
        self._interval_s = interval_s
        self._stopping = asyncio.Event()
        self._is_away = False

    def stop(self) -> None:
        """Let `run` end after a last time."""
        self._stopping.set()

    async def run(self) -> None:
        """Write until stopped; a database that is away is survived."""
        while True:
            is_last = self._stopping.is_set()
            try:
                await self._refusals.write(self._sessions)
                self._is_away = False
            except (SQLAlchemyError, OSError) as error:
                if not self._is_away:
                    _log.warning("refusals cannot be written down (they are kept): %s", error)
                self._is_away = True
            if is_last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._interval_s)
