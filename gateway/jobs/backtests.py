"""Who runs the backtests that are asked for over the API?

A child process of the gateway that was asked (`backtest_child.py`), so that the loop that serves does none of
it; one at a time in all gateways together (`backtest_store.py`). This end hands the question over,
writes down how far it is, and ends the child where somebody cancels it from any gateway, or this one stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from gateway.clock import Clock
from gateway.db import SessionFactory
from gateway.jobs.backtest_store import beat, end_backtest
from gateway.settings import Settings

CHILD: Final = "gateway.jobs.backtest_child"
BEAT_S: Final = 1.0
LINE_BYTES_MAX: Final = 32_000_000
"""Of what the child says at once: a result has a few KB for each tenant."""

_log = logging.getLogger(__name__)


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is asked."""

    database_url: str
    pools: str
    """The folder of the pools' files."""
    candidate: str
    """YAML."""
    baseline: str
    from_ms: int
    to_ms: int
    seed: int
    draws: int


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the child says: how far it is, and last of all what became of it."""

    stage: str = ""
    ratio: float = 0.0
    error: str | None = None
    result: dict[str, Any] | None = None


class Backtests:
    """Runs those that this process was asked for."""

    def __init__(self, sessions: SessionFactory, clock: Clock, settings: Settings) -> None:
        """Nothing yet.

        Args:
            sessions: where they are kept.
            clock: says when.
            settings: for the child: where the books and the pools' files are.
        """
        self._sessions = sessions
        self._clock = clock
        self._database_url = settings.effective_database_url
        self._pools: Path = settings.pools
        self._asked: asyncio.Queue[tuple[str, Errand] | None] = asyncio.Queue()
        self._is_stopping = False
        self._child: asyncio.subprocess.Process | None = None
        self._last = Line()

    def start(self, job_id: str, errand: Errand) -> None:
        """Run one that has taken the place; after its row is committed."""
        self._asked.put_nowait((job_id, errand))

    def errand(
        self, *, candidate: str, baseline: str, from_ms: int, to_ms: int, seed: int, draws: int
    ) -> Errand:
        """The question, with what this process knows of the world."""
        return Errand(
            database_url=self._database_url,
            pools=str(self._pools.resolve()),
            candidate=candidate,
            baseline=baseline,
            from_ms=from_ms,
            to_ms=to_ms,
            seed=seed,
            draws=draws,
        )

    def stop(self) -> None:
        """Let `run` end; a child is killed."""
        self._is_stopping = True
        self._asked.put_nowait(None)
        self._kill()

    async def run(self) -> None:
        """Run what is asked for, until stopped."""
        while not self._is_stopping:
            asked = await self._asked.get()
            if asked is None:
                return
            job_id, errand = asked
            try:
                await self._do(job_id, errand)
            except (SQLAlchemyError, OSError) as error:
                _log.warning("backtest %s: its end could not be written down: %s", job_id, error)

    async def _do(self, job_id: str, errand: Errand) -> None:
        self._last = Line()
        try:
            child = self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                CHILD,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_BYTES_MAX,
            )
        except OSError as error:
            await self._end(job_id, "failed", error=f"no process could be started: {error}")
            return
        try:
            is_wanted = await self._watched(job_id, child, errand)
        finally:
            self._kill()
            status = await child.wait()
            self._child = None
        last = self._last
        if not is_wanted:
            await self._end(job_id, "cancelled")
        elif self._is_stopping:
            await self._end(job_id, "failed", error="the gateway that ran it was stopped")
        elif last.result is not None:
            await self._end(job_id, "done", result=last.result)
        else:
            told = last.error or f"its process ended with status {status}; the log may say why"
            await self._end(job_id, "failed", error=told)

    async def _watched(self, job_id: str, child: asyncio.subprocess.Process, errand: Errand) -> bool:
        """Listen to the child until it is over; false: somebody wants it to end."""
        if child.stdin is not None:
            child.stdin.write(msgspec.json.encode(errand))
            child.stdin.close()
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(child))
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(listening), BEAT_S)
                if listening.done():
                    return True
                if not await self._beat(job_id):
                    self._kill()
                    await listening
                    return False

    async def _listen(self, child: asyncio.subprocess.Process) -> None:
        try:
            while child.stdout is not None and (text := await child.stdout.readline()).endswith(b"\n"):
                self._last = msgspec.json.decode(text, type=Line)
        except (ValueError, msgspec.MsgspecError) as error:  # a line without end, or another library's
            self._last = Line(error=f"what its process said cannot be read: {error}")
            self._kill()

    async def _beat(self, job_id: str) -> bool:
        """Write down how far it is; false: it shall end."""
        try:
            async with self._sessions() as session:
                now_ms = self._clock.epoch_ms()
                is_wanted = await beat(
                    session, job_id, stage=self._last.stage, ratio=self._last.ratio, now_ms=now_ms
                )
                await session.commit()
        except (SQLAlchemyError, OSError) as error:
            _log.info("backtest %s: how far it is could not be written down: %s", job_id, error)
            return True
        return is_wanted

    async def _end(
        self, job_id: str, state: str, *, error: str | None = None, result: dict[str, Any] | None = None
    ) -> None:
        async with self._sessions() as session:
            now_ms = self._clock.epoch_ms()
            await end_backtest(session, job_id, state=state, now_ms=now_ms, error=error, result=result)
            await session.commit()

    def _kill(self) -> None:
        child = self._child
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
