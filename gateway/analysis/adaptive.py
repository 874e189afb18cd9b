"""Where would measurements have sent a request? The gateway's own economist, on a simulated fleet.

A policy that lets measurements overturn its order decides by the pools' load and by what their answers have
taught. Both follow from the decisions before, so that such a policy is replayed while the fleet is simulated:
in the most probable world, from nothing but the pools' profiles, with what is learned folded in every
`FOLD_S`. The load is what requests are under way, as a gateway sees it that serves alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from backends.pool import PoolSpec
from backends.registry import PoolRegistry
from backends.simulator.replica import NeverFits, Replica
from backends.simulator.requests import Sequence as Simulated
from gateway.analysis.fleet import SimulatedFleet, Work, chosen, simulated_request
from gateway.clock import Clock
from gateway.course import Course
from gateway.economist import Economist, Forecasts
from gateway.inference import Call, Task
from gateway.routing.learning import Evidence, Lesson, after, fold
from gateway.routing.learning_store import LearnedKey, LearnedRow, by_key
from gateway.routing.policy import Policy
from gateway.routing.priors import Priors

FOLD_S: Final = 20.0
"""Live it is within a second; half of what is learned is older than a minute anyway."""
_NEVER_EXPLORES: Final = 1.0


class _Clock(Clock):
    """Shows the replayed time."""

    def __init__(self, start_ms: int) -> None:
        super().__init__()
        self.start_ms = start_ms
        self.at_s = 0.0

    def epoch_ms(self) -> int:
        """The replayed instant."""
        return self.start_ms + int(self.at_s * 1000)

    def monotonic_s(self) -> float:
        """Seconds since the first request."""
        return self.at_s


class _Registry(PoolRegistry):
    """Pools whose load is a simulated fleet's."""

    def __init__(self, specs: Mapping[str, PoolSpec], replicas: Mapping[str, Sequence[Replica]]) -> None:
        super().__init__(specs)
        self._simulated = replicas

    def load_of(self, pool: str) -> float:
        """Requests under way per replica."""
        of_pool = self._simulated[pool]
        return sum(each.requests for each in of_pool) / len(of_pool)


class Adaptive:
    """Orders targets as the gateway would, while the fleet works off what was sent before."""

    def __init__(
        self, fleet: SimulatedFleet, specs: Mapping[str, PoolSpec], luck: Sequence[float], *, start_ms: int
    ) -> None:
        """An idle fleet of which nothing is known but profiles.

        Args:
            fleet: the pools.
            specs: their files.
            luck: see `fleet.SimulatedFleet.run`.
            start_ms: of the record.
        """
        self._fleet, self._luck = fleet, luck
        self._clock = _Clock(start_ms)
        self._replicas = {
            name: [
                Replica(fleet.pools[name], seed=number, on_end=self._ended)
                for number in range(fleet.replicas[name])
            ]
            for name in specs
        }
        self._economist = Economist(
            _Registry(specs, self._replicas),
            Priors(specs),
            clock=self._clock,
            draw=lambda: _NEVER_EXPLORES,
        )
        self._sent: dict[Simulated, tuple[Work, str, Forecasts | None]] = {}
        self._lessons: list[Lesson] = []
        self._known: dict[LearnedKey, LearnedRow] = {}
        self._fold_at_s = FOLD_S

    def order(
        self,
        course: Course,
        call: Call,
        task: Task,
        *,
        at_ms: int,
        tenant_id: str,
        latency_class: str,
        policy: Policy,
    ) -> tuple[Course, Forecasts | None]:
        """The course in the order that follows from predictions at that instant."""
        self._clock.at_s = max(self._clock.at_s, (at_ms - self._clock.start_ms) / 1000)
        for of_pool in self._replicas.values():
            for replica in of_pool:
                replica.advance(self._clock.at_s)
        if self._clock.at_s >= self._fold_at_s:
            self._fold()
        return self._economist.order(
            course, call, task, tenant_id=tenant_id, latency_class=latency_class, policy=policy
        )

    def took(self, work: Work, tenant_id: str, forecasts: Forecasts | None) -> None:
        """A request goes where it was ordered to."""
        pool, replicas = self._fleet.pools[work.pool], self._replicas[work.pool]
        request = simulated_request(work, pool, self._luck[work.index])
        try:
            sequence = replicas[chosen(replicas, request)].offer(request)
        except NeverFits:
            return
        self._sent[sequence] = (work, tenant_id, forecasts)

    def _ended(self, sequence: Simulated) -> None:
        work, tenant_id, forecasts = self._sent.pop(sequence)
        steps = sequence.draft_steps or work.output_tokens - 1
        predicted = None if forecasts is None else forecasts.of(work.pool)
        self._lessons.append(
            Lesson(
                work.pool,
                work.task,
                tenant_id,
                work.output_tokens,
                work.cached_tokens / work.input_tokens,
                sequence.draft_steps or None,
                sequence.accepted_tokens if sequence.draft_steps else None,
                sequence.queue_s * 1000,
                sequence.ttft_s * 1000,
                (sequence.end_s - sequence.first_token_s) * 1000 / steps if steps > 0 else None,
                None if predicted is None else predicted.modelled_ttft_s * 1000,
                None if predicted is None else predicted.modelled_step_s * 1000,
            )
        )

    def _fold(self) -> None:
        now_ms = self._clock.epoch_ms()
        rows = []
        for key, lessons in by_key(self._lessons).items():
            before = self._known.get(key, LearnedRow(key, 0, now_ms, Evidence()))
            evidence = fold(after(before.evidence, (now_ms - before.folded_at_ms) / 1000), lessons)
            rows.append(LearnedRow(key, before.lessons + len(lessons), now_ms, evidence))
        self._known.update({row.key: row for row in rows})
        self._economist.take(rows)
        self._lessons = []
        self._fold_at_s = self._clock.at_s + FOLD_S
