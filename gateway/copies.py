"""How is a request copied to a candidate that is shadowed, without its tenant noticing?

Once the request is over, what it asked is put into a short queue; a few workers take it from there, have the
candidate decide and its target answer, and throw the answer away. The copy is the platform's: its attempts
are written down like all others, under the shadow's key, and held for by the shadow's budget. It is made only
while there is room to spare, and what cannot be made is counted with the reason and forgotten. The text is in
memory as long as the copy waits or runs, and nowhere else.

No engine lets a copy go for a tenant's sake: vLLM (0.32, `v1/core/sched/scheduler.py`) makes what has a lower
priority wait longer and takes its cache blocks first, but not its place in the batch, and steps take longer
with it. So a copy only goes to a replica of which little is taken (`headroom_ratio`). What copies put on
replicas then decides nothing for tenants that could change what they pay: neither which pool is asked
(`Economist.order`) nor whether a replica with their prefixes is (`backends.choice`). What is told and learned
from, forecasts and a pool's load, is how it really is. Of other gateways' copies nobody here knows: those are
others' load. A tenant's answer may take longer beside a copy, by so much as that headroom makes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from gateway.db import SessionFactory
from gateway.errors import (
    AllAttemptsFailed,
    BudgetExceeded,
    GatewayError,
    NoEligibleTarget,
    Overloaded,
    UpstreamError,
    UpstreamRejected,
)
from gateway.identity.auth import Caller
from gateway.identity.shedding import Shedder
from gateway.inference import Call, new_id
from gateway.ledger.evaluation import EVALUATION, shadow_key
from gateway.ledger.records import OURS
from gateway.pipeline import Pipeline
from gateway.plan import Beside, Plan
from gateway.routing.shadows import Shadow, count_skips
from gateway.routing.split import Unit
from gateway.settings import ShadowSettings
from gateway.telemetry import Telemetry
from gateway.upstream.retry_budget import RetryBudget

TELL_S: Final = 2.0
"""Between two writings of what was not copied."""
PAUSE_S: Final = 30.0
"""After a budget could not hold a copy nothing is asked of it for so long."""
_MANY: Final = 1_000_000

_log = logging.getLogger(__name__)


class Skip(StrEnum):
    """Why a request was not copied."""

    INTERNAL_ONLY = "internal_only"
    """Nothing of its tenant's may be copied: its owner has not opted in."""
    FULL = "full"
    """Too many waited already."""
    LATE = "late"
    """It had waited too long."""
    LOADED = "loaded"
    """Tenants need the room: of this process, or of the pool that the candidate chose."""
    BUDGET = "budget"
    REFUSED = "refused"
    """The candidate would have refused the request."""
    UNPRICED = "unpriced"
    """The candidate's target has no price: nothing can be held for it."""
    NO_REPLICA = "no_replica"
    NOT_RECORDED = "not_recorded"
    """Usage cannot be written down at the moment."""
    ENDED = "ended"
    """The shadow or the program had ended."""
    BUG = "bug"


class Outcome(StrEnum):
    """How a copy ended."""

    ANSWERED = "answered"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class RequestCopy:
    """A request that could be copied."""

    copier: Copier
    call: Call
    caller: Caller
    request_id: str
    """The original's."""
    unit: Unit
    beside: Beside
    shadow: Shadow
    offered_s: float = 0.0

    @property
    def is_kept_inside(self) -> bool:
        """See `plan.Copy`."""
        return self.caller.is_internal_only

    def offer(self) -> None:
        """See `plan.Copy`."""
        self.copier.take(self)


class Copier:
    """Makes the copies of one process."""

    def __init__(
        self,
        served: Pipeline,
        pipeline: Pipeline,
        *,
        settings: ShadowSettings,
        sessions: SessionFactory,
    ) -> None:
        """Make none yet.

        Args:
            served: what serves tenants; knows which shadow there is.
            pipeline: the copies' own.
            settings: how much of this process they may take.
            sessions: where counts are kept.
        """
        self._served = served
        self._pipeline = pipeline
        self._settings = settings
        self._sessions = sessions
        self._clock = served.clock
        self._waiting: deque[RequestCopy] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Semaphore(0)
        self._stopping = asyncio.Event()
        self._paused: dict[int, float] = {}
        """By shadow: until when nothing is asked of its budget, by the monotonic clock."""
        self._untold: Counter[tuple[int, str]] = Counter()
        self.skips: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.under_way = 0

    # ------------------------------------------------------------------------------------ for who serves
    def of(self, call: Call, caller: Caller, request_id: str, *, unit: Unit, beside: Beside) -> RequestCopy:
        """See `plan.Copies`."""
        if beside.shadow is None:
            raise RuntimeError("a copy for a candidate that is not shadowed")
        return RequestCopy(self, call, caller, request_id, unit, beside, beside.shadow)

    def take(self, copy: RequestCopy) -> None:
        """Make it when there is room; never waits and never fails."""
        settings, size = self._settings, copy.call.body_bytes
        if copy.is_kept_inside:
            self._skip(copy, Skip.INTERNAL_ONLY)
        elif self._has_ended(copy):
            self._skip(copy, Skip.ENDED)
        elif (
            len(self._waiting) >= settings.queue_max or self._waiting_bytes + size > settings.queue_bytes_max
        ):
            self._skip(copy, Skip.FULL)
        else:
            copy.offered_s = self._clock.monotonic_s()
            self._waiting.append(copy)
            self._waiting_bytes += size
            self._wake.release()

    def _skip(self, copy: RequestCopy, why: Skip) -> None:
        self.skips[why.value] += 1
        self._untold[copy.shadow.number, why.value] += 1

    def _has_ended(self, copy: RequestCopy) -> bool:
        beside = self._served.routing.beside
        return (
            self._stopping.is_set()
            or self._served.is_stopping
            or beside is None
            or beside.shadow is None
            or beside.shadow.number != copy.shadow.number
            or self._clock.epoch_ms() >= copy.shadow.terms.until_ms
        )

    # ------------------------------------------------------------------------------------ start and stop
    def stop(self) -> None:
        """Make no more; what is under way is cut, and settled as far as it came."""
        self._stopping.set()

    async def run(self) -> None:
        """Make copies until stopped."""
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(self._tell_often())
            workers = [group.create_task(self._work()) for _ in range(self._settings.concurrency_max)]
            await self._stopping.wait()
            for worker in workers:
                worker.cancel()
            await telling
        self._waiting.clear()

    async def _tell_often(self) -> None:
        is_away = False
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TELL_S)
            try:
                await self.tell()
                is_away = False
            except (SQLAlchemyError, OSError) as error:
                if not is_away:
                    _log.warning("what was not copied cannot be counted (it is tried again): %s", error)
                is_away = True
            if self._stopping.is_set():
                return

    async def tell(self) -> None:
        """Write down how many were not copied since the last time.

        Raises:
            SQLAlchemyError, OSError: the database is away; they are told the next time.
        """
        if not self._untold:
            return
        told, self._untold = self._untold, Counter()
        try:
            async with self._sessions() as session:
                await count_skips(session, told)
                await session.commit()
        except BaseException:
            self._untold.update(told)
            raise

    # ------------------------------------------------------------------------------------ one copy
    async def _work(self) -> None:
        while True:
            await self._wake.acquire()
            copy = self._waiting.popleft()
            self._waiting_bytes -= copy.call.body_bytes
            self.under_way += 1
            try:
                why = await self._make(copy)
            except Exception:  # noqa: BLE001 - a bug in here must not end what serves
                _log.exception("a copy of %s", copy.request_id)
                why = Skip.BUG
            finally:
                self.under_way -= 1
            if why is not None:
                self._skip(copy, why)

    async def _make(self, copy: RequestCopy) -> Skip | None:
        """Make it; why not, if it is not made."""
        now_s = self._clock.monotonic_s()
        if self._has_ended(copy):
            return Skip.ENDED
        if now_s - copy.offered_s > self._settings.age_s_max:
            return Skip.LATE
        if now_s < self._paused.get(copy.shadow.number, 0.0):
            return Skip.BUDGET
        if not self._has_room():
            return Skip.LOADED
        try:
            plan = self._planned(copy)
        except NoEligibleTarget as error:
            return Skip.REFUSED if error.removed_by_rules else Skip.NO_REPLICA
        except GatewayError:
            return Skip.REFUSED
        if None in plan.bounds:
            return Skip.UNPRICED
        # Before this process knows of it nothing would be held.
        if not self._pipeline.is_held_by(plan.caller, copy.shadow.terms.budget_id):
            return Skip.BUDGET
        if not self._has_room_in(plan):
            return Skip.LOADED
        return await self._sent(copy, plan)

    def _has_room(self) -> bool:
        """Tenants leave enough of what this process may have under way."""
        shedder = self._served.shedder
        return (
            shedder.under_way + self.under_way
            <= max(1, shedder.in_flight_max) * self._settings.headroom_ratio
        )

    def _has_room_in(self, plan: Plan) -> bool:
        """So do they at some replica of the pool that would be asked; outside is others' to say."""
        registry = self._pipeline.registry
        for target in plan.decision.targets:
            if target.is_external:
                return True
            if registry.snapshot(target.pool).ready_count:  # one that sleeps is passed by
                return registry.has_room(target.pool, self._settings.headroom_ratio)
        return True  # no matter of room

    def _planned(self, copy: RequestCopy) -> Plan:
        """What the candidate makes of it.

        Raises:
            GatewayError: it would refuse the request.
        """
        call = msgspec.structs.replace(
            copy.call, client_request_id=copy.request_id, end_user=None, tags={}, cache_wish=None
        )
        return self._pipeline.plan_copy(
            call,
            copy.caller,
            new_id("req_", self._clock.epoch_ms()),
            routing=copy.beside.routing,
            unit=copy.unit,
            payer=payer_of(copy.caller, copy.shadow.number),
            budget_id=copy.shadow.terms.budget_id,
        )

    async def _sent(self, copy: RequestCopy, plan: Plan) -> Skip | None:
        outcome = Outcome.FAILED
        try:
            await self._answered(plan)
            outcome = Outcome.ANSWERED
        except BudgetExceeded:
            self._paused[copy.shadow.number] = self._clock.monotonic_s() + PAUSE_S
            return Skip.BUDGET
        except Overloaded:
            return Skip.NOT_RECORDED
        except NoEligibleTarget:
            return Skip.NO_REPLICA if self._has_room_in(plan) else Skip.LOADED
        except (UpstreamError, UpstreamRejected, AllAttemptsFailed):
            pass  # the attempts' rows say it
        self.outcomes[outcome.value] += 1
        return None

    async def _answered(self, plan: Plan) -> None:
        """Have it answered, and throw the answer away."""
        if not plan.call.is_streaming:
            await self._pipeline.answer(plan)
            return
        seat = self._pipeline.shedder.admit("priority", OURS)
        try:
            stream = await self._pipeline.opened(plan, seat)
        except BaseException:
            seat.leave()
            raise
        try:
            while await stream.read():
                pass
            stream.finish()
        except UpstreamError as error:
            stream.fail(error)
            raise
        except BaseException:
            stream.abandon()
            raise

    def watch(self, telemetry: Telemetry) -> None:
        """Show by metrics what it does."""
        telemetry.count_each(
            "tollgate_shadow_copies",
            "Copies of requests that a candidate was asked for, by how they ended",
            label="outcome",
            read=lambda: {each.value: self.outcomes[each.value] for each in Outcome},
        )
        telemetry.count_each(
            "tollgate_shadow_skips",
            "Requests of a shadow that were not copied, by reason",
            label="reason",
            read=lambda: {each.value: self.skips[each.value] for each in Skip},
        )
        telemetry.watch("tollgate_shadow_under_way", "Copies under way", lambda: self.under_way)
        telemetry.watch("tollgate_shadow_waiting", "Copies that wait", lambda: len(self._waiting))
        telemetry.watch(
            "tollgate_shadow_paused",
            "1: the budget of the shadow could not hold a copy just now, none is made for a while",
            lambda: any(until_s > self._clock.monotonic_s() for until_s in self._paused.values()),
        )


def payer_of(caller: Caller, number: int) -> Caller:
    """The platform, as whoever makes copies of a caller's requests for a shadow.

    Copies are apart in the engine's cache from what they are copies of, which would look too fast otherwise
    and would be made faster; and tenants from one another.
    """
    salt = hmac.digest(caller.cache_salt.encode(), shadow_key(number).encode(), hashlib.sha256).hex()
    key_id = shadow_key(number)
    return Caller(
        key_id=key_id,
        tenant_id=OURS,
        tenant_name=OURS,
        project_id=EVALUATION,
        project_name=EVALUATION,
        cache_salt=salt,
        end_user_secret=b"",
        is_internal_only=caller.is_internal_only,
        caches_answers=False,
        class_unasked=caller.class_unasked,
        key_lineage=(key_id,),
    )


def copier_of(
    served: Pipeline,
    settings: ShadowSettings,
    sessions: SessionFactory,
    *,
    telemetry: Telemetry,
) -> Copier:
    """Whoever makes copies beside what serves; it is told of requests from now on.

    Args:
        served: what serves tenants.
        settings: how much of this process copies may take.
        sessions: where counts are kept.
        telemetry: what shows them.
    """
    retries = RetryBudget(ratio=0.1, floor_per_s=1.0)
    pipeline = served.for_copies(
        served.dispatcher.for_copies(retries, room_ratio=settings.headroom_ratio),
        shedder=Shedder(lambda: _MANY, weights={}),
        telemetry=Telemetry(),  # a copy's failed attempts are nobody's alarm
    )
    copier = Copier(served, pipeline, settings=settings, sessions=sessions)
    served.copies = copier
    copier.watch(telemetry)
    return copier
