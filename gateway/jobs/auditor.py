"""Are the books right while they are kept? Looks at all invariants and says aloud what is broken.

It reads in one snapshot and writes nothing but its report, which goes to its job's lease. A breach is logged
as an error each time that it is seen: somebody has to look.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.ledger.findings import Extent, Finding
from gateway.ledger.invariants import Report, examine, take_snapshot

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The process ends: the look was broken off."""


class Auditor:
    """Looks at the books of one database."""

    def __init__(self, sessions: SessionFactory, clock: Clock, *, grace_s: float) -> None:
        self._sessions = sessions
        self._clock = clock
        self._grace_ms = int(grace_s * 1000)

    async def look(self, stopping: asyncio.Event, *, recent_s: float | None) -> Report:
        """Whether every invariant holds.

        Args:
            stopping: breaks the look off.
            recent_s: how far back to look, seconds; None: at everything.

        Raises:
            Stopped: the process ends.
        """
        started_s = self._clock.monotonic_s()
        findings: list[Finding] = []
        async with self._sessions() as session:
            await take_snapshot(session)
            now_ms = await database_ms(session, self._clock)
            since_ms = 0 if recent_s is None else max(0, now_ms - int(recent_s * 1000))
            extent = Extent(since_ms=since_ms, now_ms=now_ms, grace_ms=self._grace_ms)
            async for finding in examine(session, extent):
                findings.append(finding)
                if stopping.is_set():
                    raise Stopped
        took_ms = int((self._clock.monotonic_s() - started_s) * 1000)
        report = Report(at_ms=now_ms, since_ms=since_ms, took_ms=took_ms, findings=findings)
        for finding in findings:
            if finding.breaches:
                _log.error(
                    "the books are wrong: %s (%s) is broken %d times in %d; examples: %s",
                    finding.id,
                    finding.says,
                    finding.breaches,
                    finding.looked_at,
                    finding.examples,
                )
        return report


def encoded(report: Report) -> str:
    """A report as it is kept."""
    return msgspec.json.encode(report).decode()


def decoded(text: str | None) -> Report | None:
    """A report that was kept; None: there is none, or another version of the program wrote it."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Report)
    except msgspec.MsgspecError:
        return None


class Verdict:
    """What the last reports of whichever process came to, for this one's metrics."""

    def __init__(self) -> None:
        self.breaches = 0
        self.last_success_s = 0.0
        """Seconds since 1970; 0: never."""

    def take(self, texts: list[str | None]) -> None:
        """Take over the reports that are kept."""
        reports = [report for report in map(decoded, texts) if report is not None]
        self.breaches = max((report.breaches for report in reports), default=0)
        self.last_success_s = max((report.at_ms / 1000 for report in reports), default=0.0)
