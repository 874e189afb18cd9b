"""What should somebody look at now, and why?

Plain rules over what the process and the database know, worst first. Whoever looks gets a sentence and a
place to go; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backends.breaker import BreakerState
from backends.pool import PoolSnapshot, ReplicaState
from gateway.console.display import percent, usd_short
from gateway.console.navigation import HOME
from gateway.ledger.burn_down import BurnDown, Outlook
from gateway.ledger.reports import SpendFigures

KV_FULL_RATIO = 0.9
"""From here on vLLM soon preempts requests and computes them again."""
FAILURE_RATIO = 0.05
UNSHIPPED_MANY = 1000
USED_PERMILLE = 800


@dataclass(frozen=True, slots=True)
class Attention:
    """One thing to look at."""

    is_bad: bool
    """Somebody is hurt now; else: soon, perhaps."""
    text: str
    link: str


def attention(
    pools: Iterable[PoolSnapshot],
    *,
    burning: Sequence[BurnDown] = (),
    today: SpendFigures | None = None,
    unshipped: int = 0,
) -> list[Attention]:
    """Everything, worst first.

    Args:
        pools: as this process sees them.
        burning: budgets and where their pace leads.
        today: what today came to so far.
        unshipped: attempts that wait for the database.
    """
    found = [each for pool in pools for each in _of_pool(pool)]
    found += [each for one in burning for each in _of_budget(one)]
    if unshipped >= UNSHIPPED_MANY:
        found.append(
            _soon(
                f"{unshipped:,} attempts wait to be booked: is the database slow?",
                HOME,
            )
        )
    if today is not None and today.requests:
        ratio = today.failed_attempts / (today.requests + today.failed_attempts)
        if ratio >= FAILURE_RATIO:
            text = f"{percent(ratio)} of today's attempts failed."
            found.append(_now(text, f"{HOME}/traffic?status=error"))
    if today is not None and today.unpriced_attempts:
        text = f"{today.unpriced_attempts:,} attempts of today have no price: they are in no report."
        found.append(_now(text, f"{HOME}/spend"))
    return sorted(found, key=lambda one: not one.is_bad)


def _of_pool(pool: PoolSnapshot) -> list[Attention]:
    link = f"{HOME}/pools/{pool.spec.name}"
    if pool.replicas and not pool.is_within_reach:
        reasons = sorted({replica.detail for replica in pool.replicas if replica.detail})
        why = f": {reasons[0]}" if reasons else "."
        return [_now(f"Pool {pool.spec.name} cannot serve: no replica is ready{why}", link)]
    found = []
    for replica in pool.replicas:
        if replica.state is ReplicaState.UNHEALTHY:
            found.append(
                _soon(
                    f"{replica.replica} is unhealthy: {replica.detail}",
                    link,
                )
            )
        if replica.breaker.state is not BreakerState.CLOSED:
            found.append(_soon(f"{replica.replica} gets no requests: it failed too often.", link))
        if replica.load is not None and replica.load.kv_cache_usage_ratio >= KV_FULL_RATIO:
            used = percent(replica.load.kv_cache_usage_ratio)
            found.append(_soon(f"{replica.replica}: its key/value cache is {used} full.", link))
    return found


def _of_budget(one: BurnDown) -> list[Attention]:
    link = f"{HOME}/budgets"
    budget = one.state.budget
    if one.outlook is Outlook.SPENT:
        return [Attention(is_bad=budget.is_hard, text=f"Budget {budget.name} is spent.", link=link)]
    if one.outlook is Outlook.RUNS_OUT:
        left = usd_short(max(0, one.state.left_usd_nanos))
        return [
            _soon(
                f"Budget {budget.name} runs out before its window ends: USD {left} left.",
                link,
            )
        ]
    permille = one.state.used_permille
    if permille is not None and permille >= USED_PERMILLE:
        return [_soon(f"Budget {budget.name} is used to {permille // 10} %.", link)]
    return []


def _now(text: str, link: str) -> Attention:
    return Attention(is_bad=True, text=text, link=link)


def _soon(text: str, link: str) -> Attention:
    return Attention(is_bad=False, text=text, link=link)
