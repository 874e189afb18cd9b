"""What does an attempt come to, and who pays?

Exactly one settlement per attempt: the first end counts, later ones change nothing. The rules (decision
2.3): the tenant pays for the attempt that answered, and for its own cancellation up to what was produced;
failed and interrupted attempts go to the platform's account, and so does every attempt of the platform's own,
which draws on the budget that holds it however it ends. Where an engine reported no usage, the tokens
are estimated, never above what can be shown, and the record says so.
"""

from __future__ import annotations

import msgspec

from gateway.clock import Clock
from gateway.inference import (
    AttemptState,
    AttemptTiming,
    EngineMetrics,
    Payer,
    TokenUsage,
    UsageSource,
)
from gateway.ledger.budgets import Reservation
from gateway.ledger.records import OURS, AttemptEnd, AttemptStart
from gateway.ledger.spool import Spool
from gateway.money import UsdNanos
from gateway.pricing.rates import UNPRICED, Price, charge

STOPPED = "gateway_stopped"
"""Error code of an attempt that ended because the program did."""
BYTES_PER_TOKEN = 4
"""For estimates of input that no engine counted; English text has about four bytes a token."""


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended, as the pipeline saw it."""

    state: AttemptState
    usage: TokenUsage | None
    """As the engine counted; None where it did not say."""
    produced_tokens: int = 0
    """Tokens that certainly were generated, for want of a count."""
    reached_engine: bool = True
    status_code: int | None = None
    error_code: str | None = None
    timing: AttemptTiming = AttemptTiming()
    engine: EngineMetrics = EngineMetrics()


_PAYERS = {
    AttemptState.ANSWERED: Payer.TENANT,
    AttemptState.CANCELLED: Payer.TENANT,
    AttemptState.FAILED: Payer.PLATFORM,
    AttemptState.INTERRUPTED: Payer.PLATFORM,
}


class OpenAttempt:
    """An attempt under way; ends once."""

    __slots__ = ("_is_open", "_price", "_reservation", "_settlement", "_start", "charge_usd_nanos")

    def __init__(
        self, settlement: Settlement, start: AttemptStart, *, price: Price, reservation: Reservation
    ) -> None:
        self._settlement = settlement
        self._start = start
        self._price = price
        self._reservation = reservation
        self._is_open = True
        self.charge_usd_nanos: UsdNanos | None = UsdNanos(0)
        """Known once it has ended."""

    def end(self, outcome: Outcome) -> UsdNanos | None:
        """Settle; returns the charge. A second call changes nothing and returns the same."""
        if not self._is_open:
            return self.charge_usd_nanos
        self._is_open = False
        settlement = self._settlement
        if settlement.is_stopping and outcome.state is AttemptState.CANCELLED:
            # Nobody can tell a client that left from one whose answer we cut: the doubt is ours.
            outcome = msgspec.structs.replace(outcome, state=AttemptState.INTERRUPTED, error_code=STOPPED)
        usage, source = self._usage(outcome)
        self.charge_usd_nanos = charge(usage, self._price.rates)
        payer = _PAYERS[outcome.state]
        is_ours = self._start.tenant_id == OURS
        if is_ours:
            payer = Payer.PLATFORM
        if is_ours or payer is Payer.TENANT:
            self._reservation.spend(self.charge_usd_nanos or 0)
        timing, engine = outcome.timing, outcome.engine
        settlement.spool.end(
            AttemptEnd(
                self._start.attempt_id,
                outcome.state,
                payer,
                source,
                settlement.clock.epoch_ms(),
                usage.input,
                usage.cached_input,
                usage.cache_write,
                usage.output,
                usage.reasoning,
                self.charge_usd_nanos,
                outcome.status_code,
                outcome.error_code,
                timing.ttft_ms,
                timing.total_ms,
                engine.queue_ms,
                engine.generation_ms,
                engine.draft_steps,
                engine.draft_tokens,
                engine.accepted_tokens,
            )
        )
        return self.charge_usd_nanos

    def charge_of(self, usage: TokenUsage) -> UsdNanos | None:
        """What a usage comes to at this attempt's price; None: it is unpriced."""
        return charge(usage, self._price.rates)

    def _usage(self, outcome: Outcome) -> tuple[TokenUsage, UsageSource]:
        if outcome.usage is not None:
            return outcome.usage, UsageSource.MEASURED
        if not outcome.reached_engine:
            return TokenUsage(), UsageSource.NONE
        estimate = TokenUsage(input=self._start.estimated_input_tokens, output=outcome.produced_tokens)
        return estimate, UsageSource.ESTIMATED


class Settlement:
    """Opens attempts, so that each is written down before it is sent."""

    def __init__(self, spool: Spool, clock: Clock) -> None:
        self.spool = spool
        self.clock = clock
        self.is_stopping = False
        """The program ends, and soon cuts what is still under way: its tenants do not pay for that."""

    def begin(self, start: AttemptStart, price: Price, reservation: Reservation) -> OpenAttempt:
        """Write the attempt down and open it; what its tenant pays is taken from the reservation.

        Raises:
            Overloaded: it cannot be written down, so it must not be sent.
        """
        self.spool.start(start)
        return OpenAttempt(self, start, price=price, reservation=reservation)

    def served_from_cache(self, start: AttemptStart) -> None:
        """Book a request that was answered without a model: it used nothing and costs nothing.

        Raises:
            Overloaded: it cannot be written down.
        """
        self.spool.start(start)
        self.spool.end(
            AttemptEnd(
                attempt_id=start.attempt_id,
                state=AttemptState.ANSWERED,
                payer=Payer.TENANT,
                usage_source=UsageSource.NONE,
                charge_usd_nanos=None if start.price_version == UNPRICED.version else 0,
                status_code=200,
                ended_at_ms=start.started_at_ms,
            )
        )


def estimated_input_tokens(body_bytes: int) -> int:
    """A guess at a request's input tokens, for attempts that no engine counted."""
    return -(-body_bytes // BYTES_PER_TOKEN)
