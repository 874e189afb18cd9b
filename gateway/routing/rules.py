"""Which rule of a policy is a call's, and what does it mean?

Conditions of two kinds: those on who asks for what (task, tenant, model, …) come out the same for every call
that is alike, and which rules they leave is remembered; the others (length, time, tools, format, media) are
looked at for each call, in those rules alone. Explanations ask the same conditions one by one. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from backends.choice import key_of
from gateway.clock import instant_text
from gateway.errors import BudgetExceeded
from gateway.inference import CacheRule, Call, RouteTerms, Task
from gateway.money import NANOS_PER_USD
from gateway.pricing.rates import Price
from gateway.protocols.affinity import conversation_key

BYTES_PER_TOKEN: Final = 4
"""For estimates; English text has about four bytes a token."""
KNOWN_MAX: Final = 10_000
"""Kinds of callers and calls of which the rules are remembered."""
HOURS_PER_WEEK: Final = 168
FIRST_HOUR: Final = 72
"""1970 began on a Thursday, three days after a Monday."""
MS_PER_HOUR: Final = 3_600_000
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DRAWS: Final = 2**64

MAIN: Final = ""
"""The branch of a rule that is neither a canary's nor a low budget's."""
BUDGET_LOW: Final = "budget_low"
Verdict = Literal["cheaper", "refuse", "alert"]


class BudgetLevel(msgspec.Struct, frozen=True):
    """The budget over a caller of which the greatest share is used."""

    name: str
    used_percent: float
    resets_at_ms: int | None = None
    """When it begins anew; None: never."""


class Situation(msgspec.Struct, frozen=True):
    """Who asks, and when: what a decision depends on beside the call, its task and the pools."""

    tenant: str = ""
    """Its name."""
    project: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    """Fixed by an operator, sorted."""
    key: str = ""
    """The same for a key and those that it is rotated to."""
    at_ms: int = 0
    prices: Mapping[str, Price] = {}
    """By target."""
    budget: BudgetLevel | None = None
    """None: nothing is known, or the caller has no budget."""


NOBODY: Final = Situation()


class Facts(msgspec.Struct, frozen=True):
    """What conditions look at."""

    task: str
    nature: str
    tenant: str
    project: str
    tags: tuple[tuple[str, str], ...]
    model: str
    latency_class: str
    input_tokens: int | None
    """None: images or sound, of which nobody knows before they are read."""
    at_ms: int
    has_tools: bool
    format: str
    has_media: bool


def facts_of(call: Call, task: Task, nature: str, *, latency_class: str, situation: Situation) -> Facts:
    """What conditions look at in a call."""
    shown = call.facts
    form = "json_schema" if shown.has_schema else "json_object" if shown.has_json_mode else "text"
    tokens = None if shown.has_media else call.body_bytes // BYTES_PER_TOKEN // call.prompts
    return Facts(  # by position: every call makes one
        task.type._value_,
        nature,
        situation.tenant,
        situation.project,
        situation.tags,
        call.model_alias,
        latency_class,
        tokens,
        situation.at_ms,
        shown.has_tools,
        form,
        shown.has_media,
    )


# ------------------------------------------------------------------------------------------------- conditions
class OneOf(msgspec.Struct, frozen=True):
    """A fact is one of some words."""

    field: str
    values: frozenset[str]

    def holds(self, facts: Facts) -> bool:
        """Whether it does."""
        return getattr(facts, self.field) in self.values

    def told(self, facts: Facts) -> str:
        """What it asks for and what it found, for people."""
        found = getattr(facts, self.field) or "not known"
        return f"{self.field.replace('_', ' ')} is {found}, not {either(sorted(self.values))}"


class Tagged(msgspec.Struct, frozen=True):
    """A tag that an operator fixed has one of some values."""

    name: str
    values: frozenset[str]

    def holds(self, facts: Facts) -> bool:
        """Whether it does."""
        return dict(facts.tags).get(self.name) in self.values

    def told(self, facts: Facts) -> str:
        """What it asks for and what it found, for people."""
        found = dict(facts.tags).get(self.name)
        wanted = either(sorted(self.values))
        shown = "there is no such fixed tag" if found is None else f"it is {found}"
        return f"tag {self.name} must be {wanted}: {shown}"


class Length(msgspec.Struct, frozen=True):
    """The input has so many tokens."""

    least: int
    most: int | None

    def holds(self, facts: Facts) -> bool:
        """Whether it does; of media nobody knows."""
        tokens = facts.input_tokens
        return tokens is not None and tokens >= self.least and (self.most is None or tokens <= self.most)

    def told(self, facts: Facts) -> str:
        """What it asks for and what it found, for people."""
        wanted = f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"
        if facts.input_tokens is None:
            return f"the input must have {wanted} tokens, and nobody knows how many images or sound come to"
        return f"the input has about {facts.input_tokens} tokens, not {wanted}"


class During(msgspec.Struct, frozen=True):
    """It is one of some hours of the week."""

    hours: int
    """A bit for each, from Monday at 00:00 UTC."""
    words: str

    def holds(self, facts: Facts) -> bool:
        """Whether it is."""
        return bool(self.hours >> hour_of_week(facts.at_ms) & 1)

    def told(self, facts: Facts) -> str:
        """What it asks for and what it found, for people."""
        day, hour = divmod(hour_of_week(facts.at_ms), 24)
        minute = facts.at_ms // 60_000 % 60
        return f"it is {DAYS[day]} {hour:02d}:{minute:02d} UTC, not {self.words}"


class Has(msgspec.Struct, frozen=True):
    """The call has tools or media, or has not."""

    field: str
    wanted: bool

    def holds(self, facts: Facts) -> bool:
        """Whether it is so."""
        return getattr(facts, self.field) is self.wanted

    def told(self, facts: Facts) -> str:
        """What it asks for, for people."""
        del facts
        what = "tools" if self.field == "has_tools" else "images, sound or files"
        return f"the call has no {what}" if self.wanted else f"the call has {what}"


class Serves(msgspec.Struct, frozen=True):
    """The rule has a target that may serve the model."""

    models: frozenset[str]

    def holds(self, facts: Facts) -> bool:
        """Whether it has."""
        return facts.model in self.models

    def told(self, facts: Facts) -> str:
        """What is missing, for people."""
        return f"none of its targets may serve model '{facts.model}'"


Condition = OneOf | Tagged | Length | During | Has | Serves


def hour_of_week(epoch_ms: int) -> int:
    """The UTC hour, 0 from Monday at 00:00."""
    return (epoch_ms // MS_PER_HOUR + FIRST_HOUR) % HOURS_PER_WEEK


def either(words: list[str]) -> str:
    """The words, for people: a, b or c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


# ------------------------------------------------------------------------------------------------------ rules
class Limits(msgspec.Struct, frozen=True):
    """The dearest rates that a rule allows, nano-USD per million tokens; None: any."""

    input: int | None = None
    output: int | None = None

    def exceeded_by(self, price: Price | None) -> str | None:
        """What of a price is more than is allowed, for people; None: nothing."""
        if self.input is None and self.output is None:
            return None
        rates = None if price is None else price.rates
        if rates is None:
            return "it has no price, and the rule limits prices"
        for meter, most in (("output", self.output), ("input", self.input)):
            rate = getattr(rates, meter)
            if most is not None and rate > most:
                return (
                    f"its {meter} costs {usd_per_million(rate)} USD per million tokens,"
                    f" the rule allows {usd_per_million(most)}"
                )
        return None


def usd_per_million(rate: int) -> str:
    """A rate for people: as many decimals as it has, two at least."""
    whole, fraction = divmod(rate, NANOS_PER_USD)
    return f"{whole}.{f'{fraction:09d}'.rstrip('0').ljust(2, '0')}"


def cheapest_first(names: tuple[str, ...], prices: Mapping[str, Price]) -> tuple[str, ...]:
    """By the price of output, then of input; equal ones keep their order, what has no price stands last."""

    def amount(name: str) -> tuple[int, int, int]:
        price = prices.get(name)
        rates = None if price is None else price.rates
        return (1, 0, 0) if rates is None else (0, rates.output, rates.input)

    return tuple(sorted(names, key=amount))


Orders = Mapping[str, tuple[str, ...]]
"""Targets in order, by the alias that they serve."""


class Arm(msgspec.Struct, frozen=True):
    """A canary's share: up to which draw, where to, and what it is called."""

    below: float
    """Of 1; shares are added up."""
    orders: Orders
    branch: str


class LowBudget(msgspec.Struct, frozen=True):
    """What is done when a budget runs low."""

    at_percent: float
    then: Verdict
    orders: Orders | None
    """None: the same targets, the cheapest first."""


class PolicyRule(msgspec.Struct, frozen=True):
    """A rule as decisions use it."""

    index: int
    name: str
    constant: tuple[Condition, ...]
    others: tuple[Condition, ...]
    orders: Orders | None
    """None: the policy's routes."""
    limits: Limits
    has_external: bool
    """One of its targets is outside the company."""
    objective: Literal["cost", "latency", "order"] | None = None
    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    cache: CacheRule | None = None
    attempts_max: int | None = None
    hedging: bool | None = None
    arms: tuple[Arm, ...] = ()
    sticks_to_key: bool = False
    low: LowBudget | None = None

    def failures(self, facts: Facts) -> list[str]:
        """Why a call is not for this rule, for people; empty: it is."""
        return [one.told(facts) for one in (*self.constant, *self.others) if not one.holds(facts)]


class Match(NamedTuple):
    """The rule of a call, and which part of it."""

    rule: PolicyRule
    branch: str
    orders: Orders | None
    low: Verdict | None = None
    """What is done because a budget runs low."""


class RuleBook:
    """The rules of a policy."""

    __slots__ = ("_known", "entries", "watches_budgets")

    def __init__(self, entries: tuple[PolicyRule, ...] = ()) -> None:
        self.entries = entries
        self.watches_budgets = any(rule.low is not None for rule in entries)
        self._known: dict[tuple[object, ...], tuple[PolicyRule, ...]] = {}

    def find(self, facts: Facts) -> PolicyRule | None:
        """The first rule that matches."""
        key = (facts.tenant, facts.project, facts.tags, facts.task, facts.model, facts.latency_class)
        left = self._known.get(key)
        if left is None:
            left = self._learn(key, facts)
        for rule in left:
            for one in rule.others:
                if not one.holds(facts):
                    break
            else:
                return rule
        return None

    def _learn(self, key: tuple[object, ...], facts: Facts) -> tuple[PolicyRule, ...]:
        """The rules that may match such a call, up to the first that always does."""
        left: list[PolicyRule] = []
        for rule in self.entries:
            if all(one.holds(facts) for one in rule.constant):
                left.append(rule)
                if not rule.others:
                    break
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[key] = found = tuple(left)
        return found


NO_RULES: Final = RuleBook()


def part_of(rule: PolicyRule, call: Call, situation: Situation) -> Match:
    """Which part of its rule a call belongs to: a low budget's, a canary's or the main one."""
    low, budget, verdict = rule.low, situation.budget, None
    if low is not None and budget is not None and budget.used_percent >= low.at_percent:
        verdict = low.then
        if verdict == "refuse":
            return Match(rule, BUDGET_LOW, None, verdict)
        if verdict == "cheaper" and (low.orders is None or call.model_alias in low.orders):
            return Match(rule, BUDGET_LOW, rule.orders if low.orders is None else low.orders, verdict)
    if rule.arms:
        draw = drawn(rule, call, situation)
        for arm in rule.arms:
            if draw < arm.below:
                # A model that the canary's targets may not serve stays where it is.
                if call.model_alias in arm.orders:
                    return Match(rule, arm.branch, arm.orders, verdict)
                break
    return Match(rule, MAIN, rule.orders, verdict)


def refuse_low(match: Match | None, situation: Situation) -> None:
    """Refuse what its rule refuses.

    Raises:
        BudgetExceeded: a budget runs low, and the rule says so.
    """
    if match is None or match.low != "refuse" or match.rule.low is None or situation.budget is None:
        return
    budget, low = situation.budget, match.rule.low
    resets_at = None if budget.resets_at_ms is None else instant_text(budget.resets_at_ms)
    again = "" if resets_at is None else f" It begins anew at {resets_at}."
    raise BudgetExceeded(
        f"{budget.used_percent:.1f} % of the budget '{budget.name}' are used, and rule '{match.rule.name}' of"
        f" the routing policy refuses such requests from {low.at_percent:g} % on.{again}",
        resets_at=resets_at,
    )


def is_measured(terms: RouteTerms, *, usually: bool) -> bool:
    """Whether measurements may change the order of a call's targets.

    Args:
        terms: what its rule says.
        usually: what the policy says of all calls.
    """
    if terms.objective is not None:
        return terms.objective != "order"
    return usually or terms.ttft_p95_s is not None or terms.tpot_p95_s is not None


def drawn(rule: PolicyRule, call: Call, situation: Situation) -> float:
    """A number from 0 to below 1, the same for all turns of a conversation, or for all calls of a key."""
    stuck = situation.key.encode() if rule.sticks_to_key else conversation_key(call, situation.tenant)
    return key_of(b"%s\0%s" % (rule.name.encode(), stuck)) % _DRAWS / _DRAWS
