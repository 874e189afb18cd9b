"""Which replica answers, and what if it does not?

Walks the decision's targets. A failed attempt moves on to another replica of the same pool, then to the
next pool, then to external targets where the decision has any, as long as nothing of the answer has reached
the client: for a stream, until its first content. Pools never use up every attempt: one is left for the
first external target. A request that an engine refuses (4xx) is not tried elsewhere, and while too many
requests are tried again none is (`retry_budget.py`). A stream that is slow to begin may be asked for twice
(`hedging.py`). Every attempt is told to an observer before it is sent and when it fails; the attempt that
answers is ended by whoever owns the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import msgspec

from backends.choice import Key
from backends.pool import ReplicaState
from backends.registry import PoolRegistry, ReplicaLease
from gateway.errors import (
    AllAttemptsFailed,
    GatewayError,
    NoEligibleTarget,
    UpstreamError,
    UpstreamRejected,
    may_have_read,
)
from gateway.inference import (
    NO_TERMS,
    AttemptTiming,
    Call,
    Completion,
    Endpoint,
    RouteDecision,
    Target,
)
from gateway.protocols.affinity import affinity_key
from gateway.settings import TimeoutSettings
from gateway.upstream import token_count
from gateway.upstream.answer_stream import AnswerStream, Lease, count_failure, is_refused, timing_since
from gateway.upstream.client import Origin, UpstreamClient, UpstreamResponse
from gateway.upstream.hedging import Hedging, first_decisive, outcome_of
from gateway.upstream.outside import REPLICA, EventSource, Outside
from gateway.upstream.patience import Patience
from gateway.upstream.retry_budget import RetryBudget
from gateway.upstream.stall import StallGuard
from gateway.upstream.stream import CostText, StreamRelay
from gateway.upstream.vllm import (
    ANSWER_BYTES_MAX,
    ERROR_BYTES_MAX,
    REQUEST_HEADERS,
    error_of,
    read_completion,
    request_body,
)
from gateway.upstream.waking import Waker

_OK = 200
_WHOLE = "whole answer"
_FIRST = "first token"
COPY_PRIORITY = 100
"""In an engine's queue, lower is earlier; tenants' requests have 0 to 20 (`routing.decide`)."""
_PATHS = {endpoint: f"/v1/{endpoint}" for endpoint in Endpoint}


class AttemptObserver(Protocol):
    """Is told of every attempt; the pipeline writes it to the ledger."""

    def started(self, target: Target, replica: str, number: int) -> None:
        """An attempt is about to be sent."""

    def failed(self, error: UpstreamError, timing: AttemptTiming) -> None:
        """The attempt that started last failed."""

    def fork(self) -> Self:
        """One for another attempt at the same time."""

    def lost(self, timing: AttemptTiming) -> None:
        """The attempt that started last is given up, because another one answered first."""

    def adopt(self, other: Self) -> None:
        """Go on with the other one's attempt; this one's has ended."""


class _OutsideLease:
    """Nobody counts how an external target is doing: it is asked each time that it is needed."""

    replica = REPLICA
    url = ""

    def succeeded(self) -> None:
        """Not counted."""

    def failed(self, detail: str, *, fatal: bool = False, slow: bool = False) -> None:
        """Not counted: the attempt's row says it."""

    def release(self) -> None:
        """Nothing was claimed."""


_OUTSIDE = _OutsideLease()


class _Unjudged:
    """A claim on a replica that says nothing of how it does."""

    def __init__(self, lease: Lease) -> None:
        self.replica, self.url = lease.replica, lease.url
        self.release = lease.release

    def succeeded(self) -> None:
        """Not counted."""

    def failed(self, detail: str, *, fatal: bool = False, slow: bool = False) -> None:
        """Not counted: the attempt's row says it."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, and where it came from."""

    target: Target
    replica: str
    completion: Completion
    timing: AttemptTiming


class _Try(msgspec.Struct, frozen=True):
    """One attempt at one target."""

    call: Call
    decision: RouteDecision
    target: Target
    lease: Lease
    cache_salt: str


@dataclass(slots=True)
class _Running:
    """A stream that is asked for: by whom now, and who was."""

    attempt: _Try
    observer: AttemptObserver
    relay_of: Callable[[Target], StreamRelay]
    tried: set[str]
    """Replicas, over all of the request's attempts."""
    started_s: float
    attempts: int
    """Begun so far."""

    @property
    def lease(self) -> Lease:
        return self.attempt.lease

    def go_on_as(self, rival: _Running) -> None:
        """The rival's attempt is the request's from now on; this one's has ended."""
        self.observer.adopt(rival.observer)
        self.attempt, self.started_s = rival.attempt, rival.started_s


_Opening = asyncio.Task[AnswerStream | UpstreamError]


class Dispatcher:
    """Sends calls to replicas."""

    def __init__(
        self,
        registry: PoolRegistry,
        client: UpstreamClient,
        timeouts: TimeoutSettings,
        *,
        attempts_max: int,
        retries: RetryBudget,
        hedging: Hedging | None = None,
        outside: Outside | None = None,
        waker: Waker | None = None,
    ) -> None:
        self.retries = retries
        self.waker = waker
        self.hedging = hedging
        self.registry = registry
        self._client = client
        self._timeouts = timeouts
        self._outside = outside
        self._attempts_max = attempts_max
        self._origins: dict[str, Origin] = {}
        self.judges = True
        """Replicas that fail it are taken out."""
        self._room_ratio: float | None = None
        """How full a replica may be; None: no matter."""

    def for_copies(self, retries: RetryBudget, *, room_ratio: float) -> Dispatcher:
        """One for requests that nobody waits for, which asks the same replicas.

        It asks only such as have room to spare, wakes none, asks for nothing twice and stands behind all
        others in an engine's queue. How replicas answer it says nothing of them to others: what a candidate
        does wrong must take no replica from those that are served.

        Args:
            retries: its own.
            room_ratio: so much of what a replica generates at once may be under way there.
        """
        quiet = copy.copy(self)
        quiet.retries, quiet.waker, quiet.hedging, quiet.judges = retries, None, None, False
        quiet._room_ratio = room_ratio  # noqa: SLF001 - its own kind
        return quiet

    async def send(
        self, call: Call, decision: RouteDecision, observer: AttemptObserver, *, cache_salt: str
    ) -> Answer:
        """A whole answer from the first target that gives one.

        Raises:
            UpstreamRejected: an engine refused the request itself.
            AllAttemptsFailed: nobody answered.
            NoEligibleTarget: no replica was left to try.
        """
        if self.registry.asleep and self.waker is not None:
            await self.waker.clear_way(call, decision.targets)
        failures: list[UpstreamError] = []
        key = functools.partial(affinity_key, call, cache_salt)
        for target, lease in self._tries(decision, failures, set(), key=key):
            started_s = time.monotonic()
            try:
                observer.started(target, lease.replica, len(failures) + 1)
                completion = await self._complete(_Try(call, decision, target, lease, cache_salt))
            except UpstreamRejected as error:
                observer.failed(error, timing_since(started_s))
                lease.succeeded()  # the replica is well, the request was not
                raise
            except UpstreamError as error:
                observer.failed(error, timing_since(started_s))
                count_failure(lease, error)
                failures.append(error)
            else:
                lease.succeeded()
                return Answer(target, lease.replica, completion, timing_since(started_s))
            finally:
                lease.release()
        raise _nobody_answered(failures)

    async def open_stream(
        self,
        call: Call,
        decision: RouteDecision,
        observer: AttemptObserver,
        *,
        cache_salt: str,
        cost_text: CostText,
    ) -> AnswerStream:
        """A stream with its first content, from the first target that gives one; the caller closes it.

        Raises:
            UpstreamRejected: an engine refused the request itself.
            AllAttemptsFailed: nobody answered.
            NoEligibleTarget: no replica was left to try.
        """

        def relay_of(target: Target) -> StreamRelay:
            return StreamRelay(
                upstream_model=target.upstream_model,
                alias=call.model_alias,
                wants_usage=call.wants_usage,
                cost_text=cost_text,
            )

        if self.registry.asleep and self.waker is not None:
            await self.waker.clear_way(call, decision.targets)
        failures: list[UpstreamError] = []
        tried: set[str] = set()
        attempts = 0
        key = functools.partial(affinity_key, call, cache_salt)
        for target, lease in self._tries(decision, failures, tried, key=key):
            attempt = _Try(call, decision, target, lease, cache_salt)
            running = _Running(attempt, observer, relay_of, tried, time.monotonic(), attempts + 1)
            try:
                with _released_on_failure(running):
                    observer.started(target, lease.replica, running.attempts)
                    return await self._first_content(running)
            except UpstreamRejected as error:
                observer.failed(error, timing_since(running.started_s))
                running.lease.succeeded()  # the replica is well, the request was not
                raise
            except UpstreamError as error:
                observer.failed(error, timing_since(running.started_s))
                count_failure(running.lease, error)
                failures.append(error)
                attempts = running.attempts
        raise _nobody_answered(failures)

    async def count_input(self, call: Call, decision: RouteDecision) -> int | None:
        """The request's input tokens as an engine counts them; None if that cannot be known."""
        body = token_count.question(call, decision)
        lease = None if body is None else self._claim(decision.targets[0].pool)
        if body is None or lease is None:
            return None
        try:
            return await token_count.ask(self._client, self._origin(lease.url), body)
        finally:
            lease.release()

    def _tries(
        self, decision: RouteDecision, failures: list[UpstreamError], tried: set[str], *, key: Key
    ) -> Iterator[tuple[Target, Lease]]:
        """Who is tried next, as long as trying again is allowed; `failures` and `tried` grow meanwhile."""
        self.retries.began(time.monotonic())
        for target, lease in self._candidates(decision, tried, key=key):
            # What was refused at the door was no work for anybody: it may always be tried elsewhere.
            if failures and not is_refused(failures[-1]):
                # The hold of a copy is of one attempt: what may have been read is not tried again.
                is_spent = may_have_read(failures[-1]) and not self.judges
                if is_spent or not self.retries.allows(time.monotonic()):
                    lease.release()
                    return
            yield target, lease

    def _candidates(
        self, decision: RouteDecision, tried: set[str], *, key: Key
    ) -> Iterator[tuple[Target, Lease]]:
        terms, targets = decision.terms, decision.targets
        attempts_max = terms.attempts_max or self._attempts_max
        has_outside = targets[-1].is_external
        if terms is not NO_TERMS:  # a rule may put them anywhere
            has_outside = any(target.is_external for target in targets)
        # Pools must not use up every attempt: the overflow exists for when they fail.
        pools_max = max(1, attempts_max - 1) if has_outside else attempts_max
        count_outside = 0
        for target in targets:
            if target.is_external:
                is_first = not count_outside and terms.attempts_max is None
                if is_first or len(tried) + count_outside < attempts_max:
                    count_outside += 1
                    yield target, _OUTSIDE
                continue
            while len(tried) + count_outside < (attempts_max if count_outside else pools_max):
                lease = self._claim(target.pool, tried, key)
                if lease is None:
                    if self._is_busy(target.pool, tried):
                        return  # no tenant would go elsewhere for that: it would be a copy of something else
                    if self.waker is not None and target.pool in self.registry.asleep:
                        self.waker.ask(target.pool)
                    break
                tried.add(lease.replica)
                if self.judges:
                    yield target, lease
                else:
                    yield _behind_all(target), _Unjudged(lease)

    def _is_busy(self, pool: str, tried: Collection[str]) -> bool:
        """Nothing there was claimed for a copy, though a tenant's request would go to another replica."""
        return self._room_ratio is not None and any(
            one.state is ReplicaState.READY and one.replica not in tried
            for one in self.registry.snapshot(pool).replicas
        )

    def _claim(self, pool: str, tried: Collection[str] = (), key: Key | None = None) -> ReplicaLease | None:
        excluding = frozenset(tried)
        if self._room_ratio is None:
            return self.registry.lease(pool, excluding=excluding, key=key)
        return self.registry.lease_for_copy(pool, room_ratio=self._room_ratio, excluding=excluding, key=key)

    async def _first_content(self, running: _Running) -> AnswerStream:
        """The stream once it has begun; asked for a second time where hedging allows it."""
        hedging, target = self.hedging, running.attempt.target
        if hedging is None or target.is_external or not hedging.is_for(running.attempt.decision.terms):
            return await self._open(running.attempt, running.relay_of(target))
        hedging.allowance.began(running.started_s)
        began_s, delay_s = running.started_s, hedging.delay_s(target.pool)
        if delay_s is None:
            stream = await self._open(running.attempt, running.relay_of(target))
        else:
            stream = await self._race(running, hedging, delay_s)
        hedging.saw(target.pool, time.monotonic() - began_s)
        return stream

    async def _race(self, running: _Running, hedging: Hedging, delay_s: float) -> AnswerStream:
        """Ask another replica too if the first content takes longer than `delay_s`; who is first answers."""
        relay_of, target = running.relay_of, running.attempt.target
        tries: list[_Opening] = []
        rival: _Running | None = None
        winner: _Opening | None = None
        is_settled = False
        try:
            async with asyncio.TaskGroup() as group:
                opening = outcome_of(self._open(running.attempt, relay_of(target)))
                tries.append(group.create_task(opening))
                await asyncio.wait(tries, timeout=delay_s)
                if not tries[0].done():
                    rival = self._rival(running, hedging)
                if rival is not None:
                    opening = outcome_of(self._open(rival.attempt, relay_of(target)))
                    tries.append(group.create_task(opening))
                winner = await first_decisive(tries)
            is_settled = True
        finally:
            if rival is None:
                if not is_settled:
                    _close_begun(tries[0])
            elif (winner is not tries[0]) if is_settled else _has_failed(tries[0]):
                _end_loser(running, tries[0])
                running.go_on_as(rival)
                if not is_settled:  # the client leaves: it leaves the one that was still at work
                    _close_begun(tries[1])
            else:
                _end_loser(rival, tries[1])
                if not is_settled:
                    _close_begun(tries[0])
        outcome = (winner or tries[-1]).result()
        if isinstance(outcome, UpstreamError):
            raise outcome
        hedging.won += len(tries) > 1 and winner is tries[1]
        return outcome

    def _rival(self, running: _Running, hedging: Hedging) -> _Running | None:
        """Another attempt for the same stream at another replica of the pool, if there may be one."""
        first, now_s = running.attempt, time.monotonic()
        if len(running.tried) >= (first.decision.terms.attempts_max or self._attempts_max):
            return None
        lease = self.registry.lease(first.target.pool, excluding=frozenset(running.tried))
        if lease is None:
            return None
        observer = running.observer.fork()
        try:
            if not hedging.allowance.allows(now_s):
                lease.release()
                return None
            observer.started(first.target, lease.replica, running.attempts + 1)
        except GatewayError:  # it cannot be written down: then the first one has to do
            lease.release()
            return None
        running.attempts += 1
        running.tried.add(lease.replica)
        attempt = msgspec.structs.replace(first, lease=lease)
        return replace(running, attempt=attempt, observer=observer, started_s=now_s)

    async def _open(self, attempt: _Try, relay: StreamRelay) -> AnswerStream:
        started_s = time.monotonic()
        limit_s = self._timeouts.first_token_s
        if not attempt.target.is_external:
            answer = await self._post(attempt, Patience(limit_s, _FIRST))
            if answer.status != _OK:
                raise await _refusal_in(answer, attempt)
            return await self._begun(attempt, answer, relay, started_s=started_s)
        with StallGuard(limit_s, _FIRST):
            source = await self._abroad().open(attempt.call, attempt.decision, attempt.target)
            return await self._begun(attempt, source, relay, started_s=started_s)

    async def _begun(
        self, attempt: _Try, response: EventSource, relay: StreamRelay, *, started_s: float
    ) -> AnswerStream:
        """The stream that an answer is, with its first content."""
        stream = AnswerStream(
            target=attempt.target,
            lease=attempt.lease,
            response=response,
            relay=relay,
            started_s=started_s,
            timeouts=self._timeouts,
        )
        try:
            await stream.read_until_content()
        except UpstreamError as error:
            error.was_accepted = True
            response.close()
            raise
        except BaseException:  # the client may leave here too: the engine must stop in any case
            response.close()
            raise
        return stream

    async def _complete(self, attempt: _Try) -> Completion:
        limit_s = self._timeouts.total_s
        if attempt.target.is_external:
            with StallGuard(limit_s, _WHOLE):
                return await self._abroad().complete(attempt.call, attempt.decision, attempt.target)
        response = await self._post(attempt, Patience(limit_s, _WHOLE))
        if response.status != _OK:
            raise await _refusal_in(response, attempt)
        try:
            body = await response.read_all(limit_bytes=ANSWER_BYTES_MAX)
        except UpstreamError as error:
            error.was_accepted = True
            raise
        finally:
            response.close()
        return read_completion(body, alias=attempt.call.model_alias)

    def _post(self, attempt: _Try, patience: Patience) -> Awaitable[UpstreamResponse]:
        return self._client.post(
            self._origin(attempt.lease.url),
            _PATHS[attempt.call.endpoint],
            headers=REQUEST_HEADERS,
            body=request_body(attempt.call, attempt.decision, attempt.target, cache_salt=attempt.cache_salt),
            patience=patience,
        )

    def _abroad(self) -> Outside:
        if self._outside is None:
            raise RuntimeError(
                "a decision names an external target, and nothing that speaks to one is loaded"
            )
        return self._outside

    def _origin(self, url: str) -> Origin:
        origin = self._origins.get(url)
        if origin is None:
            origin = self._origins[url] = Origin.parse(url)
        return origin


def _behind_all(target: Target) -> Target:
    """The same, where nobody whose request waits in an engine's queue comes after."""
    return target if target.priority is None else msgspec.structs.replace(target, priority=COPY_PRIORITY)


@contextlib.contextmanager
def _released_on_failure(running: _Running) -> Iterator[None]:
    """Release the lease unless what is inside succeeds: then the stream owns it."""
    try:
        yield
    except BaseException:
        running.lease.release()
        raise


def _end_loser(loser: _Running, opening: _Opening) -> None:
    """End an attempt that another one was faster than, or that failed while the other one went on."""
    timing = timing_since(loser.started_s)
    error = _close_begun(opening)
    if error is None:
        loser.observer.lost(timing)
    else:
        loser.observer.failed(error, timing)
        count_failure(loser.lease, error)
    loser.lease.release()


def _has_failed(opening: _Opening) -> bool:
    is_over = opening.done() and not opening.cancelled() and opening.exception() is None
    return is_over and isinstance(opening.result(), UpstreamError)


def _close_begun(opening: _Opening) -> UpstreamError | None:
    """Close the stream of a try that came too late to be read; the error of one that failed instead."""
    if not opening.done() or opening.cancelled() or opening.exception() is not None:
        return None
    outcome = opening.result()
    if isinstance(outcome, UpstreamError):
        return outcome
    outcome.close()
    return None


async def _refusal_in(response: UpstreamResponse, attempt: _Try) -> UpstreamError:
    """What an answer that is not a good one says."""
    try:
        body = await response.read_all(limit_bytes=ERROR_BYTES_MAX)
    finally:
        response.close()
    return error_of(response.status, body, replica=attempt.lease.replica)


def _nobody_answered(failures: list[UpstreamError]) -> AllAttemptsFailed | NoEligibleTarget:
    if failures:
        return AllAttemptsFailed(tuple(failures))
    return NoEligibleTarget(
        "No replica is up at the moment. Try again in a few seconds.", removed_by_rules=False
    )
