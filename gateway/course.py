"""What is the same for every call that is decided alike?

Which targets, the most that each may charge for a token, and nearly all of the receipt depend on the policy,
the prices, the alias, the task and which pools are up: worked out once for each such case, a call only puts
its own numbers in. Nothing here is ever changed: another policy, another price or another pool that is
down is another course.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from gateway.inference import Call, Drop, RouteDecision, Target, Task
from gateway.money import UsdNanos
from gateway.pricing.book import Prices
from gateway.pricing.rates import DearestRates
from gateway.routing.economics import POLICY, REASONS, Outlook, Outlooks, Prediction, Why
from gateway.routing.policy import Policy
from gateway.routing.receipts import Candidate, Dropped, Forecast, ReceiptFacts
from gateway.routing.rules import BYTES_PER_TOKEN

TEMPLATE_TOKENS = 256
"""What a chat template may add to a request's own text."""
COURSES_MAX = 10_000
"""Kept at once; what an operator's files can combine to is far below."""

_encode = msgspec.json.Encoder().encode
_PLACE = -(2**62) + 1
"""Stands in a receipt where each call has its own number; no rate or count comes to it."""


class _Candidate(msgspec.Struct, frozen=True):
    """A target, as far as its bound does not depend on the call."""

    context: int
    """Tokens of input and output together."""
    output_default: int
    """The most that it generates for a call that states no limit."""
    dearest: DearestRates | None
    """None: unpriced."""


class Course:
    """The decision for some calls, and what follows from it."""

    __slots__ = (
        "_as_written",
        "_candidates",
        "_foretold",
        "_is_priced",
        "_prices",
        "_receipt",
        "_shortest",
        "_task",
        "_variants",
        "baseline",
        "beliefs",
        "believed_in",
        "decision",
        "pools",
        "why",
    )

    def __init__(
        self, decision: RouteDecision, prices: Prices, *, task: Task, baseline: tuple[str, str] | None
    ) -> None:
        """Work it out.

        Args:
            decision: who may answer.
            prices: as they are now.
            task: what the calls are.
            baseline: the policy's default target and the version of its price.

        Raises:
            Unpriced: a target has no price and may not be used without.
        """
        self.decision = decision
        self.baseline = baseline
        inside = itertools.takewhile(lambda target: not target.is_external, decision.targets)
        self.pools = tuple(target.pool for target in inside)
        """Those of its targets that are pools: all before the first that is not."""
        self.why: Why | None = None
        """What put the first target first, where predictions were made."""
        self.beliefs: dict[str, Outlooks] = {}
        """The economist's, by whose answers' length counts; found again for the next call that is alike."""
        self.believed_in: object = None
        """When: see there."""
        self._task = task
        self._prices = prices
        self._candidates = [_candidate(decision, target, prices) for target in decision.targets]
        self._shortest = min(candidate.context for candidate in self._candidates)
        self._is_priced = all(candidate.dearest is not None for candidate in self._candidates)
        self._receipt = self._receipt_form(None)
        self._foretold: bytes | None = None
        """The receipt's form where predictions were made."""
        self._variants: dict[object, Course] = {}
        self._as_written: Course | None = None
        """What most calls are led by: the policy's own order."""

    def bounds(self, call: Call, *, input_tokens: int | None = None) -> list[UsdNanos | None]:
        """The most that one attempt at each target can come to; None: it is unpriced.

        Every prompt is read once, whatever `n` is. A token of text is at least a byte of the body; of images
        and sound only the context is a bound.

        Args:
            call: what was asked.
            input_tokens: as the engine counts them; None: as many as the request's bytes allow.
        """
        bounds: list[UsdNanos | None] = []
        prompts, limit, choices = call.prompts, call.max_tokens, call.choices
        text_bound = call.body_bytes + TEMPLATE_TOKENS * prompts
        has_media = call.facts.has_media
        for candidate in self._candidates:
            dearest = candidate.dearest
            if dearest is None:
                bounds.append(None)
                continue
            read = input_tokens
            if read is None:
                context = candidate.context * prompts
                read = context if has_media or context < text_bound else text_bound
            bounds.append(
                dearest.bound(read, (candidate.output_default if limit is None else limit) * choices)
            )
        return bounds

    def hold(self, call: Call, *, input_tokens: int | None = None) -> UsdNanos:
        """An upper bound of what a tenant pays for the call: of all targets', for only one attempt answers.

        Unpriced targets come to nothing.
        """
        return most_of(self.bounds(call, input_tokens=input_tokens))

    def receipt(
        self,
        call: Call,
        bounds: Sequence[int | None],
        forecasts: Sequence[bytes] | None = None,
        *,
        asked: bytes = b"null",
    ) -> msgspec.Raw:
        """How the request was decided, for its receipt: nothing that its sender wrote.

        Args:
            call: what was asked.
            bounds: of each target.
            forecasts: of each target, see `forecast_text`; None: none were made.
            asked: what a replay needs of the call (`asked.asked_text`).
        """
        numbers: Sequence[object] = bounds
        if not self._is_priced:
            numbers = [b"null" if bound is None else b"%d" % bound for bound in bounds]
        most = call.max_tokens or self.decision.max_tokens_default
        removed = _encode(call.dropped)[1:-1] if call.dropped else b""
        if forecasts is None:
            return msgspec.Raw(self._receipt % (*numbers, most, removed, asked))
        interleaved = [*numbers, *forecasts]
        interleaved[::2], interleaved[1::2] = numbers, forecasts  # as many, or Python refuses
        form = self._foretold
        if form is None:
            form = self._foretold = self._receipt_form(self.why or POLICY)
        return msgspec.Raw(form % (*interleaved, most, removed, asked))

    def fitting(self, call: Call) -> Course:
        """The same without the targets whose context the call and its answer exceed, if any is left then.

        The input is an estimate: an engine that would have taken more is passed by, one that takes less says
        so itself.
        """
        tokens = (call.body_bytes // BYTES_PER_TOKEN // call.prompts) + (call.max_tokens or 0)
        if tokens <= self._shortest or call.facts.has_media:
            return self
        kept = tuple(i for i, one in enumerate(self._candidates) if one.context >= tokens)
        if not kept or len(kept) == len(self._candidates):
            return self
        found = self._variants.get(kept)
        if found is None:
            targets = self.decision.targets
            drops = [
                Drop(target.pool, f"its context of {target.max_model_len} tokens is too short for the call")
                for i, target in enumerate(targets)
                if i not in kept
            ]
            found = self._variants[kept] = self._variant(tuple(targets[i] for i in kept), drops=drops)
        return found

    def led_by(self, first: int, why: Why) -> Course:
        """The same with another target first, and why; the others keep their order."""
        if not first and self._as_written is not None and why is POLICY:
            return self._as_written
        key = (first, why._value_)
        found = self._variants.get(key)
        if found is None:
            targets = self.decision.targets
            order = (targets[first], *targets[:first], *targets[first + 1 :])
            reason = self.decision.reason
            if first:
                reason = f"{reason}; {order[0].pool} first: {targets[0].pool} {REASONS[why]}"
            found = self._variant(order, reason=reason)
            found.why = why
            self._variants[key] = found
        if not first and why is POLICY:
            self._as_written = found
        return found

    def _receipt_form(self, why: Why | None) -> bytes:
        """The receipt with a place for each bound, the output's limit, what was removed, and what was asked.

        Where something was predicted (`why` is not None) one more stands behind each bound, for the forecast.
        """
        shown = None if why is None else Forecast(_PLACE, 0, 0, 0, 0, 0, 0, 0)
        decision = self.decision
        terms = decision.terms
        facts = ReceiptFacts(
            task=self._task.type,
            source=self._task.source,
            confidence=self._task.confidence,
            nature=decision.nature,
            reason=decision.reason,
            candidates=[
                Candidate(target.pool, _PLACE, target.is_external, shown) for target in decision.targets
            ],
            drops=[Dropped(drop.pool, drop.reason) for drop in decision.drops],
            policy=decision.policy_version,
            baseline=self.baseline,
            max_tokens=_PLACE,
            rule=terms.rule,
            branch=terms.branch or None,
            budget_low=terms.budget_low,
            why=why,
            removed=[],
        )
        form = _encode(facts).replace(b"%", b"%%")
        form = form.replace(b"[%d,0,0,0,0,0,0,0]" % _PLACE, b"%b")
        number = b"%d" if self._is_priced else b"%b"  # what has no price has no bound: null
        form = form.replace(b"%d" % _PLACE, number, len(decision.targets)).replace(b"%d" % _PLACE, b"%d")
        return form.removesuffix(b"[]}") + b'[%b],"asked":%b}'

    def _variant(
        self, targets: tuple[Target, ...], *, drops: Sequence[Drop] = (), reason: str | None = None
    ) -> Course:
        decision = msgspec.structs.replace(
            self.decision,
            targets=targets,
            drops=(*self.decision.drops, *drops),
            reason=self.decision.reason if reason is None else reason,
        )
        return Course(decision, self._prices, task=self._task, baseline=self.baseline)


class Courses:
    """The courses of the policy and the prices in force."""

    def __init__(self) -> None:
        self._known: dict[object, Course] = {}
        self._policy: Policy | None = None
        self._prices: Prices | None = None

    def find(self, key: object, make: Callable[[], Course], *, policy: Policy, prices: Prices) -> Course:
        """The course of this key under this policy and these prices; made where it is not known yet."""
        if policy is not self._policy or prices is not self._prices or len(self._known) >= COURSES_MAX:
            self._policy, self._prices = policy, prices
            self._known = {}
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = make()
        return found


def baseline_of(policy: Policy, alias: str, prices: Prices) -> tuple[str, str] | None:
    """The policy's default target and its price: what an answer is compared with."""
    allowed = policy.models[alias]
    route = policy.routes[policy.natures[policy.default_task]]
    target = next((name for name in route if name in allowed), None)
    price = None if target is None else prices.find(target)
    return None if target is None or price is None else (target, price.version)


def most_of(bounds: Sequence[UsdNanos | None]) -> UsdNanos:
    """The greatest; unpriced targets come to nothing."""
    return max((bound for bound in bounds if bound is not None), default=UsdNanos(0))


def _candidate(decision: RouteDecision, target: Target, prices: Prices) -> _Candidate:
    rates = prices.price_of(target.pool).rates
    return _Candidate(
        context=target.max_model_len,
        output_default=min(decision.max_tokens_default, target.max_model_len),
        dearest=None if rates is None else DearestRates.of(rates),
    )


def forecast_text(outlook: Outlook, prediction: Prediction) -> bytes:
    """A prediction as a receipt keeps it (`receipts.Forecast`)."""
    return _encode(
        (
            int(prediction.queue_s * 1e6),
            int(prediction.ttft_s * 1e6),
            int(prediction.tpot_s * 1e6),
            int(prediction.total_s * 1e6),
            int(prediction.cost_usd_nanos),
            int(prediction.read_s * 1e6),
            int(prediction.cost_share * 100),
            outlook.usd_nanos_per_hour,
        )
    )


NO_FORECAST: Final = b"null"
"""Of a target outside the company."""
