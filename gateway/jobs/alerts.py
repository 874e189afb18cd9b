"""What is told by itself? Budgets and unusual spend, looked for and delivered by one process at a time.

Looking writes to the outbox; delivering reads it. Both have turns of their own, apart from the other jobs:
somebody else's mail server may be slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import msgspec

from gateway.alerts import outbox, sources
from gateway.alerts.channels import PURPOSE, Channel, NotTaken, channels_of
from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.forecasts.anomaly_search import Finding, Search
from gateway.forecasts.anomaly_store import note_findings
from gateway.forecasts.processes import ask_process
from gateway.forecasts.words import anomaly_alert
from gateway.identity.root_key import derive
from gateway.jobs.leases import Turn
from gateway.jobs.scheduler import Job, Scheduler
from gateway.ledger.budget_marks import are_marks_due, write_marks
from gateway.money import NANOS_PER_USD
from gateway.settings import Settings
from gateway.spend_names import read_names

ALERTS = "alerts"
ANOMALIES = "anomalies"
ANOMALIES_S = 3_600.0
FIRST_AFTER_S = 60.0
SEARCH = "gateway.forecasts.anomaly_search"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells what there is to tell."""

    sessions: SessionFactory
    clock: Clock
    channels: Sequence[Channel]

    @property
    def names(self) -> list[str]:
        """Of its channels."""
        return [each.name for each in self.channels]

    async def look(self, turn: Turn) -> int:
        """Put what is new about budgets into the outbox; returns how many."""
        async with self.sessions() as session:
            now_ms = await database_ms(session, self.clock)
            alerts = await sources.reached(session, now_ms=now_ms)
            alerts += await sources.overruns(session, now_ms=now_ms)
            is_due = await are_marks_due(session, now_ms=now_ms)
        if is_due:
            async with turn.writing() as session:
                await write_marks(session, now_ms=await database_ms(session, self.clock))
        return await self.post(turn, alerts) if alerts else 0

    async def post(self, turn: Turn, alerts: Sequence[outbox.Alert]) -> int:
        """Put them into the outbox, but for what was told before."""
        async with turn.writing() as session:
            now_ms = await database_ms(session, self.clock)
            ids = [await outbox.post(session, each, self.names, now_ms=now_ms) for each in alerts]
        return sum(each is not None for each in ids)

    async def deliver(self, turn: Turn, stopping: asyncio.Event) -> tuple[int, int]:
        """Deliver what is due; how many were taken, and how many not."""
        channels = {each.name: each for each in self.channels}
        async with self.sessions() as session:
            now_ms = await database_ms(session, self.clock)
            waiting = await outbox.due(session, list(channels), now_ms=now_ms)
        taken = 0
        for done, each in enumerate(waiting):
            if stopping.is_set():
                return taken, done - taken
            error = None
            try:
                await channels[each.channel].send(each.message)
                taken += 1
            except (NotTaken, ValueError, OSError, httpx.InvalidURL) as problem:
                # Whatever is wrong with one channel, the others go on, and this one is tried again later.
                error = (
                    str(problem)
                    if isinstance(problem, NotTaken)
                    else f"{type(problem).__name__} in its setting"
                )
                _log.warning("alert %s was not taken by %s: %s", each.message.id, each.channel, error)
            async with turn.writing() as session:
                now_ms = await database_ms(session, self.clock)
                await outbox.note(session, each, error=error, now_ms=now_ms)
        return taken, len(waiting) - taken


@dataclass(frozen=True, slots=True)
class Searcher:
    """Looks for unusual spend."""

    teller: Teller
    database_url: str
    floor_usd_nanos: int

    async def work(self, turn: Turn) -> int:
        """Search, remember and tell; returns how many were found."""
        sessions, clock = self.teller.sessions, self.teller.clock
        async with sessions() as session:
            now_ms = await database_ms(session, clock)
        asked = Search(database_url=self.database_url, now_ms=now_ms, floor_usd_nanos=self.floor_usd_nanos)
        answer = await ask_process(SEARCH, msgspec.json.encode(asked))
        await self.tell(turn, msgspec.json.decode(answer, type=list[Finding]))
        return len(msgspec.json.decode(answer, type=list[Finding]))

    async def tell(self, turn: Turn, findings: Sequence[Finding]) -> None:
        """In one transaction, so that nothing is known and not told."""
        if not findings:
            return
        async with turn.writing() as session:
            now_ms = await database_ms(session, self.teller.clock)
            names = await read_names(session)
            await note_findings(session, findings, now_ms=now_ms)
            for each in findings:
                alert = anomaly_alert(each, names)
                await outbox.post(session, alert, self.teller.names, now_ms=now_ms)


def teller_of(sessions: SessionFactory, clock: Clock, settings: Settings, *, root_key: bytes) -> Teller:
    """Whoever tells by the channels of the settings.

    Raises:
        ConfigurationError: see `channels_of`.
    """
    channels = channels_of(settings.alerts, key=derive(root_key, PURPOSE), clock=clock)
    return Teller(sessions, clock, channels)


def alerts_scheduler(
    sessions: SessionFactory, clock: Clock, settings: Settings, *, root_key: bytes, holder: str
) -> Scheduler:
    """What looks for alerts and delivers them."""
    teller = teller_of(sessions, clock, settings, root_key=root_key)
    floor = round(settings.alerts.anomaly_floor_usd * NANOS_PER_USD)
    searcher = Searcher(teller, settings.effective_database_url, floor)

    async def tell(turn: Turn, stopping: asyncio.Event) -> str:
        posted = await teller.look(turn)
        taken, failed = await teller.deliver(turn, stopping)
        return msgspec.json.encode({"posted": posted, "taken": taken, "failed": failed}).decode()

    async def search(turn: Turn, stopping: asyncio.Event) -> str:
        del stopping
        return msgspec.json.encode({"found": await searcher.work(turn)}).decode()

    jobs = [Job(ALERTS, settings.alerts.interval_s, tell), Job(ANOMALIES, ANOMALIES_S, search)]
    return Scheduler(sessions, clock, jobs, holder=holder, first_after_s=FIRST_AFTER_S)
