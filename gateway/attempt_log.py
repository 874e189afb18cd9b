"""What is the ledger told of a request's attempts, in the ledger's words?"""

from __future__ import annotations

import msgspec

from gateway.asked import asked_text
from gateway.clock import Clock
from gateway.errors import UpstreamError, may_have_read
from gateway.identity.auth import Caller
from gateway.inference import (
    AttemptState,
    AttemptTiming,
    Call,
    Target,
    TokenUsage,
    new_id,
)
from gateway.ledger.buckets import Account
from gateway.ledger.budgets import Reservation
from gateway.ledger.records import NO_RECEIPT, AttemptStart
from gateway.ledger.settlement import OpenAttempt, Outcome, Settlement, estimated_input_tokens
from gateway.money import charge_text
from gateway.plan import Plan
from gateway.pricing.rates import UNPRICED, Price, charge
from gateway.protocols.prompt_size import tokens_at_least
from gateway.routing.receipts import with_no_copy, with_unit
from gateway.telemetry import Telemetry


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

    @property
    def has_begun(self) -> bool:
        """Some attempt has started."""
        return self._current is not None

    def started(self, target: Target, replica: str, number: int) -> None:
        """Write the attempt down before it is sent."""
        start, price = start_of(
            self.plan,
            target,
            replica,
            number=number,
            reservation=self.reservation,
            now_ms=self._clock.epoch_ms(),
        )
        self._current = self._settlement.begin(start, price, self.reservation)

    def failed(self, error: UpstreamError, timing: AttemptTiming) -> None:
        """The attempt that started last failed; whether it used anything is only known if it answered."""
        self.current.end(
            Outcome(
                state=AttemptState.FAILED,
                usage=None,
                reached_engine=may_have_read(error),
                status_code=error.upstream_status,
                error_code=error.code,
                timing=timing,
            )
        )
        self._telemetry.attempt_failed(error.code)

    def fork(self) -> AttemptLog:
        """One for another attempt at the same request and under the same reservation."""
        return AttemptLog(
            self.plan,
            self.reservation,
            settlement=self._settlement,
            clock=self._clock,
            telemetry=self._telemetry,
        )

    def lost(self, timing: AttemptTiming) -> None:
        """The attempt was given up for another one that answered first: a hedge is ours to pay."""
        lost = Outcome(state=AttemptState.FAILED, usage=None, error_code="hedge_lost", timing=timing)
        self.current.end(lost)

    def adopt(self, other: AttemptLog) -> None:
        """The other one's attempt is the request's from now on."""
        self._current = other.current

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
        return charge_text(self.current.charge_of(usage))


def account_of(caller: Caller) -> Account:
    """Who spends, as the ledger wants to be told."""
    return Account(
        tenant_id=caller.tenant_id,
        project_id=caller.project_id,
        key_ids=caller.key_lineage,
        fixed_tags=caller.fixed_tags,
    )


def start_of(
    plan: Plan, target: Target, replica: str, *, number: int, reservation: Reservation | None, now_ms: int
) -> tuple[AttemptStart, Price]:
    """The record of an attempt that starts now, and the price that it will be settled at.

    Args:
        plan: the request.
        target: who is tried.
        replica: which of its replicas.
        number: 1 for the first try.
        reservation: what is held for it; None: nothing, for it costs nothing.
        now_ms: epoch milliseconds.
    """
    call, caller, decision = plan.call, plan.caller, plan.decision
    # Not refused here: what may not be used without a price was dropped when it was decided, and refused when
    # it was held for. What an answer from the cache once cost does not matter.
    price = plan.prices.find(target.pool) or UNPRICED
    # Never above what was held: an engine may have counted the prompt, or takes no more.
    estimate = min(tokens_at_least(call), target.max_model_len * call.prompts)
    input_tokens = estimate if plan.counted_input is None else min(estimate, plan.counted_input)
    start = AttemptStart(
        # Of the first attempt as unique as the request's: random digits are dear where every call takes some.
        f"att_{plan.request_id[4:]}" if number == 1 else new_id("att_", now_ms),
        plan.request_id,
        number,
        caller.tenant_id,
        caller.project_id,
        caller.key_id,
        None if call.end_user is None else caller.end_user_hash(call.end_user),
        call.client_request_id,
        call.endpoint,
        call.model_alias,
        call.is_streaming,
        target.pool,
        replica,
        plan.task.type,
        plan.task.source,
        decision.nature,
        decision.policy_version,
        price.version,
        call.service_tier,
        {**call.tags, **dict(caller.fixed_tags)} if caller.fixed_tags else call.tags,
        0 if reservation is None else reservation.bound_usd_nanos,
        input_tokens,
        charge(TokenUsage(input_tokens), price.rates),
        now_ms,
        plan.cache,
        () if reservation is None else reservation.counted,
        _receipt(plan) if number == 1 else NO_RECEIPT,
        *_modelled(plan, target),
    )
    return start, price


def _receipt(plan: Plan) -> msgspec.Raw:
    forecasts = plan.forecasts
    texts = None if forecasts is None else forecasts.texts(len(plan.bounds))
    asked = asked_text(plan.call, plan.caller, plan.slot)
    receipt = plan.course.receipt(plan.call, plan.bounds, texts, asked=asked)
    # All but a few requests have neither: the receipt's form does not provide for it.
    if plan.unit is not None:
        return msgspec.Raw(with_unit(bytes(receipt), plan.unit))
    if plan.copy is not None and plan.copy.is_kept_inside:
        return msgspec.Raw(with_no_copy(bytes(receipt)))
    return receipt


def _modelled(plan: Plan, target: Target) -> tuple[float | None, float | None]:
    """What the target's model says of first token and step, ms; measurements are compared with it."""
    found = None if plan.forecasts is None else plan.forecasts.of(target.pool)
    if found is None:
        return None, None
    return found.modelled_ttft_s * 1000, found.modelled_step_s * 1000


def tokens_for(call: Call, *, max_tokens_default: int) -> int:
    """What a request can come to in tokens, for its limits: before its target and its count are known."""
    output = call.max_tokens if call.max_tokens is not None else max_tokens_default
    return estimated_input_tokens(call.body_bytes) + output * call.choices
