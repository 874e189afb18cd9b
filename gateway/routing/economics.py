"""What would this call take and cost on each pool now, and is that reason enough to leave the policy's order?

A decode step costs its time, divided by the requests that share it and by the tokens that it yields. The time
is the pool's step-time model corrected by what was measured, the tokens are the acceptance that was learned
for the task. Times are predicted at each pool's own load.

Hours are paid whether they are used or not, so what a call costs beyond them is the time that it takes from
everybody: its own until its end, and what the requests beside it wait longer, at the price of the engine
(its burden). A price per token at a pool's load would call the empty pool dear, and all would follow the
crowd; the burden calls the crowded one dear. The receipt's cost is at the load that the candidates have on
average.

The policy's order holds unless

- the speculating pool has more requests than speculation pays for (the gate), and another one's burden is
  less,
- the latency class would be missed there, and by the margin less elsewhere; where pools are balanced by load,
  and the call is not of the highest class, only if that takes no more from everybody, by the margin: those
  beside it there would be late instead,
- the call is of the highest class and another pool is faster by the margin,
- another pool's burden is less because it has less to do; by the margin where the first one's replicas are
  chosen for the prefixes that they have, for these would be left behind; or
- it is less by the margin by what was measured of both, and by more than chance explains; where no prefixes
  would be left behind, what is more probable is enough, from the first request on.

No load or cost moves a call from where its target is kept to where it would be missed; where both miss it,
not to where it is missed by the margin more. How full a pool is, is a fact; that another one is better for a
task than the policy says is a belief. Pure; floats, for these are predictions: no amount that is ever booked
comes from here. Seconds, tokens, nano-USD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from gateway.routing.learning import Belief, Evidence, believe
from gateway.routing.priors import (
    OUTPUT_TOKENS,
    OUTPUT_WEIGHT,
    STEP_OTHERS,
    STEP_OWN,
    STEP_SPREAD,
    TTFT_SPREAD,
    Pace,
)

CONFIDENCE_Z: Final = 1.96
"""Two-sided 95 of 100."""
TAIL_Z: Final = 1.645
"""The 95th percentile of a normal distribution."""
KNOWN_WEIGHT_MIN: Final = 6.0
"""Requests behind a figure, decayed, before it may overturn anything."""
FIGURE_MAX: Final = 2**53 - 1
"""No predicted figure is shown above this: every reader of JSON takes it."""
GATE_NEVER: Final = math.inf
ROUNDED: Final = 1 + 1e-9
"""A lead that may be rounding."""
OVERLAP: Final = 0.5
"""Of an answer's steps, those that another request shares with it: of two of like length one ends first."""


class Why(StrEnum):
    """Why a pool stands first."""

    POLICY = "policy"
    GATE = "gate"
    LATENCY = "latency"
    SPEED = "speed"
    COST = "cost"
    LOAD = "load"
    EXPECTED = "expected"
    EXPLORATION = "exploration"


# CPython 3.11 takes a tenth of a microsecond to find an enum's member by name, a decision several of them.
POLICY: Final = Why.POLICY
_COST, _LOAD, _EXPECTED = Why.COST, Why.LOAD, Why.EXPECTED

REASONS: Final = {
    Why.GATE: "has more requests than speculation pays for by measurement",
    Why.LATENCY: "would miss the latency target",
    Why.SPEED: "is slower at the 95th percentile by measurement",
    Why.COST: "is dearer by measurement",
    Why.LOAD: "has more to do",
    Why.EXPECTED: "is expected to be dearer, before enough was measured",
    Why.EXPLORATION: "waits, for this request measures another pool",
}
"""What is said of the pool that the policy would have taken."""


class LatencyTarget(msgspec.Struct, frozen=True):
    """What shall hold 95 of 100 times; None: nothing is asked."""

    ttft_s: float | None = None
    tpot_s: float | None = None


NO_TARGET: Final = LatencyTarget()


class Rule(msgspec.Struct, frozen=True):
    """What a policy says about it."""

    is_enabled: bool = False
    switch_margin: float = 0.15
    """Share by which another pool has to be better."""
    exploration: float = 0.0
    """Share of requests that may go to another pool than the best, to measure it."""
    targets: dict[str, LatencyTarget] = {}
    """By latency class; a class that is not there has those of the pool's file."""


class Outlook(msgspec.Struct, frozen=True):
    """What is believed of a pool for a task: all that a prediction needs beside the call and the load."""

    pool: str
    fixed_s: float
    """Of a step; it takes `fixed_s + sequence_s * sequences`, corrected by measurement."""
    sequence_s: float
    prompt_token_s: float
    request_s: float
    ttft_factor: float
    """First tokens took so many times what the corrected steps make of them."""
    step_factor: float
    """By which steps were corrected: what they took over what the model said."""
    seats: int
    chunk_tokens: int
    tokens_per_step: float
    output_tokens: float
    """Of an answer."""
    fresh_ratio: float
    """Share of the input that the prefix cache does not have."""
    usd_nanos_per_s: float
    usd_nanos_per_hour: int
    deviation: float
    """Of the logarithm of the cost of a token, one standard deviation."""
    step_tail: float
    """The 95th percentile over the middle."""
    ttft_tail: float
    is_known: bool
    """Measured enough to overturn the policy's order."""
    is_speculative: bool
    is_sticky: bool
    """Its replicas are chosen for the prefixes that they have: who goes elsewhere leaves them behind."""
    gate: float = GATE_NEVER
    """Requests per replica beyond which speculation does not pay, by the most that its acceptance may be."""


class Outlooks(msgspec.Struct, frozen=True):
    """Of some candidates for one task, tenant and class: what does not depend on the call."""

    pools: tuple[Outlook, ...]
    targets: tuple[LatencyTarget, ...]
    """Of each for the call's latency class; none: nothing is asked."""
    output_tokens: float


class Prediction(msgspec.Struct, frozen=True):
    """What a call would take and cost on a pool."""

    queue_s: float
    ttft_s: float
    """The queue included."""
    tpot_s: float
    total_s: float
    cost_usd_nanos: float
    """At the load that the candidates have on average."""
    share: float
    """Requests that share a step, this one included."""
    cost_share: float
    """Those that the cost takes to share it."""
    read_s: float
    """Of engine time for the prompt."""
    modelled_ttft_s: float
    """Before correction, for comparison with what is measured."""
    modelled_step_s: float
    burden_s: float
    """What the call takes of everybody's time: its own, and what those beside it wait longer."""
    even_burden_s: float
    """The same, had all candidates the load that they have on average."""


_ALWAYS_ONE: Final = Belief(0.0, 0.0, math.inf)


def outlook_of(
    pool: str,
    pace: Pace,
    *,
    accepted: Belief | None,
    task: Evidence,
    whole: Evidence,
    lengths: Evidence,
    usd_per_hour: float,
    is_sticky: bool,
) -> Outlook:
    """What evidence makes of a pool's model.

    Args:
        pool: its name.
        pace: its model.
        accepted: what was thought of its acceptance; None: it does not speculate.
        task: what was measured of this pool and task.
        whole: what was measured of this pool with any task: steps take the same time for all.
        lengths: whose answers' length counts: the task's, or its tenant's.
        usd_per_hour: of one replica.
        is_sticky: its replicas are chosen for the prefixes that they have.
    """
    step_prior = STEP_OWN if pace.is_measured else STEP_OTHERS
    of_pool = believe(whole.step_log.slow, step_prior)
    # The task's own is drawn to the pool's: a little evidence must not make a task look different.
    step = believe(task.step_log.slow, Belief(of_pool.mean, STEP_SPREAD, KNOWN_WEIGHT_MIN))
    first = believe(whole.ttft_log.slow, Belief(of_pool.mean, step_prior.deviation, step_prior.weight))
    yielded = _ALWAYS_ONE if accepted is None else believe(task.accepted.slow, accepted)
    step_weight = max(of_pool.weight, step.weight)
    tokens_per_step = 1 + max(0.0, yielded.mean)
    # Where the pool's steps are known, the task's are as uncertain as the pool's own.
    step_deviation = min(step.deviation, math.hypot(of_pool.deviation, STEP_SPREAD / 2))
    length = believe(lengths.output_tokens, Belief(OUTPUT_TOKENS, OUTPUT_TOKENS, OUTPUT_WEIGHT))
    factor = math.exp(step.mean)
    return Outlook(
        pool,
        pace.fixed_s * factor,
        pace.sequence_s * factor,
        pace.prompt_token_s * factor,
        pace.request_s,
        math.exp(first.mean) / factor,
        factor,
        pace.seats,
        pace.chunk_tokens,
        tokens_per_step,
        max(1.0, length.mean),
        1 - min(1.0, max(0.0, task.cached_ratio.ratio)),
        usd_per_hour * 1e9 / 3600,
        round(usd_per_hour * 1e9),
        math.hypot(step_deviation, yielded.deviation / tokens_per_step),
        math.exp(TAIL_Z * (whole.step_log.slow.deviation if of_pool.weight else STEP_SPREAD)),
        math.exp(TAIL_Z * (whole.ttft_log.slow.deviation if first.weight else TTFT_SPREAD)),
        (pace.is_measured or step_weight >= KNOWN_WEIGHT_MIN) and yielded.weight >= KNOWN_WEIGHT_MIN,
        accepted is not None,
        is_sticky,
    )


def predict(
    outlook: Outlook, load: float, share: float, *, input_tokens: int, output_tokens: float
) -> Prediction:
    """What a call would take and cost.

    Args:
        outlook: the pool.
        load: requests per replica there now, this one not counted.
        share: requests per replica that money is compared at, this one counted.
        input_tokens: of the call.
        output_tokens: of its answer.
    """
    seats, tokens_per_step = outlook.seats, outlook.tokens_per_step
    fixed_s, sequence_s, request_s = outlook.fixed_s, outlook.sequence_s, outlook.request_s
    own = load + 1.0
    queued = own - seats
    if queued > 0:
        own = float(seats)
    step_s = fixed_s + sequence_s * own
    tpot_s = step_s / tokens_per_step
    # A seat becomes free as often as answers end.
    queue_s = queued * output_tokens * tpot_s / seats if queued > 0 else 0.0
    fresh_s = input_tokens * outlook.fresh_ratio * outlook.prompt_token_s
    steps = 1 + input_tokens // outlook.chunk_tokens
    engine_s = steps * step_s + fresh_s
    ttft_factor, correction = outlook.ttft_factor, outlook.step_factor
    ttft_s = queue_s + (request_s + engine_s) * ttft_factor
    total_s = ttft_s + output_tokens * tpot_s
    shared = share if share < seats else float(seats)
    even_step_s = fixed_s + sequence_s * shared
    decoded = output_tokens / tokens_per_step
    longer_s = fresh_s + OVERLAP * decoded * sequence_s
    return Prediction(
        queue_s,
        ttft_s,
        tpot_s,
        total_s,
        outlook.usd_nanos_per_s * (fresh_s + decoded * even_step_s / shared),
        own,
        shared,
        fresh_s,
        queue_s + request_s + engine_s / correction,
        step_s / correction,
        total_s + (own - 1.0) * longer_s,
        (request_s + steps * even_step_s + fresh_s) * ttft_factor
        + decoded * even_step_s
        + (shared - 1.0) * longer_s,
    )


def choose(
    outlooks: Sequence[Outlook],
    predictions: Sequence[Prediction],
    rule: Rule,
    *,
    targets: Sequence[LatencyTarget],
    is_urgent: bool,
    is_patient: bool,
) -> tuple[int, Why]:
    """Which candidate stands first, and why.

    Args:
        outlooks: the candidates in the policy's order, at least one.
        predictions: of each.
        rule: the policy's.
        targets: of each for the call's latency class; none: nothing is asked.
        is_urgent: the highest class: it is routed for its 95th percentile before its cost.
        is_patient: the lowest class: for its cost alone, whatever it waits.
    """
    count = range(len(outlooks))
    late: Sequence[float] = ()
    if targets and not is_patient:
        late = list(map(_lateness, outlooks, predictions, targets))
    met = [i for i in count if late[i] <= 1.0] if late else count
    if late and late[0] > 1.0:
        sooner = [i for i in met or [_soonest(late)] if late[i] < late[0] * (1 - rule.switch_margin)]
        if not (is_urgent or outlooks[0].is_sticky):
            sooner = _unburdening(sooner, predictions, rule)
        if sooner:
            burdens = [outlooks[i].usd_nanos_per_s * predictions[i].burden_s for i in sooner]
            return sooner[burdens.index(min(burdens))], Why.LATENCY
    if is_urgent and met:
        quicker = _better(outlooks, [_total_p95_s(outlooks[i], predictions[i]) for i in count], 0, rule=rule)
        if quicker is not None and quicker in met:
            return quicker, Why.SPEED
    base, first = outlooks[0], predictions[0]
    is_beyond, margin = first.share > base.gate, 1 / (1 - rule.switch_margin)
    stays = is_patient or base.is_sticky
    best, most, why = 0, margin if stays and not is_beyond else ROUNDED, POLICY
    for other in count[1:]:
        if is_urgent and _is_slower(outlooks, predictions, other):
            continue
        if (
            late
            and late[other] > 1.0
            and (late[0] <= 1.0 or late[other] * (1 - rule.switch_margin) > late[0])
        ):
            continue
        its, second = outlooks[other], predictions[other]
        lead, reason = _lead((base, first), (its, second), is_patient=is_patient, margin=margin)
        if lead > most and (second.share <= its.gate or second.share < first.share):
            best, most, why = other, lead, reason
    return best, Why.GATE if best and is_beyond else why


def _soonest(late: Sequence[float]) -> int:
    """Where nobody keeps the target: who is nearest to it."""
    return min(range(len(late)), key=late.__getitem__)


def _unburdening(sooner: Sequence[int], predictions: Sequence[Prediction], rule: Rule) -> list[int]:
    """Where a late call takes no more of everybody's time than at the first, by the margin: time, not money.

    All calls that would be late follow each other to the pool that is not yet, and its own are late then. In
    simulation (`tests/load/fleet_simulation.py`) fleets carried less for it within a target.
    """
    most_s = predictions[0].burden_s / (1 - rule.switch_margin)
    return [i for i in sooner if predictions[i].burden_s <= most_s]


def _is_slower(outlooks: Sequence[Outlook], predictions: Sequence[Prediction], other: int) -> bool:
    first_s, its_s = (_total_p95_s(outlooks[i], predictions[i]) for i in (0, other))
    return its_s > first_s


def _lead(
    first: tuple[Outlook, Prediction], other: tuple[Outlook, Prediction], *, is_patient: bool, margin: float
) -> tuple[float, Why]:
    """What the first takes over what another one takes; and what that would be called.

    How full a pool is, is a fact, and a crowd is avoided without further evidence, but not by those who have
    time. That one pool would be better than another, were both as full, is in it where it speaks for the
    policy's order. Against that order it has to be measured, by the margin and by more than chance explains,
    where leaving leaves prefixes behind; where it does not, what is more probable is enough.
    """
    (base, ours), (its, theirs) = first, other
    prices = base.usd_nanos_per_s / its.usd_nanos_per_s
    even = prices * ours.even_burden_s / theirs.even_burden_s
    stays = is_patient or base.is_sticky
    is_shown = even > (margin if stays else 1.0) and base.is_known and its.is_known
    if is_shown and stays:
        is_shown = math.log(even) > CONFIDENCE_Z * math.hypot(base.deviation, its.deviation)
    if is_patient:
        return (even if is_shown else 1.0), _COST
    lead = prices * ours.burden_s / theirs.burden_s
    if is_shown:
        return lead, _COST
    if even > 1 and stays:
        return lead / even, _LOAD
    return lead, _LOAD if even <= 1 or lead > even else _EXPECTED


def _lateness(outlook: Outlook, prediction: Prediction, target: LatencyTarget) -> float:
    """The 95th percentile over the target, by the worse of both; 0: nothing is asked."""
    late = 0.0
    if target.ttft_s is not None:
        late = prediction.ttft_s * outlook.ttft_tail / target.ttft_s
    if target.tpot_s is not None:
        late = max(late, prediction.tpot_s * outlook.step_tail / target.tpot_s)
    return late


def _total_p95_s(outlook: Outlook, prediction: Prediction) -> float:
    rest_s = prediction.total_s - prediction.ttft_s
    return prediction.ttft_s * outlook.ttft_tail + rest_s * outlook.step_tail


def _better(outlooks: Sequence[Outlook], amounts: Sequence[float], first: int, *, rule: Rule) -> int | None:
    """The least of the amounts, if it is less by the margin and its interval is clear of zero; else None."""
    best, base = first, outlooks[first]
    for index in range(len(amounts)):
        if amounts[index] < amounts[best]:
            best = index
    if best == first or amounts[best] > amounts[first] * (1 - rule.switch_margin):
        return None
    other = outlooks[best]
    if not (base.is_known and other.is_known) or amounts[best] <= 0:
        return None
    gain = math.log(amounts[first] / amounts[best])
    return best if gain > CONFIDENCE_Z * math.hypot(base.deviation, other.deviation) else None


class Gate(msgspec.Struct, frozen=True):
    """Up to how many requests per replica speculation pays; infinite: as many as the replica takes."""

    least: float
    middle: float
    most: float
    """For the least, the middle and the most of its acceptance, 95 of 100."""


def gate_of(speculative: Outlook, plain: Outlook) -> Gate:
    """The batch size where time x cost of a token of a speculating pool meet those of a plain pool."""
    spread = math.exp(CONFIDENCE_Z * speculative.deviation)
    return Gate(
        _crossing(speculative, plain, speculative.tokens_per_step / spread),
        _crossing(speculative, plain, speculative.tokens_per_step),
        _crossing(speculative, plain, speculative.tokens_per_step * spread),
    )


def _crossing(speculative: Outlook, plain: Outlook, tokens_per_step: float) -> float:
    """Both grow with the batch: step squared x price / tokens squared; compared at the root of it.

    (f1 + g1 b) * w1 = (f2 + g2 b) * w2, straight lines, cross once at most.
    """
    weight = math.sqrt(speculative.usd_nanos_per_s) / tokens_per_step
    other = math.sqrt(plain.usd_nanos_per_s)
    ahead = plain.fixed_s * other - speculative.fixed_s * weight
    slope = speculative.sequence_s * weight - plain.sequence_s * other
    if slope <= 0:  # it gains with every request: if it ever pays, then with a full batch
        return GATE_NEVER if ahead - slope * speculative.seats >= 0 else 0.0
    at = ahead / slope
    return GATE_NEVER if at >= speculative.seats else max(0.0, at)
