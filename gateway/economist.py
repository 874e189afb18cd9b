"""What is believed of each pool at this moment, and which of a call's targets follows from it?

Keeps what was learned (read from the database at intervals, off the request path) and makes of it, for each
pool and task that is asked for, the few coefficients that a prediction takes; a call only puts its own
numbers and the pools' load in. What is kept is worked out anew after each reading, off the request path too.
The only state is here; the arithmetic is `routing/economics.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from backends.choice import BY_LOAD
from backends.pool import PoolSpec
from backends.registry import PoolRegistry
from gateway.clock import Clock
from gateway.course import NO_FORECAST, Course, forecast_text
from gateway.db import SessionFactory
from gateway.inference import NO_TERMS, Call, RouteTerms, Task, TaskSource, TaskType
from gateway.routing.economics import (
    GATE_NEVER,
    KNOWN_WEIGHT_MIN,
    NO_TARGET,
    POLICY,
    Gate,
    LatencyTarget,
    Outlook,
    Outlooks,
    Prediction,
    Rule,
    Why,
    choose,
    gate_of,
    outlook_of,
    predict,
)
from gateway.routing.learning import EVERY_TASK, EVERY_TENANT, Belief, Evidence, after, believe
from gateway.routing.learning_store import LearnedKey, LearnedRow, read_learned
from gateway.routing.policy import Policy
from gateway.routing.priors import OUTPUT_TOKENS, Priors
from gateway.routing.rules import BYTES_PER_TOKEN

OUTLOOKS_MAX: Final = 4_096
TENANT_WEIGHT_MIN: Final = 20.0
"""Requests behind a tenant's own figures before they count."""
OVERLAP_MS: Final = 10_000
"""Read again: what a transaction folds it commits a little later."""
FULL_RATIO: Final = 0.95
"""A cache as full as this, with requests waiting: no further one gets in."""
FADE_MS: Final = 15_000
"""How old a look at faded evidence may be."""
URGENT: Final = "priority"
PATIENT: Final = "flex"

_TASKS: Final = frozenset({EVERY_TASK, *(task.value for task in TaskType)})
_NO_EVIDENCE: Final = Evidence()

_log = logging.getLogger(__name__)


class Forecasts(msgspec.Struct, frozen=True):
    """What was predicted of a call's targets, in the order in which they are tried."""

    outlooks: tuple[Outlook, ...]
    predictions: list[Prediction]

    def texts(self, targets: int) -> list[bytes]:
        """Each target's as its receipt keeps it."""
        shown = list(map(forecast_text, self.outlooks, self.predictions))
        return shown if len(shown) == targets else shown + [NO_FORECAST] * (targets - len(shown))

    def of(self, pool: str) -> Prediction | None:
        """A pool's; None: nothing was predicted of it."""
        for outlook, prediction in zip(self.outlooks, self.predictions, strict=True):
            if outlook.pool == pool:
                return prediction
        return None


_Key = tuple[tuple[str, ...], TaskType, str, LatencyTarget | None]
"""Pools, task, tenant, and the latency that a policy asks for: nothing else of a policy counts, so that two
versions beside each other share what is worked out."""


class Economist:
    """Predicts for one gateway process."""

    def __init__(
        self,
        registry: PoolRegistry,
        priors: Priors,
        *,
        clock: Clock,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Know nothing yet.

        Args:
            registry: the pools and their load.
            priors: what is thought of them before anything is measured.
            clock: shared by all processes; evidence fades by it.
            draw: a number from 0 to below 1, for explorations.
        """
        self._registry = registry
        self._priors = priors
        self._clock = clock
        self._draw = draw
        self._beside: Economist | None = None
        self._faded: dict[LearnedKey, Evidence] = {}
        self._faded_at_ms = 0
        self._rows: dict[LearnedKey, LearnedRow] = {}
        self._tenants: set[tuple[TaskType | str, str]] = set()
        """Those whose own answers' length is known, by task."""
        self._known: dict[_Key, Outlooks] = {}
        self._asked: set[_Key] = set()
        self._policy: Policy | None = None
        self._epoch = object()
        """Another one after each reading: what was worked out before is out of date."""
        self.turned: dict[str, int] = {why.value: 0 for why in Why}
        """How many calls went where they did for which reason."""

    @property
    def priors(self) -> Priors:
        """What was thought of the pools before anything was measured."""
        return self._priors

    @property
    def beside(self) -> Economist:
        """One that believes the same, for copies: what it works out takes the place of nothing."""
        if self._beside is None:
            other = Economist(self._registry, self._priors, clock=self._clock, draw=self._draw)
            other._faded, other._rows, other._tenants = self._faded, self._rows, self._tenants
            self._beside = other
        return self._beside

    # ------------------------------------------------------------------------------------ a call
    def order(
        self,
        course: Course,
        call: Call,
        task: Task,
        *,
        tenant_id: str,
        latency_class: str,
        policy: Policy,
        is_question: bool = False,
    ) -> tuple[Course, Forecasts | None]:
        """The course in the order that follows from predictions, and those.

        Args:
            course: in the policy's order.
            call: what was asked.
            task: what it is.
            tenant_id: whose call it is.
            latency_class: priority, default or flex.
            policy: the one in force.
            is_question: nobody is served: nothing is counted, explored, or worked out again later.
        """
        pools = course.pools
        if not pools:
            return course, None
        whose = EVERY_TENANT
        if self._tenants and (task.type, tenant_id) in self._tenants:
            whose = tenant_id
        if course.believed_in is not self._epoch:
            course.believed_in, course.beliefs = self._epoch, {}
        found = course.beliefs.get(whose)
        if found is None:
            key = (pools, task.type, whose, policy.economics.targets.get(latency_class))
            believed = self._work_out(key) if is_question else self._find(key, policy)
            found = course.beliefs[whose] = _asked_of(course, believed)
        tokens = found.output_tokens
        if call.max_tokens is not None and call.max_tokens < tokens:
            tokens = float(call.max_tokens)
        registry, outlooks = self._registry, found.pools
        load_of = registry.load_without_copies if registry.copies else registry.load_of
        read = call.body_bytes // BYTES_PER_TOKEN
        loads = list(map(load_of, pools))
        predictions = _predicted(outlooks, loads, input_tokens=read, output_tokens=tokens)
        rule, first, why = policy.economics, 0, POLICY
        if len(pools) > 1:
            is_urgent, is_patient = latency_class == URGENT, latency_class == PATIENT
            terms = course.decision.terms
            if terms is not NO_TERMS:
                is_urgent, is_patient = _asked_by(terms, is_urgent=is_urgent, is_patient=is_patient)
            targets = found.targets
            first, why = choose(
                outlooks, predictions, rule, targets=targets, is_urgent=is_urgent, is_patient=is_patient
            )
            if rule.exploration and not is_question and self._explores(rule, task, latency_class):
                others = [index for index in range(len(pools)) if index != first]
                first, why = others[int(self._draw() * len(others))], Why.EXPLORATION
        if registry.copies:  # they decide nothing, but what is told and learned from is how it really is
            loads = list(map(registry.load_of, pools))
            predictions = _predicted(outlooks, loads, input_tokens=read, output_tokens=tokens)
        if not is_question:
            self.turned[why._value_] += 1  # a member's own hash takes longer than all of this line
        if first:
            outlooks = (outlooks[first], *outlooks[:first], *outlooks[first + 1 :])
            predictions.insert(0, predictions.pop(first))
        return course.led_by(first, why), Forecasts(outlooks, predictions)

    def _explores(self, rule: Rule, task: Task, latency_class: str) -> bool:
        if task.source is TaskSource.DECLARED or latency_class == URGENT:
            return False
        return self._draw() < rule.exploration

    # ------------------------------------------------------------------------------------ what is believed
    def _find(self, key: _Key, policy: Policy) -> Outlooks:
        self._policy = policy
        self._asked.add(key)
        return self._known.get(key) or self._make(key)

    def _make(self, key: _Key) -> Outlooks:
        if len(self._known) >= OUTLOOKS_MAX:
            self._known.clear()
        found = self._known[key] = self._work_out(key)
        return found

    def _work_out(self, key: _Key) -> Outlooks:
        pools, task, tenant_id, asked = key
        made = tuple(self.outlook(pool, task, tenant_id) for pool in pools)
        plain = [each for each in made if not each.is_speculative]
        gated = tuple(msgspec.structs.replace(each, gate=_gate_in_force(each, plain)) for each in made)
        targets = tuple(self._usual_target(pool) if asked is None else asked for pool in pools)
        wanted = () if all(each == NO_TARGET for each in targets) else targets
        return Outlooks(gated, wanted, made[0].output_tokens)

    def outlook(self, pool: str, task: TaskType, tenant_id: str = EVERY_TENANT) -> Outlook:
        """What is believed of a pool for a task."""
        spec = self._registry.specs[pool]
        lengths = self._lengths(task, tenant_id)
        live = spec.expected_lengths.mean_live_tokens if spec.expected_lengths else OUTPUT_TOKENS
        pace = self._priors.pace(spec, live)
        seats, wake_s = self._seats(pool, pace.seats), self._wake_s(pool)
        if seats != pace.seats or wake_s:
            pace = msgspec.structs.replace(pace, seats=seats, request_s=pace.request_s + wake_s)
        accepted = None if spec.speculation is None else self._priors.accepted(spec, task)
        evidence = self.evidence(pool, task)
        if accepted is not None and tenant_id:
            own = self.evidence(pool, task, tenant_id).accepted
            if own.slow.weight >= TENANT_WEIGHT_MIN:  # drawn to everybody's
                everybodys = believe(evidence.accepted.slow, accepted)
                accepted = Belief(everybodys.mean, everybodys.deviation, KNOWN_WEIGHT_MIN)
                evidence = msgspec.structs.replace(evidence, accepted=own)
        return outlook_of(
            pool,
            pace,
            accepted=accepted,
            task=evidence,
            whole=self.evidence(pool, EVERY_TASK),
            lengths=lengths,
            usd_per_hour=float(spec.hardware.usd_per_hour),
            is_sticky=spec.choice_rule not in BY_LOAD,
        )

    def accepted(self, pool: str, task: TaskType) -> Belief:
        """Tokens that are believed to be accepted per verification step; 0 where nothing is drafted."""
        spec = self._registry.specs[pool]
        if spec.speculation is None:
            return Belief(0.0, 0.0, 0.0)
        return believe(self.evidence(pool, task).accepted.slow, self._priors.accepted(spec, task))

    def gates(self, pool: str, task: TaskType) -> dict[str, Gate]:
        """Up to how many requests per replica speculation pays, against each pool that does not speculate."""
        own = self.outlook(pool, task)
        if not own.is_speculative:
            return {}
        beside: set[str] = set()
        if self._policy is None:
            beside.update(self._registry.specs)
        else:
            for allowed in self._policy.models.values():
                if pool in allowed:
                    beside |= allowed
        plain = [name for name in sorted(beside) if self._registry.specs[name].speculation is None]
        return {name: gate_of(own, self.outlook(name, task)) for name in plain}

    def evidence(self, pool: str, task: str, tenant_id: str = EVERY_TENANT) -> Evidence:
        """What was measured; nothing where nothing was."""
        key = LearnedKey(pool, task, tenant_id)
        found = self._faded.get(key)
        if found is None:
            row = self._rows.get(key)
            if row is None:
                return _NO_EVIDENCE
            age_s = (self._clock.epoch_ms() - row.folded_at_ms) / 1000
            found = self._faded[key] = after(row.evidence, age_s)
        return found

    def _lengths(self, task: TaskType, tenant_id: str) -> Evidence:
        """Whose answers' length counts: the pool's that gave most, for length is the task's, not a pool's."""
        found = [self.evidence(pool, task, tenant_id) for pool in self._registry.specs]
        return max(found, key=lambda each: each.output_tokens.weight, default=Evidence())

    def _seats(self, pool: str, seats: int) -> int:
        """How many requests a replica generates together; where its cache is full, as many as now."""
        loads = [one.load for one in self._registry.snapshot(pool).replicas if one.load is not None]
        full = [
            load.requests_running
            for load in loads
            if load.kv_cache_usage_ratio >= FULL_RATIO and load.requests_waiting
        ]
        if not full or len(full) < len(loads):
            return seats
        return max(1, min(seats, round(sum(full) / len(full))))

    def _wake_s(self, pool: str) -> float:
        """How long a call would wait for a pool of which all replicas sleep."""
        if self._registry.snapshot(pool).ready_count or not self._registry.asleep_count(pool):
            return 0.0
        return self._registry.wake_expected_s(pool)

    def _usual_target(self, pool: str) -> LatencyTarget:
        spec: PoolSpec = self._registry.specs[pool]
        if spec.latency_targets is None:
            return NO_TARGET
        ttft_ms, tpot_ms = spec.latency_targets.ttft_p95_ms, spec.latency_targets.tpot_p95_ms
        return LatencyTarget(
            None if ttft_ms is None else ttft_ms / 1000, None if tpot_ms is None else tpot_ms / 1000
        )

    # ------------------------------------------------------------------------------------ what is learned
    def take(self, rows: Iterable[LearnedRow]) -> None:
        """Take over what was learned, and work out anew what is asked for."""
        now_ms = self._clock.epoch_ms()
        if now_ms - self._faded_at_ms >= FADE_MS:
            self._faded_at_ms = now_ms
            self._faded.clear()
        for row in rows:
            if row.key.pool not in self._registry.specs or row.key.task not in _TASKS:
                continue  # its file is gone, or the task's name
            self._faded.pop(row.key, None)
            known = self._rows.get(row.key)
            if known is None or row.folded_at_ms >= known.folded_at_ms:
                self._rows[row.key] = row
                if row.key.tenant_id and row.evidence.output_tokens.weight >= TENANT_WEIGHT_MIN:
                    self._tenants.add((row.key.task, row.key.tenant_id))
        self._renew()
        if self._beside is not None:
            self._beside._renew()  # noqa: SLF001 - its own kind

    def _renew(self) -> None:
        asked = self._asked
        self._known, self._asked, self._epoch = {}, set(), object()
        for key in asked:
            self._make(key)

    def rows(self) -> Mapping[LearnedKey, LearnedRow]:
        """What was learned, as of the instants at which it was folded."""
        return self._rows


def _predicted(
    outlooks: Sequence[Outlook], loads: Sequence[float], *, input_tokens: int, output_tokens: float
) -> list[Prediction]:
    """What a call would take at each pool that so much is under way at per replica."""
    share = sum(loads) / len(loads) + 1.0
    return [
        predict(outlooks[place], load, share, input_tokens=input_tokens, output_tokens=output_tokens)
        for place, load in enumerate(loads)
    ]


def _asked_by(terms: RouteTerms, *, is_urgent: bool, is_patient: bool) -> tuple[bool, bool]:
    """Is the call routed for its time, for its cost alone: what its rule says goes before its class."""
    has_targets = terms.ttft_p95_s is not None or terms.tpot_p95_s is not None
    return (
        terms.objective == "latency" or (is_urgent and terms.objective != "cost"),
        is_patient and terms.objective != "latency" and not has_targets,
    )


def _asked_of(course: Course, found: Outlooks) -> Outlooks:
    """With what the call's rule asks of each candidate, where it asks for something."""
    terms = course.decision.terms
    if terms.ttft_p95_s is None and terms.tpot_p95_s is None:
        return found
    asked = LatencyTarget(terms.ttft_p95_s, terms.tpot_p95_s)
    return msgspec.structs.replace(found, targets=(asked,) * len(found.pools))


def _gate_in_force(outlook: Outlook, plain: list[Outlook]) -> float:
    """Beyond it a plain pool is better though acceptance be as good as it may; never without measurements.

    Where it would not even pay for one request, the costs decide, with their margin.
    """
    if not outlook.is_speculative or not outlook.is_known:
        return GATE_NEVER
    gates = [gate_of(outlook, other).most for other in plain if other.is_known]
    least = min(gates, default=GATE_NEVER)
    return least if least >= 1 else GATE_NEVER


class Reader:
    """Brings what was learned from the database to the economist, as long as it runs."""

    def __init__(self, economist: Economist, sessions: SessionFactory, *, interval_s: float) -> None:
        """Only remembers.

        Args:
            economist: who is told.
            sessions: where it is kept.
            interval_s: between two looks.
        """
        self._economist = economist
        self._sessions = sessions
        self._interval_s = interval_s
        self._since_ms = 0
        self._stopping = asyncio.Event()
        self._is_away = False

    def stop(self) -> None:
        """Let `run` end after the look under way."""
        self._stopping.set()

    async def refresh(self) -> None:
        """Look once.

        Raises:
            SQLAlchemyError, OSError: the database is away; what is known stays as it is.
        """
        async with self._sessions() as session:
            rows = await read_learned(session, since_ms=self._since_ms)
        if rows:
            self._since_ms = max(row.folded_at_ms for row in rows) - OVERLAP_MS
        self._economist.take(rows)

    async def run(self) -> None:
        """Look at intervals until stopped; a database that is away is survived."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._interval_s)
            if self._stopping.is_set():
                return
            try:
                await self.refresh()
                self._is_away = False
            except (SQLAlchemyError, OSError) as error:
                if not self._is_away:
                    _log.warning("what was learned cannot be read (what is known is used on): %s", error)
                self._is_away = True
