"""In what order is one inference call served?

classify → decide → cache → reserve → send → settle. Owns the order and nothing else: no SQL, no HTTP, no
rates, no policy grammar. Each step takes values and returns a value; the rooms do not know each other, so
what one of them wants to be told of another is filled in here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from backends.registry import PoolRegistry
from gateway.cache.lookup import CacheStatus, find
from gateway.clock import Clock
from gateway.errors import GatewayError, UpstreamError
from gateway.identity.auth import Caller, admit
from gateway.inference import (
    AttemptState,
    AttemptTiming,
    Call,
    RouteDecision,
    Target,
    Task,
    TokenUsage,
    UsageSource,
    new_id,
)
from gateway.ledger.budgets import Holds, Reservation
from gateway.ledger.records import AttemptStart
from gateway.ledger.settlement import OpenAttempt, Outcome, Settlement, estimated_input_tokens
from gateway.money import UsdNanos, usd_text
from gateway.pricing.catalog import PriceBook
from gateway.pricing.rates import charge, charge_bound
from gateway.routing.classify import classify
from gateway.routing.decide import decide
from gateway.routing.policy import Policy
from gateway.telemetry import Telemetry
from gateway.upstream.dispatch import AnswerStream, Dispatcher
from gateway.upstream.vllm import output_bound

TEMPLATE_TOKENS = 256
"""What a chat template may add to a request's own text."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What routing needs and what may be exchanged while requests run: taken once per request."""

    policy: Policy
    prices: PriceBook


@dataclass(frozen=True, slots=True)
class ServedFacts:
    """What every answer says about itself."""

    request_id: str
    task: Task
    policy_version: str
    pool: str
    replica: str
    cache: CacheStatus
    dropped: tuple[str, ...]
    max_tokens_set: int | None
    """The bound that we put in; None if the caller gave one."""


@dataclass(frozen=True, slots=True)
class Served:
    """A whole answer."""

    facts: ServedFacts
    body: bytes
    charge_usd_nanos: UsdNanos


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known of a request before it is sent."""

    call: Call
    caller: Caller
    request_id: str
    task: Task
    decision: RouteDecision
    prices: PriceBook
    reservation: Reservation

    def facts(self, target: Target, replica: str) -> ServedFacts:
        """What the answer of a replica says about itself."""
        call, decision = self.call, self.decision
        return ServedFacts(
            request_id=self.request_id,
            task=self.task,
            policy_version=decision.policy_version,
            pool=target.pool,
            replica=replica,
            cache=find(),
            dropped=call.dropped,
            max_tokens_set=None if call.max_tokens is not None else output_bound(call, decision, target),
        )


class ServedStream:
    """An answer that is still coming. Whoever sends it on ends it, in exactly one of the three ways."""

    __slots__ = ("_attempt", "_reservation", "_stream", "facts")

    def __init__(
        self, facts: ServedFacts, stream: AnswerStream, *, attempt: OpenAttempt, reservation: Reservation
    ) -> None:
        self.facts = facts
        self._stream = stream
        self._attempt = attempt
        self._reservation = reservation

    async def read(self) -> bytes:
        """The next bytes for the client; nothing when it is complete.

        Raises:
            UpstreamError: the engine failed in the middle; call `fail` with it.
        """
        return await self._stream.read()

    def finish(self) -> None:
        """It was complete."""
        self._end(AttemptState.ANSWERED, None)

    def fail(self, error: UpstreamError) -> None:
        """The engine failed after the first content."""
        self._end(AttemptState.INTERRUPTED, error)

    def abandon(self) -> None:
        """The client left: close the engine's connection, so that it stops generating."""
        self._end(AttemptState.CANCELLED, None)

    def _end(self, state: AttemptState, error: UpstreamError | None) -> None:
        timing = self._stream.timing
        self._stream.close(failure=error)
        relay = self._stream.relay
        self._attempt.end(
            Outcome(
                state=state,
                usage=relay.usage,
                produced_tokens=relay.content_events,
                status_code=200,
                error_code=None if error is None else error.code,
                timing=timing,
                engine=relay.engine,
            )
        )
        self._reservation.end()


class Pipeline:
    """Serves inference calls."""

    def __init__(
        self,
        *,
        routing: Routing,
        registry: PoolRegistry,
        dispatcher: Dispatcher,
        holds: Holds,
        settlement: Settlement,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self.routing = routing
        self._registry = registry
        self._dispatcher = dispatcher
        self._holds = holds
        self._settlement = settlement
        self._telemetry = telemetry
        self._clock = clock

    async def serve(self, call: Call, caller: Caller, request_id: str) -> Served:
        """A whole answer to `call`.

        Raises:
            PermissionDenied: the key is not for this model or latency class.
            ModelNotFound: the policy has no such alias.
            NoEligibleTarget: no target may or can serve it.
            Unpriced: a target has no price.
            Overloaded: usage cannot be recorded.
            UpstreamRejected: the engine refused the request.
            AllAttemptsFailed: every target was tried.
        """
        log = self._prepare(call, caller, request_id)
        prepared = log.prepared
        try:
            answer = await self._dispatcher.send(call, prepared.decision, log, cache_salt=caller.cache_salt)
            completion = answer.completion
            charged = log.current.end(
                Outcome(
                    state=AttemptState.ANSWERED,
                    usage=completion.usage if completion.usage_source is UsageSource.MEASURED else None,
                    status_code=200,
                    timing=answer.timing,
                    engine=completion.engine,
                )
            )
        except asyncio.CancelledError:
            log.cancelled()
            raise
        except GatewayError:
            log.given_up()
            raise
        finally:
            prepared.reservation.end()
        facts = prepared.facts(answer.target, answer.replica)
        return Served(facts=facts, body=completion.body, charge_usd_nanos=charged)

    async def serve_stream(self, call: Call, caller: Caller, request_id: str) -> ServedStream:
        """A stream that has its first content; the same errors as `serve`, all before that."""
        log = self._prepare(call, caller, request_id)
        prepared = log.prepared
        try:
            stream = await self._dispatcher.open_stream(
                call, prepared.decision, log, cache_salt=caller.cache_salt, cost_text=log.cost_text
            )
        except asyncio.CancelledError:
            log.cancelled()
            prepared.reservation.end()
            raise
        except GatewayError:
            log.given_up()
            prepared.reservation.end()
            raise
        facts = prepared.facts(stream.target, stream.replica)
        return ServedStream(facts, stream, attempt=log.current, reservation=prepared.reservation)

    def _prepare(self, call: Call, caller: Caller, request_id: str) -> _AttemptLog:
        admit(caller, call)
        routing = self.routing
        task = classify(call, default=routing.policy.default_task)
        pools = {snapshot.spec.name: snapshot for snapshot in self._registry.snapshots()}
        decision = decide(call, task, routing.policy, pools=pools)
        prepared = _Prepared(
            call=call,
            caller=caller,
            request_id=request_id,
            task=task,
            decision=decision,
            prices=routing.prices,
            reservation=self._holds.reserve(_hold(call, decision, routing.prices)),
        )
        return _AttemptLog(prepared, self._settlement, clock=self._clock, telemetry=self._telemetry)


class _AttemptLog:
    """Tells the ledger of each attempt, in the ledger's words."""

    def __init__(
        self, prepared: _Prepared, settlement: Settlement, *, clock: Clock, telemetry: Telemetry
    ) -> None:
        self.prepared = prepared
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
        prepared = self.prepared
        call, caller, decision = prepared.call, prepared.caller, prepared.decision
        now_ms = self._clock.epoch_ms()
        price = prepared.prices.price_of(target.pool)
        input_tokens = estimated_input_tokens(call.body_bytes)
        start = AttemptStart(
            attempt_id=new_id("att_", now_ms),
            request_id=prepared.request_id,
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
            task=prepared.task.type,
            task_source=prepared.task.source,
            nature=decision.nature,
            policy_version=decision.policy_version,
            price_version=price.version,
            service_tier=call.service_tier,
            tags=call.tags,
            hold_usd_nanos=prepared.reservation.bound_usd_nanos,
            estimated_input_tokens=input_tokens,
            estimated_charge_usd_nanos=charge(TokenUsage(input=input_tokens), price.rates),
            started_at_ms=now_ms,
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


def _hold(call: Call, decision: RouteDecision, prices: PriceBook) -> UsdNanos:
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
