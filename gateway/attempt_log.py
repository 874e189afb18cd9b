"""What is the ledger told of a request's attempts, in the ledger's words?"""

from __future__ import annotations

from gateway.clock import Clock
from gateway.errors import UpstreamError
from gateway.inference import (
    AttemptState,
    AttemptTiming,
    Call,
    RouteDecision,
    Target,
    TokenUsage,
    new_id,
)
from gateway.ledger.budgets import Reservation
from gateway.ledger.records import AttemptStart
from gateway.ledger.settlement import OpenAttempt, Outcome, Settlement, estimated_input_tokens
from gateway.money import UsdNanos, usd_text
from gateway.plan import Plan
from gateway.pricing.catalog import PriceBook
from gateway.pricing.rates import Price, charge, charge_bound
from gateway.telemetry import Telemetry
from gateway.upstream.vllm import output_bound

TEMPLATE_TOKENS = 256
"""What a chat template may add to a request's own text."""


class AttemptLog:
    """Tells the ledger of each attempt, in the ledger's words."""

    def __init__(
        self,
        plan: Plan,
        reservation: Reservation,
        *,
        settlement: Settlement,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self.plan = plan
        self.reservation = reservation
        self._settlement = settlement
        self._clock = clock
        self._telemetry = telemetry
        self._current: OpenAttempt | None = None

    @property
    def current(self) -> OpenAttempt:
        """The attempt that started last."""
        if self._current is None:
            raise RuntimeError("an answer without an attempt")
        return self._current

    def started(self, target: Target, replica: str, number: int) -> None:
        """Write the attempt down before it is sent."""
        start, price = start_of(
            self.plan,
            target,
            replica,
            number=number,
            hold=self.reservation.bound_usd_nanos,
            now_ms=self._clock.epoch_ms(),
        )
        self._current = self._settlement.begin(start, price)

    def failed(self, error: UpstreamError, timing: AttemptTiming) -> None:
        """The attempt that started last failed; whether it used anything is only known if it answered."""
        self.current.end(
            Outcome(
                state=AttemptState.FAILED,
                usage=None,
                reached_engine=error.upstream_status is None and error.code != "upstream_unavailable",
                status_code=error.upstream_status,
                error_code=error.code,
                timing=timing,
            )
        )
        self._telemetry.attempt_failed(error.code)

    def cancelled(self) -> None:
        """The client left while the engine was at work."""
        if self._current is not None:
            self._current.end(Outcome(state=AttemptState.CANCELLED, usage=None, status_code=499))

    def given_up(self) -> None:
        """An error ended the request; an attempt that is still open (it never should be) is closed."""
        if self._current is not None:
            self._current.end(Outcome(state=AttemptState.FAILED, usage=None, reached_engine=False))

    def cost_text(self, usage: TokenUsage) -> str:
        """The charge of a stream's usage, for its last chunk."""
        return usd_text(self.current.charge_of(usage))


def start_of(
    plan: Plan, target: Target, replica: str, *, number: int, hold: UsdNanos, now_ms: int
) -> tuple[AttemptStart, Price]:
    """The record of an attempt that starts now, and the price that it will be settled at.

    Args:
        plan: the request.
        target: who is tried.
        replica: which of its replicas.
        number: 1 for the first try.
        hold: what is held for it.
        now_ms: epoch milliseconds.
    """
    call, caller, decision = plan.call, plan.caller, plan.decision
    price = plan.prices.price_of(target.pool)
    input_tokens = estimated_input_tokens(call.body_bytes)
    start = AttemptStart(
        attempt_id=new_id("att_", now_ms),
        request_id=plan.request_id,
        attempt_number=number,
        tenant_id=caller.tenant_id,
        project_id=caller.project_id,
        key_id=caller.key_id,
        end_user=caller.end_user_hash(call.end_user),
        client_request_id=call.client_request_id,
        endpoint=call.endpoint,
        model_alias=call.model_alias,
        is_streaming=call.is_streaming,
        pool=target.pool,
        replica=replica,
        task=plan.task.type,
        task_source=plan.task.source,
        nature=decision.nature,
        policy_version=decision.policy_version,
        price_version=price.version,
        service_tier=call.service_tier,
        tags={**call.tags, **dict(caller.fixed_tags)} if caller.fixed_tags else call.tags,
        cache=plan.cache,
        hold_usd_nanos=hold,
        estimated_input_tokens=input_tokens,
        estimated_charge_usd_nanos=charge(TokenUsage(input=input_tokens), price.rates),
        started_at_ms=now_ms,
    )
    return start, price


def tokens_for(call: Call, *, max_tokens_default: int) -> int:
    """What a request can come to in tokens, for its limits: before its target and its count are known."""
    output = call.max_tokens if call.max_tokens is not None else max_tokens_default
    return estimated_input_tokens(call.body_bytes) + output * call.choices


def hold_for(call: Call, decision: RouteDecision, prices: PriceBook) -> UsdNanos:
    """An upper bound of what one attempt at the dearest target can come to."""
    bounds = [
        charge_bound(
            input_tokens=min(target.max_model_len, call.body_bytes + TEMPLATE_TOKENS) * call.choices,
            output_tokens=output_bound(call, decision, target) * call.choices,
            rates=prices.price_of(target.pool).rates,
        )
        for target in decision.targets
    ]
    return max(bounds)
