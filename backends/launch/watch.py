"""What happens to a replica that serves: does it end, hang, lie, or is it merely not needed?

The driver's own look, so that a fleet without a gateway on its machine is looked after too. Not more often
than it takes (`look_interval_s`), /health and /metrics together. The signs of a hung engine are those of
`backends.liveness`; what a gateway has found (`backends.asks`) saves the driver its own probe where its own
counters agree. A liar answers /health and says nonsense, or an error of its own, whenever it is to generate a
token: three times in a row. One that is slow is neither, and the gateways' breakers are for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from backends.asks import Asks
from backends.launch.replica import ReplicaProcess
from backends.launch.times import LaunchTimes
from backends.liveness import Liveness
from backends.pool import ReplicaLoad
from backends.probe import health_problem, serving_problem
from backends.scrape import NotVllmMetrics, parse_metrics
from backends.upkeep import OnUpkeep, Tokens, UpkeepKind, new_upkeep

_LOG = logging.getLogger(__name__)

TIMEOUT_S = 5.0
LIES_MAX = 3
"""One error may be the request's bad luck."""
HANGS = "hangs"
"""How an ask begins whose replica was taken out for that."""


@dataclass(frozen=True, slots=True)
class Broken:
    """It has to be started again."""

    reason: str
    """For people."""
    may_drain: bool = False
    """It may have answers under way that still move."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nobody has asked it for anything for so long."""

    idle_s: float


async def read_load(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
) -> ReplicaLoad | None:
    """What its /metrics say; None: they cannot be read."""
    try:
        answer = await client.get(f"{url}/metrics", timeout=TIMEOUT_S)
        answer.raise_for_status()
        return parse_metrics(answer.text, scraped_at_s=time.monotonic())
    except (httpx.HTTPError, NotVllmMetrics):
        return None


class Watch:
    """The look at one replica, from the moment that it is ready."""

    def __init__(
        self,
        replica: ReplicaProcess,
        client: httpx.AsyncClient,  # noqa: TID251 - control plane
        times: LaunchTimes,
        *,
        asks: Asks,
        on_upkeep: OnUpkeep,
        may_sleep: Callable[[], bool],
        on_queue: Callable[[], None],
    ) -> None:
        """Only remembers.

        Args:
            replica: which.
            client: what to ask with.
            times: how often, and how long is too long.
            asks: what gateways ask of the driver.
            on_upkeep: is told of the tokens that looking cost.
            may_sleep: whether enough others are awake.
            on_queue: is told when requests wait in its engine.
        """
        self._replica = replica
        self._client = client
        self._times = times
        self._asks = asks
        self._on_upkeep = on_upkeep
        self._may_sleep = may_sleep
        self._on_queue = on_queue
        now_s = time.monotonic()
        self._liveness = Liveness(times.health, now_s)
        self._answered_at_s = now_s
        self._active_at_s = now_s
        self._served = 0
        """The most tokens that others were seen to have had from it."""
        self._own = 0
        """Tokens that looking at it took."""
        self._lies = 0
        self._verdict: Broken | None = None
        self._doubt: asyncio.Task[None] | None = None
        self._load: ReplicaLoad | None = None

    async def run(self) -> Broken | Idle:
        """Look until there is something to do."""
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    status = await self._replica.exited_within(self._times.look_interval_s)
                    if status is not None:
                        return Broken(f"ended with status {status}")
                    found = await self._look(group)
                    if found is not None:
                        return found
            finally:
                if self._doubt is not None:
                    self._doubt.cancel()

    async def _look(self, group: asyncio.TaskGroup) -> Broken | Idle | None:
        problem, load = await asyncio.gather(
            health_problem(self._client, self._replica.url, timeout_s=TIMEOUT_S),
            read_load(self._client, self._replica.url),
        )
        now_s = time.monotonic()
        if problem is None:
            self._answered_at_s = now_s
        elif now_s - self._answered_at_s >= self._times.unresponsive_after_s:
            return Broken(f"has not answered for {now_s - self._answered_at_s:.0f} s ({problem})")
        self._load = load
        self._liveness.saw(load, now_s)
        if load is not None:
            self._note_activity(load, now_s)
        if self._verdict is not None:
            return self._verdict
        asked = self._asks.examined_at(self._replica.name)
        is_asked = asked > self._replica.examined_at_ns
        self._replica.examined_at_ns = max(asked, self._replica.examined_at_ns)
        if is_asked and self._is_known_to_hang(now_s):
            return Broken(self._asks.why(self._replica.name))
        is_busy = load is not None and load.requests_running > 0
        is_doubtful = is_asked or self._lies > 0 or self._liveness.is_doubtful(now_s, is_busy=is_busy)
        if self._doubt is None and is_doubtful:
            self._doubt = group.create_task(self._examine())
        return self._idleness(now_s)

    def _is_known_to_hang(self, now_s: float) -> bool:
        """A gateway's probe brought no token, and by our own counters it has work and does not move."""
        if self._load is None or not self._load.requests_running:
            return False  # to be still is no sign of an idle engine: it is examined
        is_still = now_s - self._liveness.moved_at_s >= self._times.health.stall_s
        return is_still and self._asks.why(self._replica.name).startswith(HANGS)

    async def _examine(self) -> None:
        """Have it generate a token; it goes on serving until that is known."""
        asked_at_s = time.monotonic()
        used: list[Tokens] = []
        try:
            problem = await serving_problem(
                self._client,
                self._replica.url,
                self._replica.spec.model.served_name,
                timeout_s=self._times.health.probe_timeout_s,
                on_tokens=used.append,
            )
            now_s = time.monotonic()
            for tokens in used:
                self._own += tokens.total
                spec, name = self._replica.spec, self._replica.name
                took_s = now_s - asked_at_s
                self._on_upkeep(
                    new_upkeep(spec.name, name, UpkeepKind.HEARTBEAT, tokens=tokens, took_s=took_s)
                )
            if problem is None:
                self._lies = 0
                self._liveness.alive(now_s)
            elif problem.is_lie:
                self._lies += 1
                _LOG.warning("replica %s, look %d: %s", self._replica.name, self._lies, problem)
                if self._lies >= LIES_MAX:
                    self._verdict = Broken(f"lies, /health says that it is well: {problem}", may_drain=True)
            elif self._liveness.is_dead(asked_at_s, now_s):
                still_s = now_s - self._liveness.moved_at_s
                self._verdict = Broken(f"{HANGS}, nothing moved for {still_s:.0f} s: {problem}")
        finally:
            self._doubt = None

    def _note_activity(self, load: ReplicaLoad, now_s: float) -> None:
        served = load.prompt_tokens_total + load.generation_tokens_total - self._own
        if load.requests_running or load.requests_waiting or served > self._served:
            self._active_at_s = now_s
        self._served = max(self._served, served)
        if load.requests_waiting:
            self._on_queue()

    def _idleness(self, now_s: float) -> Idle | None:
        sleep = self._replica.spec.sleep
        if sleep is None or self._load is None or self._doubt is not None:
            return None
        idle_s = now_s - self._active_at_s
        return Idle(idle_s) if idle_s >= sleep.after_idle_s and self._may_sleep() else None


async def drain(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    replica: ReplicaProcess,
    times: LaunchTimes,
) -> str:
    """Let answers under way end, as long as they move and not for ever; how it went, for people."""
    began_s = moved_at_s = time.monotonic()
    last: ReplicaLoad | None = None
    while True:
        load = await read_load(client, replica.url)
        now_s = time.monotonic()
        if load is None:
            return "its answers could not be counted"
        under_way = load.requests_running + load.requests_waiting
        if not under_way:
            return f"drained in {now_s - began_s:.0f} s"
        if last is None or _tokens(load) != _tokens(last):
            moved_at_s = now_s
        last = load
        if now_s - moved_at_s >= times.still_s:
            return f"{under_way} answers were cut, which did not move for {now_s - moved_at_s:.0f} s"
        if now_s - began_s >= times.drain_s:
            return f"{under_way} answers were cut after {now_s - began_s:.0f} s"
        if await replica.exited_within(min(0.5, times.still_s / 4)) is not None:
            return "it ended by itself"


def _tokens(load: ReplicaLoad) -> tuple[int, int, int | None]:
    return load.prompt_tokens_total, load.generation_tokens_total, load.engine_steps_total
