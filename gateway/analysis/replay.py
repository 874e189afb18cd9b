"""Where would each recorded request have gone, and what would it have come to?

Through the same `decide()` and the same `Course` as live requests, in the order of time, with a policy,
prices and pools of one's choice; which pools were up is what recorded decisions tell. A request that the
record answered is answered again with the same tokens, unless another model would write it: then with as many
more or less as the record says of the two models and the task. Where it fell back after a failure, the same
failure happens at the same pool. Answers from the cache are found again by their slots. One whose original is
older than the record was in the cache when it begins, and would be under a policy that caches it, too; one
that does not is charged as for the original, if that is known.

Not replayed: what was refused before it was decided, budgets and rate limits, hedging.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from backends.pool import PoolSnapshot, PoolSpec, ReplicaSnapshot, ReplicaState
from gateway.analysis.adaptive import Adaptive
from gateway.analysis.fleet import Tell, Work, untold
from gateway.analysis.history import Reach, RecordedAttempt, RecordedRequest
from gateway.course import Course, Courses, baseline_of
from gateway.errors import CallerError, NoEligibleTarget
from gateway.inference import AttemptState, CacheRule, Task, TaskSource, TaskType, TokenUsage
from gateway.pricing.book import PriceBook, Prices
from gateway.pricing.rates import charge
from gateway.routing.decide import decide, match_of
from gateway.routing.policy import Policy
from gateway.routing.receipts import Shows
from gateway.routing.rules import NOBODY, Situation, is_measured

RATIO_ANSWERS_MIN: Final = 20
"""Answers behind a mean before it is used."""
STRATUM_ANSWERS_MIN: Final = 5
STRATA_MIN: Final = 4
UNKNOWN_ANSWER: Final = "unknown_answer"
"""Of a request that the record answered from the cache, and nobody knows what the original came to."""
_PROGRESS_EVERY: Final = 2_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is asked about."""

    name: str
    policy: Policy
    specs: Mapping[str, PoolSpec]
    prices: PriceBook
    tenants: Mapping[str, str] = field(default_factory=dict)
    """What people call them, by id; rules ask for names."""
    projects: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_adaptive(self) -> bool:
        """Measurements may overturn the order of some calls' targets."""
        return self.policy.economics.is_enabled or any(
            rule.objective in {"cost", "latency"} or rule.ttft_p95_s or rule.tpot_p95_s
            for rule in self.policy.rules.entries
        )


class Placed(msgspec.Struct, frozen=True):
    """What becomes of a request."""

    target: str | None
    """Who answers; None: nobody."""
    is_external: bool = False
    is_hit: bool = False
    """From the cache."""
    refusal: str | None = None
    """Code of the error that its client gets."""
    usage: TokenUsage = TokenUsage()
    charge_usd_nanos: int | None = 0
    """None: unpriced."""
    steps: int | None = None
    """Decode steps, where the record knows them of this pool."""
    is_imputed: bool = False
    """Its tokens are another request's: the record has none of its own."""
    has_unknown_length: bool = False
    """Another model writes it, and the record does not say how long that one's answers are."""
    targets: tuple[str, ...] = ()
    """That it might go to, in their order."""
    drops: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Replayed:
    """All requests under one scenario."""

    scenario: Scenario
    placed: list[Placed] = field(default_factory=list)
    cache_unknown: int = 0
    """Requests that this policy might answer from the cache, and of which the record does not know whether
    they are the same as another."""
    older_unknown: int = 0
    """Requests that this policy would not answer from the cache, and whose original is not known."""


@dataclass(frozen=True, slots=True)
class CachedRatio:
    """How many times as much of the same prompts one pool's prefix cache has as another's."""

    factor: float
    deviation: float


_ALIKE: Final = CachedRatio(1.0, 0.1)
"""Of pools that both cache prefixes, where the record cannot compare them; the deviation is a judgement."""


class Habits:
    """What the record says of answers in general: how much of the input was cached, how long they were."""

    def __init__(self, requests: Sequence[RecordedRequest]) -> None:
        """Count."""
        self._read: defaultdict[str, dict[tuple[str, str], list[int]]] = defaultdict(dict)
        self._written: defaultdict[tuple[str, TaskType], list[int]] = defaultdict(lambda: [0, 0])
        self._ratios: dict[tuple[str, str], CachedRatio] = {}
        for request in requests:
            answer = request.answer
            if answer is None:
                continue
            stratum = (request.tenant_id, request.task.type.value)
            sums = self._read[answer.pool].setdefault(stratum, [0, 0, 0])
            sums[0] += 1
            sums[1] += answer.input_tokens
            sums[2] += answer.usage.cached_input
            written = self._written[answer.pool, request.task.type]
            written[0] += 1
            written[1] += answer.output_tokens

    def cached_ratio(self, pool: str, other: str) -> CachedRatio:
        """How one pool's prefix cache compares with another's, on tenants and tasks that both have seen."""
        found = self._ratios.get((pool, other))
        if found is None:
            found = self._ratios[pool, other] = self._compare(pool, other)
        return found

    def _compare(self, pool: str, other: str) -> CachedRatio:
        here, there = self._read.get(pool, {}), self._read.get(other, {})
        rows = []
        for stratum in here.keys() & there.keys():
            one, two = here[stratum], there[stratum]
            if min(one[0], two[0]) >= STRATUM_ANSWERS_MIN and min(one[1], two[1]) > 0:
                rows.append((float(min(one[0], two[0])), one[2] / one[1], two[2] / two[1]))
        of_one, of_two = sum(row[0] * row[1] for row in rows), sum(row[0] * row[2] for row in rows)
        if len(rows) < STRATA_MIN or of_two <= 0:
            return _ALIKE
        factor = of_one / of_two
        errors = sum((row[0] * (row[1] - factor * row[2])) ** 2 for row in rows)
        own = math.sqrt(errors * len(rows) / (len(rows) - 1)) / of_two
        # What is thought of pools in general and what was counted of these, by how sure each is.
        weight = _ALIKE.deviation**2 / (_ALIKE.deviation**2 + own**2)
        return CachedRatio(1 + weight * (factor - 1), math.sqrt(weight) * own)

    def length_ratio(self, pool: str, other: str, task: TaskType) -> float | None:
        """How many times as long one pool's answers are as another's; None: too little is known."""
        here, there = self._written.get((pool, task)), self._written.get((other, task))
        if here is None or there is None or min(here[0], there[0]) < RATIO_ANSWERS_MIN or not there[1]:
            return None
        return (here[1] / here[0]) / (there[1] / there[0])


def work_of(index: int, request: RecordedRequest, place: Placed, *, start_ms: int) -> Work:
    """What a request asks of the pool that it goes to."""
    usage = place.usage
    read = usage.input + usage.cached_input + usage.cache_write
    return Work(
        index,
        (request.at_ms - start_ms) / 1000,
        place.target or "",
        request.task.type.value,
        max(1, read),
        min(usage.cached_input, max(0, read - 1)),
        max(1, usage.output + usage.reasoning),
        place.steps,
    )


def model_of(spec: PoolSpec) -> str:
    """What writes a pool's answers: the same name, the same text."""
    return spec.model.path or spec.model.served_name


def replay(
    requests: Sequence[RecordedRequest],
    scenario: Scenario,
    *,
    habits: Habits,
    recorded_specs: Mapping[str, PoolSpec],
    adaptive: Adaptive | None = None,
    donors: Mapping[tuple[str, str], RecordedAttempt] | None = None,
    on_requests: Tell = untold,
) -> Replayed:
    """Every request under a scenario, in the order of time.

    Args:
        requests: the record.
        scenario: what is asked about.
        habits: of the record.
        recorded_specs: the pools that the record speaks of.
        adaptive: orders the targets of a policy that follows measurements; None: its order holds.
        donors: who answered before the record what it answers from the cache, by tenant and slot.
        on_requests: told how many more are done, now and then.
    """
    found = Replayed(scenario)
    player = _Player(
        found,
        habits,
        recorded_specs=recorded_specs,
        adaptive=adaptive if scenario.is_adaptive else None,
        older=donors or {},
    )
    player.start_ms = requests[0].at_ms if requests else 0
    for number, request in enumerate(requests, start=1):
        found.placed.append(player.place(number - 1, request))
        if number % _PROGRESS_EVERY == 0:
            on_requests(_PROGRESS_EVERY)
    on_requests(len(requests) % _PROGRESS_EVERY)
    return found


class _Kept(msgspec.Struct, frozen=True):
    """An answer in the cache."""

    from_ms: float
    until_ms: float


class _Player:
    def __init__(
        self,
        found: Replayed,
        habits: Habits,
        *,
        recorded_specs: Mapping[str, PoolSpec],
        adaptive: Adaptive | None,
        older: Mapping[tuple[str, str], RecordedAttempt],
    ) -> None:
        self.start_ms = 0
        self._older = older
        self._adaptive = adaptive
        self._found = found
        self._scenario = found.scenario
        self._habits = habits
        self._recorded_specs = recorded_specs
        self._reach = Reach()
        self._snapshots: dict[frozenset[str], dict[str, PoolSnapshot]] = {}
        self._courses = Courses()
        self._cache: dict[tuple[str, str], _Kept] = {}
        self._donors: dict[tuple[str, str], RecordedAttempt] = {}
        """Who answered a slot last in the record: what an answer from the cache would have used."""
        self._tasks: dict[Task, Task] = {}

    def place(self, index: int, request: RecordedRequest) -> Placed:
        """What becomes of the next one."""
        down = self._reach.after(request)
        slot = (request.tenant_id, request.asked.slot or "")
        answer = request.answer
        if answer is not None and request.asked.slot is not None:
            self._donors[slot] = answer
        try:
            course = self._course(request, down)
        except NoEligibleTarget as error:
            return Placed(None, refusal=error.code)
        except CallerError as error:
            return Placed(None, refusal=error.code)
        terms = course.decision.terms
        rule = terms.cache or self._scenario.policy.cache
        may_read, may_keep = self._caching(request, rule)
        kept = self._cache.get(slot) if may_read else None
        targets = tuple(target.pool for target in course.decision.targets)
        drops = tuple((drop.pool, drop.reason) for drop in course.decision.drops)
        is_kept = kept is not None and kept.from_ms <= request.at_ms < kept.until_ms
        if is_kept or (kept is None and may_read and self._is_older(request, slot, rule)):
            return Placed(targets[0], is_hit=True, targets=targets, drops=drops)
        served, is_imputed = self._served(request, slot)
        if served is None:
            is_hit = request.cache == "hit"
            self._found.older_unknown += is_hit
            code = UNKNOWN_ANSWER if is_hit else "no_answer"
            return Placed(None, refusal=code, targets=targets, drops=drops)
        forecasts = None
        usually = self._scenario.policy.economics.is_enabled
        if self._adaptive is not None and is_measured(terms, usually=usually):
            course, forecasts = self._adaptive.order(
                course,
                request.call(),
                self._task(request.task),
                at_ms=request.at_ms,
                tenant_id=request.tenant_id,
                latency_class=request.latency_class,
                policy=self._scenario.policy,
            )
            targets = tuple(target.pool for target in course.decision.targets)
        target = self._answering(request, course)
        if may_keep and served.state is AttemptState.ANSWERED:
            ttl_s = rule.ttl_s if request.asked.ttl_s is None else min(rule.ttl_s, request.asked.ttl_s)
            from_ms = request.at_ms + (served.total_ms or 0)
            before = self._cache.get(slot)
            # A second answer takes the first one's place when it is there.
            since_ms = from_ms if before is None or before.until_ms < from_ms else before.from_ms
            self._cache[slot] = _Kept(since_ms, from_ms + ttl_s * 1000)
        place = self._priced(request, served, target, targets=targets, drops=drops, is_imputed=is_imputed)
        if self._adaptive is not None and not place.is_external:
            work = work_of(index, request, place, start_ms=self.start_ms)
            self._adaptive.took(work, request.tenant_id, forecasts)
        return place

    # -------------------------------------------------------------------------------------------- deciding
    def _course(self, request: RecordedRequest, down: frozenset[str]) -> Course:
        policy, call = self._scenario.policy, request.call()
        prices = self._scenario.prices.at(request.at_ms)
        task = self._task(request.task)
        may_leave, tier = request.has(Shows.MAY_LEAVE), request.latency_class
        situation, match = NOBODY, None
        if policy.rules.entries:
            situation = self._situation(request, prices)
            match = match_of(call, task, policy, latency_class=tier, situation=situation)

        def make() -> Course:
            decision = decide(
                call,
                task,
                policy,
                pools=self._pools(down),
                may_leave=may_leave,
                unpriced=prices.refused,
                latency_class=tier,
                situation=situation,
            )
            return Course(decision, prices, task=task, baseline=baseline_of(policy, call.model_alias, prices))

        key = (
            call.model_alias,
            task,
            call.facts.needs_full_sampling,
            call.facts.has_media,
            tier,
            may_leave,
            request.obstacle,
            call.endpoint,
            down,
            None if match is None else (match.rule.index, match.branch, match.low),
        )
        found = self._courses.find(key, make, policy=policy, prices=prices)
        return found.fitting(call)

    def _situation(self, request: RecordedRequest, prices: Prices) -> Situation:
        """Who asks, and when, as rules want to be told; how full budgets were nobody wrote down."""
        scenario, fixed = self._scenario, request.asked.fixed_tags
        return Situation(
            scenario.tenants.get(request.tenant_id, request.tenant_id),
            scenario.projects.get(request.project_id, request.project_id),
            tuple(sorted((name, request.tags[name]) for name in fixed if name in request.tags)),
            request.key_id,
            request.at_ms,
            prices.by_target,
        )

    def _task(self, recorded: Task) -> Task:
        """What this policy would take it for: it may ask for more confidence, or have another default."""
        found = self._tasks.get(recorded)
        if found is None:
            found = self._tasks[recorded] = self._judged(recorded)
        return found

    def _judged(self, recorded: Task) -> Task:
        policy = self._scenario.policy
        least = policy.classifier_confidence_min
        is_doubted = recorded.source is TaskSource.CLASSIFIER and (
            least is None or recorded.confidence < least
        )
        if is_doubted:
            return Task(policy.default_task, TaskSource.DEFAULT, 0.0)
        if recorded.source is TaskSource.DEFAULT:
            return msgspec.structs.replace(recorded, type=policy.default_task)
        return recorded

    def _pools(self, down: frozenset[str]) -> dict[str, PoolSnapshot]:
        found = self._snapshots.get(down)
        if found is None:
            found = self._snapshots[down] = {
                name: _snapshot(spec, is_up=name not in down) for name, spec in self._scenario.specs.items()
            }
        return found

    # --------------------------------------------------------------------------------------------- answering
    def _caching(self, request: RecordedRequest, rule: CacheRule) -> tuple[bool, bool]:
        """May it be answered from the cache, and its answer be kept there?"""
        temperature = request.asked.temperature
        if not rule.is_enabled or temperature is None or temperature > rule.temperature_max:
            return False, False
        if not request.has(Shows.CACHES):
            return False, False
        if request.asked.slot is None:
            self._found.cache_unknown += 1
            return False, False
        return request.has(Shows.MAY_READ), request.has(Shows.MAY_KEEP)

    def _served(self, request: RecordedRequest, slot: tuple[str, str]) -> tuple[RecordedAttempt | None, bool]:
        """The recorded attempt whose tokens it has, and whether that is another request's."""
        if request.cache == "hit":
            return self._donors.get(slot) or self._older.get(slot), True
        paid = [each for each in request.attempts if each.is_tenants]
        return (paid[-1] if paid else None), False

    def _is_older(self, request: RecordedRequest, slot: tuple[str, str], rule: CacheRule) -> bool:
        """Whether the cache has had its answer since before the record, and would have it under this rule."""
        if request.cache != "hit" or slot in self._donors:
            return False
        donor = self._older.get(slot)
        if donor is None:  # how old is not known; it was there
            return True
        return request.at_ms < donor.started_at_ms + (donor.total_ms or 0) + rule.ttl_s * 1000

    def _answering(self, request: RecordedRequest, course: Course) -> tuple[str, bool]:
        """The first target that does not fail as it did in the record."""
        failed = {each.pool for each in request.attempts if each.state is AttemptState.FAILED}
        targets = course.decision.targets
        first = targets[0]
        if failed:
            first = next((each for each in targets if each.pool not in failed), first)
        return first.pool, first.is_external

    def _priced(
        self,
        request: RecordedRequest,
        served: RecordedAttempt,
        target: tuple[str, bool],
        *,
        targets: tuple[str, ...],
        drops: tuple[tuple[str, str], ...],
        is_imputed: bool,
    ) -> Placed:
        pool, is_external = target
        usage, has_unknown_length = self._usage(request, served, pool)
        price = self._scenario.prices.at(request.at_ms).find(pool)
        return Placed(
            pool,
            is_external=is_external,
            usage=usage,
            charge_usd_nanos=None if price is None else charge(usage, price.rates),
            steps=served.draft_steps if pool == served.pool else None,
            is_imputed=is_imputed,
            has_unknown_length=has_unknown_length,
            targets=targets,
            drops=drops,
        )

    def _usage(self, request: RecordedRequest, served: RecordedAttempt, pool: str) -> tuple[TokenUsage, bool]:
        if pool == served.pool:
            return served.usage, False
        usage = served.usage
        here, there = self._scenario.specs.get(pool), self._recorded_specs.get(served.pool)
        if here is not None:
            read = usage.input + usage.cached_input
            caches = here.batching.enable_prefix_caching
            factor = self._habits.cached_ratio(pool, served.pool).factor if caches else 0.0
            cached = min(read, round(usage.cached_input * factor))
            usage = msgspec.structs.replace(usage, input=read - cached, cached_input=cached)
        if here is not None and there is not None and model_of(here) == model_of(there):
            return usage, False
        longer = self._habits.length_ratio(pool, served.pool, request.task.type)
        if longer is None:
            return usage, True
        written, reasoned = round(usage.output * longer), round(usage.reasoning * longer)
        return msgspec.structs.replace(usage, output=written, reasoning=reasoned), False


def _snapshot(spec: PoolSpec, *, is_up: bool) -> PoolSnapshot:
    replica = ReplicaSnapshot(
        pool=spec.name,
        replica=f"{spec.name}-0",
        url="",
        state=ReplicaState.READY if is_up else ReplicaState.UNHEALTHY,
        in_flight=0,
        load=None,
        consecutive_failures=0,
    )
    return PoolSnapshot(spec=spec, replicas=(replica,))
