"""On whose account are the tokens of warm-ups and heartbeats?

The platform's: each is an attempt of its own, answered, measured by the engine, at the price of its pool, of
the tenant `platform`. So the tokens of all attempts are what the engines counted, and no tenant pays for any
of it. What the process driver used is told by its fleet file to every gateway on its machine; all of them
book it under one id, and the database takes it once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from backends.upkeep import Upkeep
from gateway.clock import Clock
from gateway.errors import Overloaded
from gateway.inference import AttemptState, Payer, TokenUsage, UsageSource
from gateway.ledger.records import AttemptEnd, AttemptStart
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.spool import Spool
from gateway.plan import Routing
from gateway.pricing.rates import UNPRICED, charge

_log = logging.getLogger(__name__)


class UpkeepBooks:
    """Books what engines did for us."""

    def __init__(self, spool: Spool, clock: Clock, *, routing: Callable[[], Routing]) -> None:
        """Only remembers.

        Args:
            spool: where attempts are written down.
            clock: for the end of an attempt that began in the future of another clock.
            routing: the prices and the policy in force.
        """
        self._spool = spool
        self._clock = clock
        self._routing = routing
        self.tokens: Counter[tuple[str, ...]] = Counter()
        """By pool and kind."""
        self.not_booked = 0
        """For want of room in the spool."""

    def book(self, upkeep: Upkeep) -> None:
        """Write one down; what cannot be is counted and logged: no request waits for it."""
        self.tokens[upkeep.pool, upkeep.kind.value] += upkeep.tokens.total
        routing = self._routing()
        price = routing.prices.at(upkeep.at_ms).find(upkeep.pool) or UNPRICED
        tokens = upkeep.tokens
        usage = TokenUsage(input=tokens.input, cached_input=tokens.cached_input, output=tokens.output)
        amount = charge(usage, price.rates)
        attempt_id = f"att_{upkeep.id}"
        start = AttemptStart(
            attempt_id=attempt_id,
            request_id=f"req_{upkeep.id}",
            attempt_number=1,
            tenant_id=PLATFORM_TENANT,
            project_id=PLATFORM_TENANT,
            key_id=PLATFORM_TENANT,
            end_user=None,
            client_request_id=None,
            endpoint="completions",
            model_alias=PLATFORM_TENANT,
            is_streaming=False,
            pool=upkeep.pool,
            replica=upkeep.replica,
            task=upkeep.kind.value,
            task_source="declared",
            nature="predictable",
            policy_version=routing.policy.version,
            price_version=price.version,
            service_tier=None,
            tags={},
            hold_usd_nanos=amount or 0,
            estimated_input_tokens=tokens.input,
            estimated_charge_usd_nanos=amount,
            started_at_ms=upkeep.at_ms,
        )
        end = AttemptEnd(
            attempt_id=attempt_id,
            state=AttemptState.ANSWERED,
            payer=Payer.PLATFORM,
            usage_source=UsageSource.MEASURED,
            ended_at_ms=upkeep.at_ms + upkeep.took_ms,
            input_tokens=usage.input,
            cached_input_tokens=usage.cached_input,
            output_tokens=usage.output,
            charge_usd_nanos=amount,
            status_code=200,
            total_ms=upkeep.took_ms,
        )
        try:
            self._spool.start(start)
        except Overloaded as error:
            self.not_booked += 1
            _log.warning("upkeep of replica %s is not booked: %s", upkeep.replica, error)
            return
        self._spool.end(end)
