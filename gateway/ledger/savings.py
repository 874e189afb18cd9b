"""What did speculation, quantization, batching, caching and routing save, and how sure is that?

Pure. A saving is a model, never netted into a cost. It is told against a declared baseline, as a chain of
costs of the same work: each step changes one thing, a line is the difference of two steps, and so the lines
add up to baseline minus actual cost and nothing is counted twice. The order, which decides who gets what two
of them save together:

    everything on the naive pool, also what the cache answered
    - cache         what the cache answered is not computed
    - batching      so many requests at a time as were measured, instead of the declared number
    - quantization  the home pool's engine without speculation, at its price, instead of the naive one's
    - routing       the pools that were chosen, still without speculation, instead of the home pool
    - speculation   verification steps as the engines counted them, instead of one for each token
    - unexplained   engine time as it was measured, instead of as it is modelled: no saving, the model's error

A line that lacks a datum claims nothing and says why; what it would have been is then part of `unexplained`.
Engine time in a batch of b (the form of `backends.profile`; attention while reading is left out):

    read     fixed_s / b + batched_token_s * fresh input
    write    steps * (fixed_s / b + sequence_s) + batched_token_s * tokens computed + kv_token_s * context
    drafts   steps * draft fixed_s / b + proposed_token_s * tokens proposed

Seconds and ratios are floats, for they are estimates; each cost of the chain is rounded once to nano-USD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt

from gateway.inference import TokenUsage
from gateway.pricing.rates import Rates, charge

_S_PER_HOUR = 3600
SURE = 1.96
"""Standard errors on either side that hold the truth 95 times of 100."""


class What(StrEnum):
    """What saved."""

    CACHE = "cache"
    BATCHING = "batching"
    QUANTIZATION = "quantization"
    ROUTING = "routing"
    SPECULATION = "speculation"
    UNEXPLAINED = "unexplained"
    SELF_HOSTING = "self_hosting"


@dataclass(frozen=True, slots=True)
class Engine:
    """What a step takes in an engine, seconds, and what an hour of it costs."""

    fixed_s: float
    batched_token_s: float
    kv_token_s: float
    sequence_s: float
    draft_fixed_s: float = 0.0
    proposed_token_s: float = 0.0
    error_ratio: float | None = None
    """Of the times; None: nobody said."""
    source: str = ""
    is_quantized: bool | None = None
    """None: not known."""


@dataclass(frozen=True, slots=True)
class Work:
    """What some attempts of tenants came to: sums."""

    pool: str
    model_alias: str
    task: str
    attempts: int
    input_tokens: int
    """Fresh ones."""
    cached_input_tokens: int
    output_tokens: int
    context_tokens: float
    """Attended to while writing: for each token written, those before it."""
    squares: float
    """Of input and output together, by attempt: how much they scatter."""
    measured: int
    """Attempts whose engine counted its verification steps; the rest is of these."""
    steps: int
    drafted_tokens: int
    measured_output_tokens: int
    measured_context_tokens: float


@dataclass(frozen=True, slots=True)
class Hits:
    """Requests that the cache answered."""

    model_alias: str
    task: str
    count: int


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What was measured of a pool in the period."""

    usd_nanos_per_hour: float
    """Of busy time."""
    batch: float | None
    """Mean number of requests in a replica that has any; None: it had none."""
    usage_usd_nanos: int
    """Cost of tenants' requests by engine time."""

    @property
    def usd_nanos_per_s(self) -> float:
        """Of busy time."""
        return self.usd_nanos_per_hour / _S_PER_HOUR


@dataclass(frozen=True, slots=True)
class Line:
    """One saving."""

    what: What
    usd_nanos: int
    """Below zero: it cost more."""
    low_usd_nanos: int | None
    high_usd_nanos: int | None
    """Between them the truth is expected; None: nobody knows how sure the constants are."""
    measured: str
    modelled: str
    is_claimed: bool = True
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One baseline against what was."""

    name: str
    method: str
    baseline_usd_nanos: int
    actual_usd_nanos: int
    actual_is: str
    lines: tuple[Line, ...]
    """Together baseline minus actual."""


@dataclass(frozen=True, slots=True)
class Naive:
    """The declared naive pool."""

    engine: Engine
    usd_nanos_per_hour: int
    batch: int | None
    source: str


def seconds(engine: Engine, work: Work, batch: float, *, does_speculate: bool = False) -> float:
    """Modelled engine time of some work, seconds of a replica."""
    fixed_s = engine.fixed_s / batch
    read_s = work.attempts * fixed_s + engine.batched_token_s * work.input_tokens
    steps, computed, context = float(work.output_tokens), float(work.output_tokens), work.context_tokens
    draft_s = 0.0
    if does_speculate and work.measured:
        others = work.output_tokens - work.measured_output_tokens
        steps = others + work.steps
        computed = steps + work.drafted_tokens
        ratio = min(1.0, work.steps / max(1, work.measured_output_tokens))
        context = work.context_tokens - work.measured_context_tokens * (1 - ratio)
        draft_s = work.steps * engine.draft_fixed_s / batch + work.drafted_tokens * engine.proposed_token_s
    write_s = steps * (fixed_s + engine.sequence_s)
    return read_s + write_s + engine.batched_token_s * computed + engine.kv_token_s * context + draft_s


def against_naive_pool(
    naive: Naive,
    works: Sequence[Work],
    hits: Sequence[Hits],
    *,
    pools: Mapping[str, PoolFacts],
    engines: Mapping[str, Engine],
    home_pool: str | None,
) -> Comparison:
    """The chain against the naive pool.

    Args:
        naive: the baseline.
        works: what was computed for tenants in the pools of `pools`.
        hits: what the cache answered.
        pools: what was measured of each pool.
        engines: by pool, those whose profile is known.
        home_pool: where everything would have gone; None: not declared.
    """
    works = [work for work in works if work.pool in pools]
    actual = sum(facts.usage_usd_nanos for facts in pools.values())
    batches = {name: max(1.0, facts.batch or 1.0) for name, facts in pools.items()}

    alone = [_naive(naive, work, naive.batch or batches[work.pool]) for work in works]
    together = [_naive(naive, work, batches[work.pool]) for work in works]
    avoided, scatter, unknown = _avoided(works, alone, hits)
    stages = _Stages(naive.engine.error_ratio)
    stages.begin(sum(alone) + avoided)
    count = sum(one.count for one in hits)
    stages.next(
        What.CACHE,
        sum(alone),
        error=scatter,
        measured=f"{count - unknown} answers from the cache",
        modelled="each as much work as the mean computed request of its model and task",
        why_not="" if count else "the cache answered nothing",
    )
    stages.next(
        What.BATCHING,
        sum(together),
        measured="requests at a time: "
        + ", ".join(f"{name} {batches[name]:.2f}" for name in sorted({work.pool for work in works})),
        modelled=f"a step's fixed time is shared by the batch; constants: {naive.source}",
        why_not="" if naive.batch is not None else "the policy declares no batch of the naive pool",
    )
    _by_engine(stages, works, pools=pools, engines=engines, home_pool=home_pool, batches=batches)
    stages.end(actual)
    return Comparison(
        name="naive_pool",
        method="chain of modelled costs, in the order of the lines; usage basis",
        baseline_usd_nanos=stages.first,
        actual_usd_nanos=actual,
        actual_is="engine time of tenants' requests at what the hours cost (usage basis, without idle time)",
        lines=tuple(stages.lines),
    )


def _naive(naive: Naive, work: Work, batch: float) -> float:
    return seconds(naive.engine, work, batch) / _S_PER_HOUR * naive.usd_nanos_per_hour


def _avoided(works: Sequence[Work], costs: Sequence[float], hits: Sequence[Hits]) -> tuple[float, float, int]:
    """What the cache's answers would have cost, its sampling error (95 %), and hits that nothing is like."""
    total = variance = 0.0
    unknown = 0
    for one in hits:
        like = [
            (work, cost)
            for work, cost in zip(works, costs, strict=True)
            if (work.model_alias, work.task) == (one.model_alias, one.task)
        ]
        attempts = sum(work.attempts for work, _ in like)
        if not attempts:
            unknown += one.count
            continue
        each = sum(cost for _, cost in like) / attempts
        total += one.count * each
        mean = sum(work.input_tokens + work.output_tokens for work, _ in like) / attempts
        spread = max(0.0, sum(work.squares for work, _ in like) / attempts - mean * mean)
        if mean:
            # Of the mean that stands for them, and of themselves around it.
            relative = sqrt(spread * (1 / attempts + 1 / one.count)) / mean
            variance += (one.count * each * relative) ** 2
    return total, SURE * sqrt(variance), unknown


def _by_engine(
    stages: _Stages,
    works: Sequence[Work],
    *,
    pools: Mapping[str, PoolFacts],
    engines: Mapping[str, Engine],
    home_pool: str | None,
    batches: Mapping[str, float],
) -> None:
    """The three lines that compare engines."""
    home = engines.get(home_pool or "")
    facts = pools.get(home_pool or "")
    no_home = _why_no_home(home_pool, home, facts)
    of_home: float | None = None
    if home is not None and facts is not None and not no_home:
        of_home = sum(seconds(home, work, batches[work.pool]) for work in works) * facts.usd_nanos_per_s
    _quantization(stages, of_home, home, why_not=no_home)
    used = sorted({work.pool for work in works})
    lacking = ", ".join(name for name in used if name not in engines)
    no_profile = f"no profile of {lacking}" if lacking else ""
    errors = [engines[name].error_ratio for name in used if name in engines]
    known = [error for error in errors if error is not None]
    error_ratio = max(known, default=None) if len(known) == len(errors) else None
    of_pools: tuple[float, float] | None = None
    if not lacking:
        one_each, drafted = (
            sum(
                pools[work.pool].usd_nanos_per_s
                * seconds(engines[work.pool], work, batches[work.pool], does_speculate=does_speculate)
                for work in works
            )
            for does_speculate in (False, True)
        )
        of_pools = one_each, drafted
    stages.next(
        What.ROUTING,
        None if of_pools is None else of_pools[0],
        error_ratio=error_ratio,
        is_other_engine=any(name != home_pool for name in used),
        measured="attempts by pool: "
        + ", ".join(f"{name} {sum(work.attempts for work in works if work.pool == name)}" for name in used),
        modelled="step times of the pools' profiles, at what their hours cost",
        why_not=no_home or no_profile,
    )
    if of_pools is not None:
        stages.jump(of_pools[0], error_ratio)
    measured = sum(work.measured for work in works)
    stages.next(
        What.SPECULATION,
        None if of_pools is None else of_pools[1],
        error_ratio=error_ratio,
        measured=f"{sum(work.steps for work in works)} verification steps for"
        f" {sum(work.measured_output_tokens for work in works)} tokens in {measured} attempts",
        modelled="step times with and without drafts, by the pools' profiles",
        why_not=no_profile or ("" if measured else "no engine counted its verification steps"),
    )


def _quantization(stages: _Stages, of_home: float | None, home: Engine | None, *, why_not: str) -> None:
    if not why_not and home is not None and home.is_quantized is not True:
        why_not = (
            "the weights of the home pool are not quantized"
            if home.is_quantized is False
            else "whether the weights of the home pool are quantized is not known here"
        )
    error_ratio = None if home is None else home.error_ratio
    stages.next(
        What.QUANTIZATION,
        of_home,
        error_ratio=error_ratio,
        is_other_engine=True,
        measured="tokens",
        modelled="step times of both engines" + ("" if home is None else f"; home pool: {home.source}"),
        why_not=why_not,
    )
    stages.jump(of_home, error_ratio)


def _why_no_home(home_pool: str | None, home: Engine | None, facts: PoolFacts | None) -> str:
    if home_pool is None:
        return "the policy declares no home_pool"
    if home is None:
        return f"no profile of {home_pool}"
    return (
        ""
        if facts is not None and facts.usd_nanos_per_hour
        else f"{home_pool} cost nothing in this period, so there is no price to compare at"
    )


class _Stages:
    """The chain as it grows."""

    def __init__(self, error_ratio: float | None) -> None:
        self.lines: list[Line] = []
        self.first = 0
        self._now = 0
        self._aside = 0
        """Differences that no line claims."""
        self._ratio = error_ratio
        """How wrong the cost that the chain has come to may be."""

    def begin(self, usd_nanos: float) -> None:
        """Everything on the baseline."""
        self.first = self._now = round(usd_nanos)

    def jump(self, usd_nanos: float | None, error_ratio: float | None) -> None:
        """Go on from this cost; None: stay. What lies between is claimed by nobody."""
        if usd_nanos is not None:
            self._aside += self._now - round(usd_nanos)
            self._now, self._ratio = round(usd_nanos), error_ratio

    def next(
        self,
        what: What,
        usd_nanos: float | None,
        *,
        measured: str,
        modelled: str,
        why_not: str = "",
        error: float = 0.0,
        error_ratio: float | None = None,
        is_other_engine: bool = False,
    ) -> None:
        """One thing changes, and the work costs so much.

        Args:
            what: what changes.
            usd_nanos: what the work costs then; None: it cannot be said.
            measured: what of it was measured.
            modelled: what of it is modelled.
            why_not: why nothing is claimed; empty: it is.
            error: of the difference itself, beside that of the constants.
            error_ratio: of the new cost, where its constants are another engine's.
            is_other_engine: the errors of both costs are independent; else they are one, of the difference.
        """
        if why_not or usd_nanos is None:
            self.lines.append(Line(what, 0, None, None, measured, modelled, False, why_not))
            return
        cost = round(usd_nanos)
        saved = self._now - cost
        ratio = error_ratio if is_other_engine else self._ratio
        half: float | None = None
        if self._ratio is not None and ratio is not None:
            of_constants = self._now * self._ratio + cost * ratio if is_other_engine else abs(saved) * ratio
            half = of_constants + error
        low, high = (None, None) if half is None else (round(saved - half), round(saved + half))
        self.lines.append(Line(what, saved, low, high, measured, modelled))
        self._now = cost
        if is_other_engine:
            self._ratio = error_ratio

    def end(self, actual: int) -> None:
        """What was measured is what it is: the rest is the model's error."""
        rest = self._aside + self._now - actual
        self.lines.append(
            Line(
                What.UNEXPLAINED,
                rest,
                rest,
                rest,
                "engine time and what the hours cost",
                "the last cost of the chain",
                False,
                "the model's error, and what the lines above could not claim",
            )
        )


def against_list_price(
    name: str,
    rates: Rates,
    source: str,
    *,
    works: Sequence[Work],
    hits: Sequence[Hits],
    bill_usd_nanos: int,
) -> Comparison:
    """A model outside at its list price, against the whole bill of our own pools.

    Args:
        name: of the model, for people.
        rates: what it would charge.
        source: whose list.
        works: what was computed for tenants.
        hits: what the cache answered.
        bill_usd_nanos: of all pools, idle time included: build or buy is decided on that.
    """
    costs = [float(_listed(work, rates)) for work in works]
    avoided, scatter, unknown = _avoided(works, costs, hits)
    served = sum(_listed(work, rates) for work in works)
    cached = round(avoided)
    count = sum(one.count for one in hits)
    lines = [
        Line(
            What.CACHE,
            cached,
            round(avoided - scatter),
            round(avoided + scatter),
            f"{count - unknown} answers from the cache",
            "each as many tokens as the mean computed request of its model and task",
        )
        if count
        else Line(What.CACHE, 0, None, None, "", "", False, "the cache answered nothing"),
        Line(
            What.SELF_HOSTING,
            served - bill_usd_nanos,
            served - bill_usd_nanos,
            served - bill_usd_nanos,
            "tokens by meter, and the bill of all pools, idle time included",
            f"the same tokens at {source}: another model's tokenizer and answers may be longer or shorter",
        ),
    ]
    return Comparison(
        name=name,
        method="tokens at list price; allocation basis",
        baseline_usd_nanos=served + cached,
        actual_usd_nanos=bill_usd_nanos,
        actual_is="the bill of all pools (allocation basis)",
        lines=tuple(lines),
    )


def _listed(work: Work, rates: Rates) -> int:
    usage = TokenUsage(
        input=work.input_tokens, cached_input=work.cached_input_tokens, output=work.output_tokens
    )
    return charge(usage, rates) + rates.per_request * max(0, work.attempts - 1)
