"""What do the rules of a policy come to, once they are read?

Grammar (`rule_file.py`) in, what decisions use (`rules.py`) out: conditions, orders of targets by alias,
rates as integers. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from gateway.inference import CacheRule
from gateway.money import usd_nanos_from_decimal
from gateway.routing.rule_file import BudgetLowSection, LimitsSection, RuleEntry, TimeSection, WhenSection
from gateway.routing.rules import (
    DAYS,
    HOURS_PER_WEEK,
    Arm,
    Condition,
    During,
    Has,
    Length,
    Limits,
    LowBudget,
    OneOf,
    PolicyRule,
    RuleBook,
    Serves,
    Tagged,
    either,
)

Models = Mapping[str, tuple[frozenset[str], tuple[str, ...]]]
"""By alias: its pools, and the external targets that it may overflow to."""
_NO_LIMITS: Final = LimitsSection.model_construct()


def constant_conditions(when: WhenSection) -> tuple[Condition, ...]:
    """Those that come out the same for every call that is alike."""
    found: list[Condition] = []
    for field in ("task", "nature", "tenant", "project", "model", "latency_class"):
        values = getattr(when, field)
        if values is not None:
            found.append(OneOf(field, frozenset(str(value) for value in values)))
    found += [Tagged(name, frozenset(values)) for name, values in (when.tag or {}).items()]
    return tuple(found)


def other_conditions(when: WhenSection) -> tuple[Condition, ...]:
    """Those that each call has to be asked."""
    found: list[Condition] = []
    if when.input_tokens is not None:
        found.append(Length(when.input_tokens.min or 0, when.input_tokens.max))
    if when.time is not None:
        found.append(During(hours_of(when.time), _span(when.time)))
    if when.tools is not None:
        found.append(Has("has_tools", when.tools))
    if when.format is not None:
        found.append(OneOf("format", frozenset(when.format)))
    if when.media is not None:
        found.append(Has("has_media", when.media))
    return tuple(found)


def hours_of(time: TimeSection) -> int:
    """The hours of the week in a span, a bit for each."""
    hours = 0
    length = (time.to_hour - time.from_hour) % 24 or 24
    for number, day in enumerate(DAYS):
        if time.days is None or day in time.days:
            for hour in range(time.from_hour, time.from_hour + length):
                hours |= 1 << (number * 24 + hour) % HOURS_PER_WEEK
    return hours


def _span(time: TimeSection) -> str:
    days = "" if time.days is None else f"{either(list(time.days))} "
    return f"{days}{time.from_hour:02d}:00 to {time.to_hour:02d}:00 UTC"


def compile_rules(
    entries: tuple[RuleEntry, ...], models: Models, *, pools: frozenset[str], cache: CacheRule
) -> RuleBook:
    """The rules as decisions use them.

    Args:
        entries: as they are written; every target that they name exists.
        models: by alias: its pools, and the external targets that it may overflow to.
        pools: the names of all pools; other targets are external.
        cache: what the policy says of the cache.
    """
    return RuleBook(
        tuple(
            _compile(number, entry, models, pools=pools, cache=cache) for number, entry in enumerate(entries)
        )
    )


def orders_of(
    use: tuple[str, ...],
    entry: RuleEntry,
    models: Models,
    *,
    pools: frozenset[str],
) -> dict[str, tuple[str, ...]]:
    """Which of some targets may serve which alias.

    A pool has to be one of the alias's. What is outside the company has to stand in its `overflow`, or the
    rule has to name the alias: no call shall leave by a rule that was not written with its model in mind.
    """
    named = entry.when.model or ()
    found = {}
    for alias, (own, overflow) in models.items():
        order = tuple(
            name for name in use if (name in own if name in pools else name in overflow or alias in named)
        )
        if order:
            found[alias] = order
    return found


def _compile(
    number: int,
    entry: RuleEntry,
    models: Models,
    *,
    pools: frozenset[str],
    cache: CacheRule,
) -> PolicyRule:
    limits = entry.limits or _NO_LIMITS
    orders = None if entry.use is None else orders_of(entry.use, entry, models, pools=pools)
    constant = constant_conditions(entry.when)
    if orders is not None and len(orders) < len(models):
        constant = (*constant, Serves(frozenset(orders)))
    arms: list[Arm] = []
    below = 0.0
    shares = entry.canary.shares if entry.canary else ()
    for place, share in enumerate(shares, start=1):
        below += share.percent / 100
        branch = "canary" if len(shares) == 1 else f"canary {place}"
        arms.append(Arm(below, orders_of(share.use, entry, models, pools=pools), branch))
    low = None if entry.budget_low is None else _low(entry, entry.budget_low, models, pools=pools)
    outside = [each for each in (orders, *(arm.orders for arm in arms), low and low.orders) if each]
    return PolicyRule(
        index=number,
        name=entry.name,
        constant=constant,
        others=other_conditions(entry.when),
        orders=orders,
        limits=Limits(_nanos(limits.input_usd_per_million), _nanos(limits.output_usd_per_million)),
        has_external=any(name not in pools for each in outside for order in each.values() for name in order),
        objective=entry.objective,
        ttft_p95_s=_seconds(limits.ttft_p95_ms),
        tpot_p95_s=_seconds(limits.tpot_p95_ms),
        cache=_cache(entry, cache),
        attempts_max=entry.attempts_max,
        hedging=entry.hedging,
        arms=tuple(arms),
        sticks_to_key=entry.canary is not None and entry.canary.by == "key",
        low=low,
    )


def _low(
    entry: RuleEntry,
    section: BudgetLowSection,
    models: Models,
    *,
    pools: frozenset[str],
) -> LowBudget:
    orders = None if section.use is None else orders_of(section.use, entry, models, pools=pools)
    return LowBudget(section.at_percent, section.then, orders)


def _cache(entry: RuleEntry, usual: CacheRule) -> CacheRule | None:
    section = entry.cache
    if section is None:
        return None
    return CacheRule(
        is_enabled=usual.is_enabled if section.enabled is None else section.enabled,
        temperature_max=usual.temperature_max if section.temperature_max is None else section.temperature_max,
        ttl_s=usual.ttl_s if section.ttl_s is None else section.ttl_s,
    )


def _nanos(amount: Decimal | None) -> int | None:
    return None if amount is None else usd_nanos_from_decimal(amount, what="a rule's limit")


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
