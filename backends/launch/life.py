"""How does one replica live: started, warmed up, watched, started again, put to sleep, woken, ended?

One loop per replica. It alone acts on the replica; what it needs of the fleet (a command line, a place among
those that start, whether a sibling may sleep) it asks of its `Household`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import httpx

from backends.asks import Asks
from backends.keepwarm import WarmUp, warm_up
from backends.launch.replica import LaunchError, ReplicaProcess
from backends.launch.times import LaunchTimes, backoff_s
from backends.launch.watch import Broken, Idle, Watch, drain, read_load
from backends.pool import ReplicaLoad, ReplicaState
from backends.probe import Problem, health_problem, serving_problem
from backends.sleeping import put_to_sleep, wake
from backends.upkeep import OnUpkeep, Tokens, UpkeepKind, epoch_ms, new_upkeep

_LOG = logging.getLogger(__name__)

HEALTH_TIMEOUT_S = 5.0
FIRST_TOKEN_TIMEOUT_S = 60.0
"""The first request may compile kernels."""
PROGRESS_INTERVAL_S = 2.0
LEVEL_WAKE_S = 5.0
"""What waking from a sleep level is expected to take before one was measured."""
_NEWS_WEIGHT = 0.5
_VLLM_LINE = re.compile(r"(\([^)]*\) )?[A-Z]+ \S+ \S+ \[[^]]*\] (?P<message>.+)")


class Household(Protocol):
    """What a replica needs of the fleet around it."""

    times: LaunchTimes
    asks: Asks

    @property
    def client(self) -> httpx.AsyncClient:  # noqa: TID251 - control plane
        """What to ask replicas with."""

    @property
    def is_stopping(self) -> bool:
        """The fleet ends."""

    @property
    def start_gate(self) -> AbstractAsyncContextManager[None]:
        """A place among those that start."""

    async def launch(self, replica: ReplicaProcess) -> None:
        """Start its process, at an address of its own."""

    def report(self, replica: ReplicaProcess, state: ReplicaState, detail: str) -> None:
        """It is in this state now: publish it."""

    def may_sleep(self, replica: ReplicaProcess) -> bool:
        """Enough others of its pool are awake."""

    def claims_wake(self, replica: ReplicaProcess, asleep_since_ns: int) -> bool:
        """Whether a replica of its pool is wanted, and this is the one to wake."""

    def want_another(self, replica: ReplicaProcess) -> None:
        """Requests wait in its engine: one of its pool that sleeps would help."""

    def upkeep(self, replica: ReplicaProcess) -> OnUpkeep:
        """Who is told of tokens that we spent on it."""


@dataclass(frozen=True, slots=True)
class _Start:
    """How a start is told."""

    state: ReplicaState
    began_s: float


class ReplicaLife:
    """The life of one replica over all its starts."""

    def __init__(self, replica: ReplicaProcess, household: Household) -> None:
        """Only remembers."""
        self.replica = replica
        self._house = household
        self._times = household.times
        self._failures = 0

    async def bring_up(self, state: ReplicaState = ReplicaState.STARTING) -> None:
        """Start it and warm it up; it is ready when this returns.

        Raises:
            LaunchError: it ended (with the end of its log), or served nothing in time.
        """
        replica, house = self.replica, self._house
        start = _Start(state, time.monotonic())
        async with house.start_gate:
            await house.launch(replica)
            house.report(replica, state, "started")
            try:
                detail = await self._until_ready(start)
            except LaunchError:
                await replica.end(self._times.stop_grace_s)
                raise
            self._learn_wake(time.monotonic() - start.began_s, is_start=True)
            replica.ready_since_s = time.monotonic()
            house.report(replica, ReplicaState.READY, detail)

    async def run(self) -> None:
        """Keep it alive until the fleet stops."""
        while not self._house.is_stopping:
            try:
                await self._live_on()
            except Exception:  # noqa: BLE001 - the boundary of a loop that must go on
                # What nobody foresaw of one replica must not end the care for it, nor (they share a task
                # group) for all others.
                _LOG.exception("caring for replica %s failed; trying again", self.replica.name)
                await asyncio.sleep(self._times.backoff_max_s)

    async def _live_on(self) -> None:
        found = await self._watch()
        if self._house.is_stopping:
            return
        broken = await self._sleep(found) if isinstance(found, Idle) else found
        if broken is not None and not self._house.is_stopping:
            await self._start_again(broken)

    async def end(self) -> None:
        """End it: what it answers at the moment may finish, within bounds."""
        replica = self.replica
        if replica.is_running and replica.state is ReplicaState.READY:
            load = await read_load(self._house.client, replica.url)
            if load is not None and load.requests_running + load.requests_waiting:
                self._house.report(replica, ReplicaState.DRAINING, "the fleet stops")
                _LOG.info(
                    "replica %s: %s", replica.name, await drain(self._house.client, replica, self._times)
                )
        await replica.end(self._times.stop_grace_s)
        self._house.report(replica, ReplicaState.STOPPED, "stopped")

    # ---------------------------------------------------------------------------------------- starting
    async def _until_ready(self, start: _Start) -> str:
        """Wait until it has answered all that it shall be warm for; what it did, for people."""
        replica, client, times = self.replica, self._house.client, self._times
        deadline_s = replica.started_at_s + times.start_up_budget_s
        told_at_s = replica.started_at_s
        while True:
            status = await replica.exited_within(times.poll_interval_s)
            if status is not None:
                raise LaunchError(_obituary(replica, f"ended during its start with status {status}"))
            problem = await health_problem(client, replica.url, timeout_s=HEALTH_TIMEOUT_S)
            if problem is None:
                self._house.report(replica, start.state, "warming up")
                warmed = await self._warm_up()
                if isinstance(warmed, str):
                    return warmed
                problem = warmed
            now_s = time.monotonic()
            if now_s > deadline_s:
                budget = f"{times.start_up_budget_s:g} s"
                raise LaunchError(_obituary(replica, f"served nothing within {budget} ({problem})"))
            if now_s - told_at_s >= PROGRESS_INTERVAL_S:
                told_at_s = now_s
                self._house.report(replica, start.state, last_words(replica.log_tail(20)))

    async def _warm_up(self) -> str | Problem:
        replica, client = self.replica, self._house.client
        asked = replica.spec.keep_warm
        if asked.warm_up is False:
            problem = await self._prove()
            return "generated its first token" if problem is None else problem
        done = await warm_up(
            client,
            replica.url,
            replica.spec,
            limit_s=asked.warm_up_s,
            first_token_s=FIRST_TOKEN_TIMEOUT_S,
        )
        if not isinstance(done, WarmUp):
            return done
        self._account(UpkeepKind.WARM_UP, done.tokens, took_s=done.took_s)
        for shot in done.shots:
            _LOG.info(
                "replica %s, first %s: %s",
                replica.name,
                shot.shape,
                shot.problem or f"began after {1000 * shot.first_s:.0f} ms",
            )
        return str(done)

    async def _prove(self) -> Problem | None:
        """Have it generate a token."""
        replica, used = self.replica, list[Tokens]()
        began_s = time.monotonic()
        problem = await serving_problem(
            self._house.client,
            replica.url,
            replica.spec.model.served_name,
            timeout_s=FIRST_TOKEN_TIMEOUT_S,
            on_tokens=used.append,
        )
        for tokens in used:
            self._account(UpkeepKind.HEARTBEAT, tokens, took_s=time.monotonic() - began_s)
        return problem

    def _account(self, kind: UpkeepKind, tokens: Tokens, *, took_s: float) -> None:
        replica = self.replica
        if tokens.total:
            told = new_upkeep(replica.spec.name, replica.name, kind, tokens=tokens, took_s=took_s)
            self._house.upkeep(replica)(told)

    # --------------------------------------------------------------------------------------- restarting
    async def _watch(self) -> Broken | Idle:
        replica, house = self.replica, self._house
        if not replica.is_running:  # its last start failed
            return Broken("is not running")
        watch = Watch(
            replica,
            house.client,
            self._times,
            asks=house.asks,
            on_upkeep=house.upkeep(replica),
            may_sleep=lambda: house.may_sleep(replica),
            on_queue=lambda: house.want_another(replica),
        )
        return await watch.run()

    async def _start_again(self, broken: Broken) -> None:
        """End what is left of it and start it anew, after a pause that grows with every failure in a row."""
        replica, house = self.replica, self._house
        since_s = replica.ready_since_s
        if since_s is not None and time.monotonic() - since_s >= self._times.settled_after_s:
            self._failures = 0
        reason = broken.reason
        self._note(reason)
        if broken.may_drain:
            house.report(replica, ReplicaState.DRAINING, f"{reason}; is started again")
            await asyncio.sleep(self._times.notice_s)
            reason = f"{reason}; {await drain(house.client, replica, self._times)}"
        while not house.is_stopping:
            pause_s = backoff_s(self._failures, self._times)
            self._failures += 1
            loop = "crash loop: " if self._failures >= self._times.crash_loop_after else ""
            house.report(replica, ReplicaState.UNHEALTHY, f"{loop}{reason}; starts again in {pause_s:g} s")
            await replica.end(self._times.stop_grace_s)
            await asyncio.sleep(pause_s)
            if house.is_stopping:
                return
            replica.restarts += 1
            try:
                await self.bring_up()
            except LaunchError as error:
                reason = str(error)
                self._note(reason)
            else:
                return

    def _note(self, text: str) -> None:
        self.replica.errors.append((epoch_ms(), text.splitlines()[0][:200]))
        _LOG.warning("replica %s: %s", self.replica.name, text)

    # ----------------------------------------------------------------------------------------- sleeping
    async def _sleep(self, idle: Idle) -> Broken | None:
        """Let it sleep until it is wanted; why it has to be started again, if it has."""
        replica, house, sleep = self.replica, self._house, self.replica.spec.sleep
        # Asked again: a sibling may have fallen asleep in the same moment, and so many have to stay awake.
        if sleep is None or not house.may_sleep(replica):
            return None
        began_ns = time.time_ns()
        house.report(replica, ReplicaState.DRAINING, f"idle for {idle.idle_s:.0f} s, is about to sleep")
        before = await read_load(house.client, replica.url)
        is_wanted = await self._is_wanted_within(self._times.notice_s, began_ns)
        after = await read_load(house.client, replica.url)
        is_used = before is None or after is None or _is_used(after) or _served(after) != _served(before)
        if is_wanted or is_used:
            house.report(replica, ReplicaState.READY, "stays awake: a request came")
            return None
        if sleep.level is None:
            await replica.end(self._times.stop_grace_s)
            detail = f"scaled to zero after {idle.idle_s:.0f} s without a request"
        else:
            problem = await put_to_sleep(house.client, replica.url, sleep.level)
            if problem is not None:
                return Broken(f"could not be put to sleep: {problem}")
            detail = f"sleeps at level {sleep.level} after {idle.idle_s:.0f} s without a request"
        house.report(replica, ReplicaState.SLEEPING, detail)
        broken = await self._until_wanted(began_ns)
        return broken if broken is not None or house.is_stopping else await self._wake()

    async def _is_wanted_within(self, limit_s: float, since_ns: int) -> bool:
        """Whether a gateway asks for a replica of its pool, before it even sleeps."""
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            if self._house.asks.woken_at(self.replica.spec.name) > since_ns:
                return True
            await asyncio.sleep(self._times.wish_interval_s)
        return False

    async def _until_wanted(self, since_ns: int) -> Broken | None:
        replica, house = self.replica, self._house
        sleep = replica.spec.sleep
        is_running = sleep is not None and sleep.level is not None
        looked_at_s = time.monotonic()
        while not house.is_stopping and not house.claims_wake(replica, since_ns):
            await asyncio.sleep(self._times.wish_interval_s)
            if not is_running:
                continue
            if not replica.is_running:
                return Broken("ended while it slept")
            if time.monotonic() - looked_at_s >= self._times.look_interval_s:
                looked_at_s = time.monotonic()
                load = await read_load(house.client, replica.url)
                if load is not None and _is_used(load):
                    # A request that slipped in hangs until we wake.
                    return None
        return None

    async def _wake(self) -> Broken | None:
        replica, house, sleep = self.replica, self._house, self.replica.spec.sleep
        if sleep is None:
            return None
        began_s = time.monotonic()
        house.report(replica, ReplicaState.WAKING, "is wanted again")
        if sleep.level is None:
            try:
                await self.bring_up(ReplicaState.WAKING)
            except LaunchError as error:
                return Broken(f"could not be woken: {error}")
            return None
        timeout_s = self._times.start_up_budget_s
        problem = await wake(house.client, replica.url, sleep.level, timeout_s=timeout_s)
        problem = problem or await self._prove()
        if problem is not None:
            return Broken(f"could not be woken: {problem}")
        took_s = time.monotonic() - began_s
        self._learn_wake(took_s, is_start=False)
        house.report(replica, ReplicaState.READY, f"woke in {took_s:.1f} s")
        return None

    def _learn_wake(self, took_s: float, *, is_start: bool) -> None:
        """Know what a wake takes; a start is one only where sleeping is being ended."""
        replica, sleep = self.replica, self.replica.spec.sleep
        if sleep is None:
            return
        if is_start and sleep.level is not None:
            replica.wake_s = replica.wake_s or sleep.wake_s or LEVEL_WAKE_S
        elif replica.wake_s is None:
            replica.wake_s = sleep.wake_s or took_s
        else:
            replica.wake_s += _NEWS_WEIGHT * (took_s - replica.wake_s)


def _is_used(load: ReplicaLoad) -> bool:
    return bool(load.requests_running or load.requests_waiting)


def _served(load: ReplicaLoad) -> tuple[int, int]:
    return load.prompt_tokens_total, load.generation_tokens_total


def _obituary(replica: ReplicaProcess, what: str) -> str:
    tail = "\n".join(f"  | {line}" for line in replica.log_tail(20))
    return (
        f"replica '{replica.name}' of pool '{replica.spec.name}' {what}; "
        f"the end of its log {replica.log_path}:\n{tail}"
    )


def last_words(log_lines: list[str]) -> str:
    """What the replica said last, without vLLM's prefix of process, level, time and source line."""
    for line in reversed(log_lines):
        if match := _VLLM_LINE.match(line):
            return match.group("message")
    return log_lines[-1] if log_lines else "loading libraries"
