"""A world that a backtest cannot see into: what happens there is recorded, and only the record is shown.

It is richer than what the backtest knows: every part of a step's time is off from the profile by up to 15 %,
compute and memory overlap a little (the profile adds them), acceptance differs by task from the bench's,
drifts while the hour goes on and differs from request to request, prefixes are really cached, requests come
in bursts, and a sampled answer has another length each time that it is drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from backends.files import load_pools
from backends.pool import PoolSnapshot, PoolSpec, ReplicaSnapshot, ReplicaState
from backends.profile import load_profile
from backends.simulator.calibration import Guessing, SimulatedPool
from backends.simulator.fleet import Outcome, simulate
from backends.simulator.requests import Sequence as Sequence_
from backends.simulator.requests import SimulatedRequest
from gateway.analysis.history import History, RecordedAttempt, RecordedRequest
from gateway.analysis.speed import guessing_of
from gateway.inference import (
    AttemptState,
    Call,
    CallFacts,
    Endpoint,
    Task,
    TaskSource,
    TaskType,
    TokenUsage,
)
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import cards_of
from gateway.pricing.rates import charge
from gateway.routing.decide import decide
from gateway.routing.policy import Policy
from gateway.routing.receipts import Asked, Shows
from tests.load.measured import ROOT

START_MS: Final = 1_800_000_000_000
BLOCK_TOKENS: Final = 32
SLOTS: Final = 12
KINDS: Final = 3
"""Requests of a task are of as many kinds, by how well they are guessed."""


@dataclass(frozen=True, slots=True)
class TaskLoad:
    """What requests of a task are like."""

    share: float
    input_tokens: float
    output_tokens: float
    certain: float
    """Share that is asked at temperature 0."""
    acceptance: float
    """Mean accepted tokens per step."""


TASKS: Final = {
    TaskType.EXTRACTION: TaskLoad(0.25, 180, 60, 0.9, 2.8),
    TaskType.CLASSIFICATION: TaskLoad(0.12, 120, 8, 1.0, 2.2),
    TaskType.CODE: TaskLoad(0.13, 160, 110, 0.4, 2.4),
    TaskType.SUMMARIZATION: TaskLoad(0.12, 320, 70, 0.3, 1.9),
    TaskType.QA: TaskLoad(0.13, 140, 50, 0.3, 1.8),
    TaskType.CHAT: TaskLoad(0.15, 90, 90, 0.05, 1.5),
    TaskType.CREATIVE: TaskLoad(0.10, 60, 150, 0.0, 1.4),
}
TENANTS: Final = ("acme", "globex", "initech", "umbrella", "hooli")
CLASSES: Final = ("priority", "default", "flex")


@dataclass(frozen=True, slots=True)
class Asking:
    """One request, as it comes from outside."""

    at_s: float
    tenant: str
    task: TaskType
    alias: str
    tier: str
    temperature: float
    prefix_blocks: int
    input_tokens: int
    length_mean: float
    """Logarithm of its answer's length, without chance."""
    same_as: int | None
    """Number of the request that it repeats."""
    kind: int


class OverlappingPool(SimulatedPool):
    """Steps whose parts overlap a little: nearer to a maximum than a sum, as around the ridge."""

    __slots__ = ()

    def step_s(self, *, tokens: float, context_tokens: float, sequences: float, proposed: float) -> float:
        """One step, with a part of the lesser half saved."""
        time = self.step_time
        memory_s = time.fixed_s + time.kv_token_s * context_tokens
        compute_s = time.batched_token_s * tokens + time.sequence_s * sequences
        if self.draft_tokens:
            memory_s += self.draft.fixed_s + self.draft.kv_token_s * context_tokens
            compute_s += self.draft.proposed_token_s * proposed
        return math.exp(math.log(memory_s**OVERLAP + compute_s**OVERLAP) / OVERLAP)


OVERLAP: Final = 1.08


@dataclass(frozen=True, slots=True)
class World:
    """Hidden: how the pools really are."""

    specs: Mapping[str, PoolSpec]
    pools: Mapping[str, SimulatedPool]
    asked: Sequence[Asking]
    seed: int


def make_world(seed: int, *, seconds: float = 3600.0, per_s: float = 1.6) -> World:
    """The world of a seed: its pools and the hour's requests."""
    draw = random.Random(f"world {seed}")
    specs = load_pools(ROOT / "backends" / "pools")
    pools = {}
    for name, spec in specs.items():
        assert spec.profile is not None
        known = SimulatedPool.of(load_profile(Path(spec.profile)), prefix_block_tokens=BLOCK_TOKENS)
        step = known.step_time.model_copy(
            update={
                part: getattr(known.step_time, part) * draw.uniform(0.85, 1.15)
                for part in ("fixed_s", "batched_token_s", "kv_token_s", "sequence_s", "request_s")
            }
        )
        drafting = known.draft.model_copy(
            update={"proposed_token_s": known.draft.proposed_token_s * draw.uniform(0.85, 1.15)}
        )
        pools[name] = OverlappingPool(
            known.engine,
            step,
            draft=drafting,
            draft_tokens=known.draft_tokens,
            guessing=_guessing(known, draw) if known.draft_tokens else {},
            prefix_block_tokens=BLOCK_TOKENS,
        )
    return World(specs, pools, _asked(draw, seconds=seconds, per_s=per_s), seed)


def _guessing(known: SimulatedPool, draw: random.Random) -> dict[str, Guessing]:
    base = known.guessing[""].by_position
    found = {"": known.guessing[""]}
    for task, load in TASKS.items():
        middle, drift = load.acceptance * draw.uniform(0.85, 1.15), 0.0
        for slot in range(SLOTS):
            drift = 0.8 * drift + draw.gauss(0.0, 0.05)
            for kind in range(KINDS):
                mean = middle * math.exp(drift) * (0.8 + 0.2 * kind)
                found[_cell(task, slot, kind)] = guessing_of(base, min(mean, 3.7))
    return found


def _cell(task: TaskType, slot: int, kind: int) -> str:
    return f"{task.value} {slot} {kind}"


def _asked(draw: random.Random, *, seconds: float, per_s: float) -> list[Asking]:
    tasks, shares = list(TASKS), [load.share for load in TASKS.values()]
    tilts = {tenant: [share * math.exp(draw.gauss(0, 0.6)) for share in shares] for tenant in TENANTS}
    weights = [0.35, 0.25, 0.2, 0.12, 0.08]
    asked: list[Asking] = []
    repeatable: list[int] = []
    at_s, burst_until_s, next_burst_s = 0.0, -1.0, draw.expovariate(1 / 240)
    while True:
        is_burst = at_s < burst_until_s
        at_s += draw.expovariate(per_s * (2.5 if is_burst else 0.85))
        if at_s >= seconds:
            return asked
        if at_s >= next_burst_s:
            burst_until_s = at_s + draw.expovariate(1 / 30)
            next_burst_s = burst_until_s + draw.expovariate(1 / 240)
        if repeatable and draw.random() < 0.04:
            number = draw.choice(repeatable[-200:])
            asked.append(replace(asked[number], at_s=at_s, same_as=number))
            continue
        tenant = draw.choices(TENANTS, weights)[0]
        task = draw.choices(tasks, tilts[tenant])[0]
        load = TASKS[task]
        alias = draw.choices(
            ("auto", "tollgate-reference-speculative", "tollgate-reference-plain"), (0.84, 0.08, 0.08)
        )[0]
        is_certain = draw.random() < load.certain
        asked.append(
            Asking(
                at_s,
                tenant,
                task,
                alias,
                draw.choices(CLASSES, (0.2, 0.65, 0.15))[0],
                0.0 if is_certain else 0.8,
                draw.choice((0, 1, 2, 3)),
                max(8, min(700, round(load.input_tokens * math.exp(draw.gauss(0, 0.4))))),
                math.log(load.output_tokens) + draw.gauss(0, 0.35),
                None,
                draw.randrange(KINDS),
            )
        )
        if is_certain:
            repeatable.append(len(asked) - 1)


# --------------------------------------------------------------------------------------------- what happens
@dataclass(frozen=True, slots=True)
class Happened:
    """An hour under a policy: what was recorded, and what only the world knows."""

    history: History
    cost_usd_nanos: float
    """Of the time in which engines stepped."""
    busy_s: Mapping[str, float]
    outcomes: Mapping[str, Outcome]


def run_world(world: World, policy: Policy, *, run: str, prices: PriceBook | None = None) -> Happened:
    """An hour under a policy.

    Args:
        world: the world.
        policy: what decides.
        run: names the luck of it: other answers are drawn under another name.
        prices: the price book; None: the pools' own.
    """
    book = prices or PriceBook(cards_of(world.specs))
    luck = random.Random(f"run {world.seed} {run}")
    lengths = [_length(asking, luck) for asking in world.asked]
    deciding = _Deciding(world, policy)
    works: dict[str, list[tuple[int, SimulatedRequest]]] = {name: [] for name in world.specs}
    decisions, kept = [], dict[int, float]()
    for number, asking in enumerate(world.asked):
        original = number if asking.same_as is None else asking.same_as
        decision = deciding.of(asking)
        is_certain = asking.temperature == 0
        if is_certain and kept.get(original, math.inf) <= asking.at_s:
            decisions.append((decision, True))
            continue
        decisions.append((decision, False))
        if is_certain:
            kept.setdefault(original, asking.at_s + 0.6)
        length = lengths[original] if is_certain else lengths[number]
        works[decision[0][0]].append((number, _simulated(asking, length)))
    seed = luck.randrange(1 << 30)
    outcomes = {
        name: simulate([request for _, request in of_pool], world.pools[name], seed=seed)
        for name, of_pool in works.items()
    }
    ended = {
        number: (name, sequence)
        for name, of_pool in works.items()
        for (number, _), sequence in zip(of_pool, outcomes[name].sequences, strict=True)
    }
    requests = []
    for number, (asking, (decision, is_hit)) in enumerate(zip(world.asked, decisions, strict=True)):
        requests.append(
            _recorded(world, policy, book, number, asking, decision, None if is_hit else ended[number])
        )
    busy_s = {name: outcome.busy_s for name, outcome in outcomes.items()}
    cost = sum(
        seconds * float(world.specs[name].hardware.usd_per_hour) * 1e9 / 3600
        for name, seconds in busy_s.items()
    )
    last_ms = START_MS + math.ceil(world.asked[-1].at_s * 1000) + 1
    return Happened(History(START_MS, last_ms, requests), cost, busy_s, outcomes)


def _length(asking: Asking, luck: random.Random) -> int:
    chance = luck.gauss(0, 0.35)
    length = round(math.exp(asking.length_mean + (0.0 if asking.temperature == 0 else chance)))
    return max(2, min(256, length))


class _Deciding:
    """What the gateway decides; everybody is up."""

    def __init__(self, world: World, policy: Policy) -> None:
        self._policy = policy
        self._pools = {
            name: PoolSnapshot(
                spec=spec,
                replicas=(ReplicaSnapshot(name, f"{name}-0", "", ReplicaState.READY, 0, None, 0),),
            )
            for name, spec in world.specs.items()
        }
        self._known: dict[tuple[str, TaskType, str], tuple[tuple[str, ...], tuple[tuple[str, str], ...]]] = {}

    def of(self, asking: Asking) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
        key = (asking.alias, asking.task, asking.tier)
        if key not in self._known:
            task = Task(asking.task, TaskSource.DECLARED, 1.0)
            found = decide(_call(asking), task, self._policy, pools=self._pools, latency_class=asking.tier)
            self._known[key] = (
                tuple(target.pool for target in found.targets),
                tuple((drop.pool, drop.reason) for drop in found.drops),
            )
        return self._known[key]


def _call(asking: Asking) -> Call:
    return Call(
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model_alias=asking.alias,
        fields={},
        is_streaming=False,
        wants_usage=False,
        wants_continuous_usage=False,
        max_tokens=256,
        choices=1,
        facts=CallFacts(temperature=asking.temperature),
        declared_task=asking.task,
        tags={},
        end_user=None,
        service_tier=asking.tier,
        affinity_key=None,
        dropped=(),
        client_request_id=None,
        body_bytes=asking.input_tokens * 4,
    )


def _simulated(asking: Asking, length: int) -> SimulatedRequest:
    slot = min(SLOTS - 1, int(asking.at_s / 3600 * SLOTS))
    first = TENANTS.index(asking.tenant) * 100 + 1
    blocks = min(asking.prefix_blocks, (asking.input_tokens - 1) // BLOCK_TOKENS)
    return SimulatedRequest(
        asking.at_s,
        asking.input_tokens,
        length,
        _cell(asking.task, slot, asking.kind),
        prefix=tuple(range(first, first + blocks)),
    )


def _recorded(
    world: World,
    policy: Policy,
    book: PriceBook,
    number: int,
    asking: Asking,
    decision: tuple[tuple[str, ...], tuple[tuple[str, str], ...]],
    ended: tuple[str, Sequence_] | None,
) -> RecordedRequest:
    """What ledger and receipts keep of it; `ended` is None where the cache answered."""
    original = number if asking.same_as is None else asking.same_as
    at_ms = START_MS + int(asking.at_s * 1000)
    is_certain = asking.temperature == 0
    asked = Asked(
        shows=int(Shows.MAY_READ | Shows.MAY_KEEP | Shows.CACHES),
        body_bytes=asking.input_tokens * 4,
        prompts=1,
        choices=1,
        max_tokens=256,
        temperature=asking.temperature,
        latency_class=asking.tier,
        slot=f"{original:016x}" if is_certain else None,
        ttl_s=None,
    )
    targets, drops = decision
    pool, attempt = targets[0], _HIT
    if ended is not None:
        pool, sequence = ended
        attempt = _attempt(sequence, pool, at_ms=at_ms, book=book)
    return RecordedRequest(
        f"req_{number:012x}",
        at_ms,
        asking.tenant,
        f"{asking.tenant}-project",
        f"{asking.tenant}-key",
        "chat/completions",
        asking.alias,
        False,
        Task(asking.task, TaskSource.DECLARED, 1.0),
        asking.tier,
        {},
        "hit" if ended is None else "miss" if is_certain else "bypass",
        asked,
        policy.version,
        targets,
        drops,
        None,
        [replace_pool(attempt, pool, at_ms) if ended is None else attempt],
    )


_HIT: Final = RecordedAttempt(
    "", "cache", 0, AttemptState.ANSWERED, True, TokenUsage(), 0, "", None, 0, None, None, None, None
)


def replace_pool(attempt: RecordedAttempt, pool: str, at_ms: int) -> RecordedAttempt:
    """The same of another pool and instant."""
    return msgspec.structs.replace(attempt, pool=pool, started_at_ms=at_ms)


def _attempt(sequence: Sequence_, pool: str, *, at_ms: int, book: PriceBook) -> RecordedAttempt:
    request = sequence.request
    cached = sequence.cached_tokens
    usage = TokenUsage(input=request.input_tokens - cached, cached_input=cached, output=request.output_tokens)
    price = book.at(at_ms).price_of(pool)
    is_speculating = sequence.draft_steps > 0
    return RecordedAttempt(
        pool,
        f"{pool}-0",
        at_ms,
        AttemptState.ANSWERED,
        True,
        usage,
        charge(usage, price.rates),
        price.version,
        None,
        round((sequence.end_s - sequence.sent_s) * 1000),
        sequence.queue_s * 1000,
        (sequence.end_s - sequence.first_token_s) * 1000,
        sequence.draft_steps if is_speculating else None,
        sequence.accepted_tokens if is_speculating else None,
    )
