"""What is measured of one gateway in one round, and how is a microsecond counted?

CPU is that of the gateway's whole process tree, from the first request of a phase until its last trace is
gone: for Tollgate until the spool is empty, so that writing the books counts. Per plain request or per
streamed chunk, all in. Added latency is against the upstream asked directly, seconds before. What else ran
on the load core (PostgreSQL, Redis, upstream, load) is reported apart, what others did on the machine
beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.load.processor import MachineUse, machine_use, tree_cpu_s, tree_memory_mb
from tests.load.running import Running
from tests.load.tollgate_site import DRAIN_S, Site
from tests.load.traffic import CHUNKS, GAP_US, Asked, Load, Traffic, Upstream, failures_of, write_bodies

Record = dict[str, Any]
_LATENCIES: Final = ("latency_us", "first_chunk_us", "chunk_delay_us")
STREAM_US: Final = CHUNKS * GAP_US
"""How long a stream takes; starts are spread over it, so that chunks come evenly."""
FULL_UTILISATION: Final = 0.95
"""Below, the gateway waited for the load: its most requests/s are not known."""
UNCACHED_TEMPERATURE: Final = 0.2
"""The policy as shipped looks nothing up for it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each phase takes, seconds."""

    idle: float = 1
    warm_up: float = 2
    plain: float = 4
    most: float = 4
    single: float = 2
    paced: float = 5
    streams: float = 4
    many_streams: float = 3


QUICK: Final = Plan(idle=0.5, warm_up=1, plain=2, most=2, single=1, paced=2.5, many_streams=2)
"""Streams take as long as ever: a kernel acknowledges at once what comes first on a connection, so that a
gateway without TCP_NODELAY shows its 40 ms only from a connection's second stream on."""


class Round:
    """One gateway that is up, and everything that is measured of it."""

    def __init__(
        self,
        running: Running,
        *,
        upstream: Upstream,
        traffic: Traffic,
        site: Site | None,
        say: Callable[[str], None],
    ) -> None:
        """Only remembers.

        Args:
            running: the gateway.
            upstream: what it asks.
            traffic: counts what was sent.
            site: its stores and books; None of a peer.
            say: told what is being done.
        """
        self._running = running
        self._upstream = upstream
        self._traffic = traffic
        self._site = site
        self._say = say
        self.cost_usd_nanos = int(running.first_cost)
        self.answered = 1
        """With the request that showed that it is up."""

    # ---------------------------------------------------------------------------------------- the phases
    def measure(self, plan: Plan) -> Record:
        """All phases, in an order that leaves the machine as the next one needs it."""
        self._say("idle")
        found: Record = {"idle_cores": self._idle_cores(plan.idle)}
        self._say("warm-up")
        self._drive(Load("closed", plan.warm_up))
        self._drive(Load("stream", plan.warm_up / 2, connections=8, stagger_us=STREAM_US))
        found["plain"] = self._phase("plain", Load("closed", plan.plain))
        if self._site is not None:
            undeclared = replace(self._running.asked, vary=())
            found["signals"] = self._phase("task by signals", Load("closed", plan.plain), asked=undeclared)
            found["uncached"] = self._phase(
                "cache not asked", Load("closed", plan.plain), temperature=UNCACHED_TEMPERATURE
            )
        found["most"] = self._phase("most requests/s", Load("closed", plan.most, connections=64))
        found["single"] = self._single(plan)
        found["paced"] = self._phase("100 requests/s", Load("open", plan.paced, connections=64, rate=100))
        found["streams32"] = self._streams(32, plan.streams)
        delay = found["streams32"]["chunk_delay_us"]
        is_behind = delay is None or delay["p50"] > GAP_US
        # A gateway that cannot keep up with 32 streams would fail 200: its figure would mean nothing.
        found["streams200"] = (
            None if is_behind and self._site is None else self._streams(200, plan.many_streams)
        )
        found["memory_mb"] = round(tree_memory_mb(self._running.process.pid), 1)
        found["start_s"] = round(self._running.start_s, 3)
        return found

    def _streams(self, count: int, seconds: float) -> Record:
        load = Load("stream", seconds, connections=count, stagger_us=STREAM_US)
        return self._phase(f"{count} streams", load)

    def _idle_cores(self, seconds: float) -> float:
        began_s, before_s = time.monotonic(), self._running.cpu_s()
        time.sleep(seconds)
        return (self._running.cpu_s() - before_s) / (time.monotonic() - began_s)

    def _single(self, plan: Plan) -> Record:
        load = Load("closed", plan.single, connections=1)
        direct = Traffic(self._traffic.folder).drive(
            Asked(port=self._upstream.ports[0]), replace(load, seconds=plan.single / 2), self._bodies(load)
        )
        found = self._phase("1 connection", load)
        found["direct_sent"] = direct["sent"]
        found["direct_p50_us"] = direct["latency_us"]["p50"] if direct["latency_us"] else None
        return found

    def _bodies(self, load: Load, temperature: float = 0) -> Path:
        return write_bodies(
            self._traffic.folder,
            self._running.target.model,
            is_stream=load.mode == "stream",
            temperature=temperature,
        )

    def _drive(self, load: Load, *, asked: Asked | None = None, temperature: float = 0) -> Record:
        result = self._traffic.drive(asked or self._running.asked, load, self._bodies(load, temperature))
        self.answered += result["ok"]
        self.cost_usd_nanos += result["cost_usd_nanos"]
        return result

    # ------------------------------------------------------------------------------------- one of them
    def _phase(self, name: str, load: Load, *, asked: Asked | None = None, temperature: float = 0) -> Record:
        """One phase: how much was done, how late, and what it took."""
        self._say(name)
        if self._site is not None:  # what the phase before left behind is none of this one's
            self._site.books.wait_booked(self.answered)
        before = self._look()
        result = self._drive(load, asked=asked, temperature=temperature)
        loaded = self._look()
        drain_s = 0.0 if self._site is None else self._site.books.wait_booked(self.answered)
        after = self._look()
        units = max(1, result["chunks_ok"] if load.mode == "stream" else result["ok"])
        wall_s, loaded_s = after.at_s - before.at_s, loaded.at_s - before.at_s
        ours_s = after.machine.ours_s - before.machine.ours_s
        return {
            "cpu_us": (after.cpu_s - before.cpu_s) / units * 1e6,
            "cpu_us_until_drained": (after.cpu_s - loaded.cpu_s) / units * 1e6,
            "utilisation": round((loaded.cpu_s - before.cpu_s) / loaded_s, 3),
            "per_second": result["per_second"],
            "ok": result["ok"],
            "chunks": result["chunks_ok"],
            "failed": failures_of(result),
            "example": result["example"],
            "drain_s": drain_s,
            "is_drained": drain_s is not None,
            "cache": result["tally"],
            "late": result["late"],
            **{quantity: result[quantity] for quantity in _LATENCIES},
            "apart_us": {
                **{who: (after.apart[who] - before.apart[who]) / units * 1e6 for who in before.apart},
                "load": result["load_cpu_s"] / units * 1e6,
            },
            "foreign_cores": max(0.0, (after.machine.busy_s - before.machine.busy_s - ours_s) / wall_s),
            "stolen_cores": (after.machine.stolen_s - before.machine.stolen_s) / wall_s,
            "wall_s": round(wall_s, 3),
        }

    def _look(self) -> _Look:
        apart = {} if self._site is None else dict(self._site.apart)
        apart["upstream"] = self._upstream.server.process.pid
        return _Look(
            apart={who: tree_cpu_s(pid) for who, pid in apart.items()},
            machine=machine_use(),
            cpu_s=self._running.cpu_s(),
            at_s=time.monotonic(),
        )


@dataclass(frozen=True, slots=True)
class _Look:
    """Counters at an instant."""

    apart: dict[str, float]
    machine: MachineUse
    cpu_s: float
    at_s: float


def check_books(site: Site, done: Round, traffic: Traffic) -> Record:
    """What the books say after everything; `problems` is empty when every number is right."""
    is_drained = site.books.wait_booked(done.answered) is not None
    totals = site.books.totals()
    is_green, report = site.audit()
    problems = []
    if not is_drained:
        problems.append(f"the spool is not empty {DRAIN_S:g} s after the load")
    if totals.attempts != done.answered or totals.answered != done.answered:
        problems.append(
            f"{done.answered:,} requests were answered, {totals.attempts:,} attempts are booked,"
            f" {totals.answered:,} of them answered"
        )
    if totals.charge_usd_nanos != done.cost_usd_nanos:
        problems.append(
            f"clients were told {done.cost_usd_nanos:,} nano-USD, {totals.charge_usd_nanos:,} are booked"
        )
    if totals.hits:
        problems.append(f"{totals.hits:,} answers came from the cache: the requests are not different")
    if not is_green:
        problems.append(f"tollgate audit: {report}")
    return {
        "answered": done.answered,
        "sent": traffic.sent + 1,
        "attempts": totals.attempts,
        "charge_usd_nanos": totals.charge_usd_nanos,
        "told_usd_nanos": done.cost_usd_nanos,
        "audit_is_green": is_green,
        "problems": problems,
    }
