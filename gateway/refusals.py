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
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.routing.refusal_store import add_refusals
from gateway.telemetry import Telemetry

INTERVAL_S: Final = 1.0
UNITS_MAX: Final = 5_000
"""Units of a canary that wait to be written down; further ones are only counted."""
LEFT: Final = "client_left"
"""Code of a request whose client left before any attempt began."""
_MS_PER_HOUR: Final = 3_600_000

_log = logging.getLogger(__name__)


class Refusals:
    """Those of one process."""

    def __init__(self, clock: Clock) -> None:
        """None yet."""
        self._clock = clock
        self._hours: dict[tuple[int, str, str, str], int] = {}
        self._units: dict[tuple[int, str], dict[str, Any]] = {}
        self.seen: dict[tuple[str, ...], float] = {}
        """By policy version and code, since the start."""
        self.unwritten = 0
        """Units that were too many to be kept."""

    def saw(
        self,
        what: BaseException | str,
        *,
        version: str,
        tenant_id: str,
        canary: int | None = None,
        unit: int | None = None,
    ) -> None:
        """A request was refused.

        Args:
            what: the error, or the code that it has.
            version: of the policy that was asked.
            tenant_id: whose request it was.
            canary: the canary under way; None: there is none.
            unit: what the request belongs to in it; None: it is not about this request.
        """
        code = what if isinstance(what, str) else getattr(what, "code", "internal_error")
        key = (version, code)
        self.seen[key] = self.seen.get(key, 0) + 1
        now_ms = self._clock.epoch_ms()
        hour = (now_ms - now_ms % _MS_PER_HOUR, tenant_id, version, code)
        self._hours[hour] = self._hours.get(hour, 0) + 1
        if unit is None or canary is None:
            return
        if len(self._units) >= UNITS_MAX:
            self.unwritten += 1
            return
        name = f"{unit:016x}"
        row = {"number": canary, "unit": name, "version": version, "code": code, "at_ms": now_ms}
        self._units.setdefault((canary, name), row)

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
            "Refused units of a canary of which its guard does not learn, for they were too many",
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
