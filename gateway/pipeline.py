"""In what order is one inference call served?

admit → classify → decide → cache → shed → reserve → send → settle. Owns the order and nothing else: no SQL,
no HTTP, no rates, no policy grammar. Each step takes values and returns a value; the rooms do not know each
other, so what one of them wants to be told of another is filled in here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import msgspec

from gateway.attempt_log import AttemptLog, account_of, start_of, tokens_for
from gateway.cache.lookup import AnswerCache, CacheStatus, KeptAnswer, slot_for
from gateway.clock import Clock
from gateway.course import Course, Courses, baseline_of, most_of
from gateway.errors import BudgetExceeded, GatewayError
from gateway.identity.auth import Caller, admit, latency_class
from gateway.identity.limits import UNLIMITED, Permit
from gateway.identity.shedding import Seat, Shedder
from gateway.inference import NO_TERMS, AttemptState, Call, Task, UsageSource
from gateway.ledger.admission import Budgets
from gateway.ledger.budgets import Reservation
from gateway.ledger.levels import Fullest
from gateway.ledger.settlement import Outcome, Settlement
from gateway.money import UsdNanos
from gateway.plan import Copies, Copy, Plan, Routing, ServedFacts, situation_of
from gateway.pricing.book import Prices
from gateway.refusals import Refusals
from gateway.routing.budget_watch import BudgetWatch
from gateway.routing.classify import TaskFinder
from gateway.routing.decide import decide, match_of
from gateway.routing.policy import Policy
from gateway.routing.rules import NOBODY, BudgetLevel, Situation, is_measured, refuse_low
from gateway.routing.split import Unit
from gateway.served import ReplayedStream, Served, ServedStream, StreamedAnswer
from gateway.telemetry import Telemetry
from gateway.upstream.dispatch import Dispatcher


class _Arm:
    """What is remembered of the calls that follow one policy: the active one, or a candidate beside it."""

    __slots__ = ("courses", "tasks")

    def __init__(self) -> None:
        self.courses = Courses()
        self.tasks = TaskFinder()


class Pipeline:
    """Serves inference calls."""

    def __init__(
        self,
        *,
        routing: Routing,
        dispatcher: Dispatcher,
        budgets: Budgets,
        settlement: Settlement,
        cache: AnswerCache,
        shedder: Shedder,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self.routing = routing
        self.cache = cache
        self.registry = dispatcher.registry
        self.dispatcher = dispatcher
        self._budgets = budgets
        self._settlement = settlement
        self.shedder = shedder
        self._telemetry = telemetry
        self.clock = clock
        self._arms = (_Arm(), _Arm())
        self.watch = BudgetWatch()
        """Which rules found a budget low."""
        self.refusals = Refusals(clock)
        self.copies: Copies | None = None
        """Who makes copies for a candidate that is shadowed."""

    def for_copies(self, dispatcher: Dispatcher, *, shedder: Shedder, telemetry: Telemetry) -> Pipeline:
        """One for copies of requests, which writes into the same books."""
        return Pipeline(
            routing=self.routing,
            dispatcher=dispatcher,
            budgets=self._budgets,
            settlement=self._settlement,
            cache=self.cache,
            shedder=shedder,
            telemetry=telemetry,
            clock=self.clock,
        )

    @property
    def is_stopping(self) -> bool:
        """The program ends."""
        return self._settlement.is_stopping

    def stop(self) -> None:
        """The program ends: what it cuts from now on is its own account."""
        self._settlement.is_stopping = True

    def serve(self, call: Call, caller: Caller, request_id: str) -> Awaitable[Served]:
        """A whole answer to `call`.

        Raises:
            PermissionDenied: the key is not for this model or latency class.
            RateLimited: its tenant, its project or its key has called too fast.
            ModelNotFound: the policy has no such alias.
            NoEligibleTarget: no target may or can serve it.
            Unpriced: no target that could serve it has a price.
            BudgetExceeded: a budget over the caller cannot hold what it may come to.
            Overloaded: too much is under way already, or usage cannot be recorded.
            UpstreamRejected: the engine refused the request.
            AllAttemptsFailed: every target was tried.
        """
        plan = self._plan(call, caller, request_id)
        return self._serve(plan) if plan.permit is UNLIMITED else self._serve_limited(plan)

    async def _serve_limited(self, plan: Plan) -> Served:
        with plan.permit:
            return await self._serve(plan)

    async def _serve(self, plan: Plan) -> Served:
        kept = None if plan.slot is None else await self.cache.find(plan.slot)
        if kept is not None:
            return Served(self._settled(plan, kept), kept.replayed(), charge_usd_nanos=UsdNanos(0))
        with self.shedder.admit(latency_class(plan.caller, plan.call), plan.caller.tenant_name):
            return await self.answer(plan)

    async def answer(self, plan: Plan) -> Served:
        """A whole answer from a model, to what was decided and let in."""
        call, caller = plan.call, plan.caller
        log = self._reserve_now(plan) or await self.refusals.told(self._reserve(plan), plan)
        try:
            answer = await self.dispatcher.send(call, plan.decision, log, cache_salt=caller.cache_salt)
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
            self.refusals.unsent(log, None)
            log.cancelled()
            raise
        except Exception as error:  # a bug too must not leave an attempt open
            self.refusals.unsent(log, error)
            log.given_up()
            if plan.copy is not None:
                plan.copy.offer()
            raise
        finally:
            log.reservation.end()
        if plan.copy is not None:
            plan.copy.offer()
        plan.permit.end(None if completion.usage is None else completion.usage.total)
        if plan.slot is not None and plan.slot.may_keep:
            self.cache.keep(plan.slot, KeptAnswer(pool=answer.target.pool, body=completion.body))
        facts = plan.facts(answer.target, answer.replica)
        return Served(facts=facts, body=completion.body, charge_usd_nanos=charged)

    async def serve_stream(self, call: Call, caller: Caller, request_id: str) -> StreamedAnswer:
        """A stream that has its first content; the same errors as `serve`, all before that."""
        plan = self._plan(call, caller, request_id)
        with plan.permit:
            return await self._open_stream(plan)

    async def _open_stream(self, plan: Plan) -> StreamedAnswer:
        kept = None if plan.slot is None else await self.cache.find(plan.slot)
        if kept is not None:
            return ReplayedStream(self._settled(plan, kept), kept.replayed())
        seat = self.shedder.admit(latency_class(plan.caller, plan.call), plan.caller.tenant_name)
        try:
            return await self.opened(plan, seat)
        except BaseException:
            seat.leave()
            raise

    async def opened(self, plan: Plan, seat: Seat) -> ServedStream:
        """A stream from a model, to what was decided and let in."""
        call, caller = plan.call, plan.caller
        log = self._reserve_now(plan) or await self.refusals.told(self._reserve(plan), plan)
        try:
            stream = await self.dispatcher.open_stream(
                call, plan.decision, log, cache_salt=caller.cache_salt, cost_text=log.cost_text
            )
        except asyncio.CancelledError:
            self.refusals.unsent(log, None)
            log.cancelled()
            log.reservation.end()
            raise
        except BaseException as error:  # a bug too must not keep what was held
            self.refusals.unsent(log, error)
            log.given_up()
            log.reservation.end()
            if plan.copy is not None:
                plan.copy.offer()
            raise
        facts = plan.facts(stream.target, stream.replica)
        return ServedStream(facts, stream, log, cache=self.cache, seat=seat)

    def _plan(self, call: Call, caller: Caller, request_id: str) -> Plan:
        admit(caller, call)
        permit = UNLIMITED
        if caller.limits is not None:
            asked = tokens_for(call, max_tokens_default=self.routing.policy.max_tokens_default)
            permit = caller.limits.admit(asked)
        with permit:
            routing, beside, unit = self.routing, self.routing.beside, None
            copied: Copy | None = None
            if beside is not None:
                unit = beside.unit_of(call, caller, request_id)
                is_candidates = unit is not None and beside.split.is_candidates(unit)
                if beside.shadow is not None:
                    if unit is not None and is_candidates and self.copies is not None:
                        copied = self.copies.of(call, caller, request_id, unit=unit, beside=beside)
                    unit = None  # of no canary's
                elif is_candidates:
                    routing = beside.routing
            try:
                plan = self._routed(call, caller, request_id, permit=permit, routing=routing, unit=unit)
            except GatewayError as error:
                self.refusals.before(error, routing, caller, unit=unit)
                raise
            return plan if copied is None else msgspec.structs.replace(plan, copy=copied)

    def plan_copy(
        self,
        call: Call,
        caller: Caller,
        request_id: str,
        *,
        routing: Routing,
        unit: Unit,
        payer: Caller,
        budget_id: str,
    ) -> Plan:
        """What a candidate's `routing` makes of a request, at the expense of `payer`; kept nowhere.

        It is not sent without the hold of the budget `budget_id`.

        Raises:
            GatewayError: the candidate would refuse it.
        """
        plan = self._routed(call, caller, request_id, permit=UNLIMITED, routing=routing, unit=unit)
        return msgspec.structs.replace(plan, caller=payer, slot=None, held_by=budget_id)

    def _routed(
        self,
        call: Call,
        caller: Caller,
        request_id: str,
        *,
        permit: Permit,
        routing: Routing,
        unit: Unit | None,
    ) -> Plan:
        policy, arm = routing.policy, self._arms[routing is not self.routing]
        prices = routing.prices.at(self.clock.epoch_ms())
        task = arm.tasks.find(call, policy, key_id=caller.key_id)
        course = self._course(call, caller, task, policy=policy, prices=prices, courses=arm.courses)
        course = course.fitting(call)
        terms, forecasts = course.decision.terms, None
        usually = policy.economics.is_enabled
        if usually if terms is NO_TERMS else is_measured(terms, usually=usually):
            tier = latency_class(caller, call)
            course, forecasts = routing.economist.order(
                course, call, task, tenant_id=caller.tenant_id, latency_class=tier, policy=policy
            )
        slot = None
        if caller.caches_answers:
            scope = routing.answer_scopes[call.model_alias]
            rule = terms.cache or policy.cache
            if terms.rule is not None:  # it may use other models than the next rule, and keep answers as long
                names = sorted(target.pool for target in course.decision.targets)
                scope = "\0".join((scope, str(rule.ttl_s), *names))
            slot = slot_for(call, rule, secret=caller.cache_secret, scope=scope)
        bounds = course.bounds(call)
        return Plan(call, caller, request_id, task, course, prices, bounds, slot, permit, forecasts, unit)

    def _course(
        self, call: Call, caller: Caller, task: Task, *, policy: Policy, prices: Prices, courses: Courses
    ) -> Course:
        may_leave, unpriced = not caller.is_internal_only, self._unusable(prices, caller, policy)
        tier = latency_class(caller, call)
        situation, match = NOBODY, None
        if policy.rules.entries:
            situation = self._situation(caller, policy, prices)
            match = match_of(call, task, policy, latency_class=tier, situation=situation)
            if match is not None and match.low is not None and situation.budget is not None:
                self.watch.saw(match, situation.budget)
                refuse_low(match, situation)

        def make() -> Course:
            decision = decide(
                call,
                task,
                policy,
                pools={snapshot.spec.name: snapshot for snapshot in self.registry.snapshots()},
                may_leave=may_leave,
                unpriced=unpriced,
                latency_class=tier,
                situation=situation,
            )
            baseline = baseline_of(policy, call.model_alias, prices)
            return Course(decision, prices, task=task, baseline=baseline)

        has_outside = call.model_alias in policy.overflow or (match is not None and match.rule.has_external)
        if may_leave and has_outside:
            return make()  # what may leave depends on every field of the call
        # All that a decision depends on beside the policy and the prices.
        key = (
            call.model_alias,
            task,
            call.facts.needs_full_sampling,
            call.facts.has_media,
            tier,
            may_leave,
            unpriced,
            self.registry.ready_pools(),
            None if match is None else (match.rule.index, match.branch, match.low),
        )
        return courses.find(key, make, policy=policy, prices=prices)

    def _situation(self, caller: Caller, policy: Policy, prices: Prices) -> Situation:
        """Who asks, and when, as rules want to be told."""
        level = None
        if policy.rules.watches_budgets:
            fullest = self.fullest(caller)
            level = None if fullest is None else BudgetLevel(*fullest)
        return situation_of(caller, prices, level, now_ms=self.clock.epoch_ms())

    def fullest(self, caller: Caller) -> Fullest | None:
        """The budget over a caller of which the greatest share is used, as far as this process knows."""
        return self._budgets.fullest(account_of(caller))

    def is_held_by(self, caller: Caller, budget_id: str) -> bool:
        """Whether what this caller may spend is held by that budget, as far as this process knows."""
        binding = self._budgets.book.binding(account_of(caller), self.clock.epoch_ms())
        return any(record.id == budget_id for _, record in binding.hard)

    def _unusable(self, prices: Prices, caller: Caller, policy: Policy) -> frozenset[str]:
        """Targets that must not be used for want of a price: nobody can hold a limit against none."""
        if prices.allows_unpriced and self._budgets.is_bound(account_of(caller)):
            return frozenset({*self.registry.specs, *policy.external} - prices.by_target.keys())
        return prices.refused

    def _reserve_now(self, plan: Plan) -> AttemptLog | None:
        reservation = self._budgets.reserve_now(account_of(plan.caller), most_of(plan.bounds))
        return None if reservation is None else self._log(plan, reservation)

    async def _reserve(self, plan: Plan) -> AttemptLog:
        account = account_of(plan.caller)
        bound = most_of(plan.bounds)
        try:
            reservation = await self._budgets.reserve(account, bound)
        except BudgetExceeded:
            # Bytes bound tokens from far above: what is left may do for what the engine really reads.
            counted = await self.dispatcher.count_input(plan.call, plan.decision)
            if counted is None:
                raise
            bound = plan.course.hold(plan.call, input_tokens=counted)
            reservation = await self._budgets.reserve(account, bound)
            plan = msgspec.structs.replace(plan, counted_input=counted)
        return self._log(plan, reservation)

    def _log(self, plan: Plan, reservation: Reservation) -> AttemptLog:
        if plan.held_by is not None and not reservation.is_held_by(plan.held_by):
            reservation.end()  # the budget was retired meanwhile: it binds nobody any more, and holds nothing
            raise BudgetExceeded("The budget that must hold this request is not in force.")
        return AttemptLog(
            plan, reservation, settlement=self._settlement, clock=self.clock, telemetry=self._telemetry
        )

    def _settled(self, plan: Plan, kept: KeptAnswer) -> ServedFacts:
        """Book an answer from the cache, which costs nothing, and say what it is."""
        facts = plan.facts_of_kept(kept)
        target = msgspec.structs.replace(plan.decision.targets[0], pool=kept.pool)
        start, _ = start_of(
            plan, target, facts.replica, number=1, reservation=None, now_ms=self.clock.epoch_ms()
        )
        self._settlement.served_from_cache(msgspec.structs.replace(start, cache=CacheStatus.HIT))
        plan.permit.end(0)
        return facts
