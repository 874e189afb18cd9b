"""Who waits for a pool that sleeps, and who goes elsewhere?

A decision keeps a pool whose replicas sleep. Before its call is sent, this walks the targets in their order:
the first one that is awake (or outside) takes the call; one that sleeps is woken, and the call waits for it
if the wake is expected to take no longer than its latency class may wait, and no more than so many wait
already. Otherwise it goes on to the next target while the wake goes on without it. Where nothing is left it
is told when to come back. Waking itself is the driver's (`backends.asks`): two calls cannot wake twice. While
nothing sleeps none of this runs.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence

from backends.asks import Asks
from backends.registry import PoolRegistry
from gateway.errors import NoEligibleTarget
from gateway.inference import Call, Target

_ASK_INTERVAL_S = 0.5
"""Between two asks for the same pool: each is a write to a file."""
_LOOK_S = 0.02


class Waker:
    """Decides it for this process."""

    def __init__(self, registry: PoolRegistry, asks: Asks) -> None:
        """Only remembers.

        Args:
            registry: who sleeps.
            asks: where the driver of this machine is asked.
        """
        self._registry = registry
        self._asks = asks
        self._asked_s: dict[str, float] = {}
        self.waiting: Counter[str] = Counter()
        """Calls that wait now, by pool."""
        self.waited: Counter[str] = Counter()
        """Calls that waited and were served by the pool they waited for."""
        self.went_on: Counter[str] = Counter()
        """Calls that found a pool asleep and did not wait, or not for long enough."""

    async def clear_way(self, call: Call, targets: Sequence[Target]) -> None:
        """Return once one of the targets may be able to take the call.

        Raises:
            NoEligibleTarget: all of them sleep, and the call does not wait for any.
        """
        soonest_s = math.inf
        for target in targets:
            if target.is_external or target.pool not in self._registry.asleep:
                return
            pool = target.pool
            self.ask(pool)
            expected_s = self._registry.wake_expected_s(pool)
            if await self._awaited(pool, call.service_tier, expected_s):
                return
            self.went_on[pool] += 1
            soonest_s = min(soonest_s, self._registry.wake_expected_s(pool))
        retry_after_s = max(1, math.ceil(soonest_s)) if math.isfinite(soonest_s) else 1
        raise NoEligibleTarget(
            f"The model was not in use and is being woken. Try again in about {retry_after_s} seconds.",
            removed_by_rules=False,
            retry_after_s=retry_after_s,
        )

    def ask(self, pool: str) -> None:
        """Have a replica of the pool woken."""
        now_s = time.monotonic()
        if now_s - self._asked_s.get(pool, -math.inf) >= _ASK_INTERVAL_S:
            self._asked_s[pool] = now_s
            self._asks.wake(pool)

    async def _awaited(self, pool: str, latency_class: str | None, expected_s: float) -> bool:
        """Wait for a replica if that is worth it; whether there is one now."""
        sleep = self._registry.specs[pool].sleep
        if sleep is None:
            return False
        patience_s = sleep.wait_s.of(latency_class or "default")
        if expected_s > patience_s or self.waiting[pool] >= sleep.waiting_max:
            return False
        self.waiting[pool] += 1
        self._registry.awaited += 1
        deadline_s = time.monotonic() + patience_s
        try:
            while pool in self._registry.asleep:
                if time.monotonic() >= deadline_s:
                    return False
                await asyncio.sleep(_LOOK_S)
        finally:
            self.waiting[pool] -= 1
            self._registry.awaited -= 1
        self.waited[pool] += 1
        return True
