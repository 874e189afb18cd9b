"""Which replica answers, and what if it does not?

Walks the decision's targets. A failed attempt moves on to another replica of the same pool, then to the
next pool, then to external targets where the decision has any, as long as nothing of the answer has reached
the client: for a stream, until its first content. Pools never use up every attempt: one is left for the
first external target. A request that an engine refuses (4xx) is not tried elsewhere. Every attempt is told
to an observer before it is sent and when it fails; the attempt that answers is ended by whoever owns the
answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import msgspec

from backends.registry import PoolRegistry
from gateway.errors import (
    AllAttemptsFailed,
    NoEligibleTarget,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamUnavailable,
)
from gateway.inference import AttemptTiming, Call, Completion, Endpoint, RouteDecision, Target
from gateway.settings import TimeoutSettings
from gateway.upstream import token_count
from gateway.upstream.client import Origin, UpstreamClient, UpstreamResponse
from gateway.upstream.outside import REPLICA, EventSource, Outside
from gateway.upstream.patience import Patience
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

_OK = 200
_WHOLE = "whole answer"
_FIRST = "first token"
_FURTHER = "further token"
_END = "end of the stream"
_PATHS = {endpoint: f"/v1/{endpoint}" for endpoint in Endpoint}
_END_S = 1.0
"""Between [DONE] and the end of the message nothing is left to compute."""


class AttemptObserver(Protocol):
    """Is told of every attempt; the pipeline writes it to the ledger."""

    def started(self, target: Target, replica: str, number: int) -> None:
        """An attempt is about to be sent."""

    def failed(self, error: UpstreamError, timing: AttemptTiming) -> None:
        """The attempt that started last failed."""


class Lease(Protocol):
    """A claim on whoever is tried: a replica's lease in the registry, or what stands for one outside."""

    @property
    def replica(self) -> str:
        """Its name."""

    @property
    def url(self) -> str:
        """Its base URL."""

    def succeeded(self) -> None:
        """It answered as it should."""

    def failed(self, detail: str, *, fatal: bool = False) -> None:
        """It was at fault."""

    def release(self) -> None:
        """The attempt is over."""


class _OutsideLease:
    """Nobody counts how an external target is doing: it is asked each time that it is needed."""

    replica = REPLICA
    url = ""

    def succeeded(self) -> None:
        """Not counted."""

    def failed(self, detail: str, *, fatal: bool = False) -> None:
        """Not counted: the attempt's row says it."""

    def release(self) -> None:
        """Nothing was claimed."""


_OUTSIDE = _OutsideLease()


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


class AnswerStream:
    """A stream whose first content is there; nobody else may take over from here."""

    __slots__ = (
        "_between_tokens_s",
        "_head",
        "_is_closed",
        "_lease",
        "_patience",
        "_pours",
        "_response",
        "_started_s",
        "_ttft_ms",
        "relay",
        "replica",
        "target",
    )

    def __init__(
        self,
        *,
        target: Target,
        lease: Lease,
        response: EventSource,
        relay: StreamRelay,
        started_s: float,
        between_tokens_s: float,
    ) -> None:
        self.target = target
        self.replica = lease.replica
        self.relay = relay
        self._lease = lease
        self._response = response
        self._started_s = started_s
        self._ttft_ms: int | None = None
        self._head = b""
        self._is_closed = False
        self._between_tokens_s = between_tokens_s
        self._pours = response if isinstance(response, UpstreamResponse) else None
        """The same, where its pieces can be handed on as they arrive."""
        self._patience: Patience | None = None

    @property
    def timing(self) -> AttemptTiming:
        """How long it took so far."""
        return AttemptTiming(ttft_ms=self._ttft_ms, total_ms=_ms_since(self._started_s))

    async def read_until_content(self) -> None:
        """Read up to the first content; what came before it is kept.

        Raises:
            UpstreamError: the engine failed first.
        """
        while not (self.relay.has_content or self.relay.is_done):
            chunk = await self._response.read()
            if not chunk:
                self.relay.end()
            self._head += self.relay.feed(chunk)
            if self.relay.failure is not None:  # nobody has seen anything of it yet
                raise self.relay.failure
        self._ttft_ms = _ms_since(self._started_s)

    async def read(self) -> bytes:
        """The next bytes for the client; nothing once the stream is complete.

        Raises:
            UpstreamError: the engine failed in the middle.
        """
        if self._head:
            head, self._head = self._head, b""
            return head
        if self._pours is None:  # others carry it: only the task that waits can be ended
            with StallGuard(self._between_tokens_s, _FURTHER):
                block = await self._next()
        else:
            self._expect(self._pours).renew()
            block = await self._next()
        if not block:
            await self._read_end()
        return block

    async def pour(self, write: Callable[[bytes], bool]) -> bool:
        """Have all further bytes for the client go to `write` as they arrive, without a wait for each.

        Returns true once the stream is complete; false when more is to come, and the caller calls again once
        the client has caught up: `write` said no to more for now.

        Raises:
            UpstreamError: the engine failed in the middle.
        """
        source = self._pours
        if source is None or self._head:
            block = await self.read()
            if block:
                write(block)
            return not block
        relay, patience = self.relay, self._expect(source)
        failed: list[UpstreamError] = []
        is_full = False

        def take(chunk: bytes) -> bool:
            nonlocal is_full
            patience.renew()
            try:
                block = relay.feed(chunk)
            except UpstreamError as error:
                failed.append(error)
                return True
            if block and not write(block):
                is_full = True
            return is_full or relay.is_done

        patience.renew()
        while not (relay.is_done or is_full):
            await source.pour(take)
            if failed:
                raise failed[0]
            if source.is_complete and not relay.is_done:
                relay.end()
        if not relay.is_done:
            return False
        await self._read_end()
        return True

    def _expect(self, source: UpstreamResponse) -> Patience:
        if self._patience is None:
            self._patience = Patience(self._between_tokens_s, _FURTHER, is_renewed=True)
            source.allow(self._patience)
        return self._patience

    async def _next(self) -> bytes:
        relay = self.relay
        while not relay.is_done:
            chunk = await self._response.read()
            if not chunk:
                relay.end()
            if block := relay.feed(chunk):
                return block
        return b""

    async def _read_end(self) -> None:
        """Read the end of the HTTP message behind [DONE], so that the connection can be used again."""
        # The answer is whole; what happens to its connection now only decides whether that is kept. The
        # guard is inside, so that its timeout is one of the errors that do not matter any more.
        source = self._pours
        if source is None:
            with contextlib.suppress(UpstreamError), StallGuard(_END_S, _END):
                while await self._response.read():
                    pass
        elif not source.is_complete:
            source.allow(Patience(_END_S, _END))
            with contextlib.suppress(UpstreamError):
                while await source.read():
                    pass

    def close(self, *, failure: UpstreamError | None = None) -> None:
        """Let go of the replica: the connection is reused if the answer was whole, and closed if not."""
        if self._is_closed:
            return
        self._is_closed = True
        self._response.close()
        if failure is not None:
            self._lease.failed(failure.operator_detail)
        elif self.relay.is_done:
            self._lease.succeeded()
        self._lease.release()


class Dispatcher:
    """Sends calls to replicas."""

    def __init__(
        self,
        registry: PoolRegistry,
        client: UpstreamClient,
        timeouts: TimeoutSettings,
        *,
        attempts_max: int,
        outside: Outside | None = None,
    ) -> None:
        self._registry = registry
        self._client = client
        self._timeouts = timeouts
        self._outside = outside
        self._attempts_max = attempts_max
        self._origins: dict[str, Origin] = {}

    async def send(
        self, call: Call, decision: RouteDecision, observer: AttemptObserver, *, cache_salt: str
    ) -> Answer:
        """A whole answer from the first target that gives one.

        Raises:
            UpstreamRejected: an engine refused the request itself.
            AllAttemptsFailed: nobody answered.
            NoEligibleTarget: no replica was left to try.
        """
        failures: list[UpstreamError] = []
        for target, lease in self._tries(decision):
            started_s = time.monotonic()
            try:
                observer.started(target, lease.replica, len(failures) + 1)
                completion = await self._complete(_Try(call, decision, target, lease, cache_salt))
            except UpstreamRejected as error:
                observer.failed(error, _timing(started_s))
                lease.succeeded()  # the replica is well, the request was not
                raise
            except UpstreamError as error:
                observer.failed(error, _timing(started_s))
                _count_failure(lease, error)
                failures.append(error)
            else:
                lease.succeeded()
                return Answer(target, lease.replica, completion, _timing(started_s))
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
        failures: list[UpstreamError] = []
        for target, lease in self._tries(decision):
            started_s = time.monotonic()
            relay = StreamRelay(
                upstream_model=target.upstream_model,
                alias=call.model_alias,
                wants_usage=call.wants_usage,
                cost_text=cost_text,
            )
            try:
                with _released_on_failure(lease):
                    observer.started(target, lease.replica, len(failures) + 1)
                    return await self._open(_Try(call, decision, target, lease, cache_salt), relay)
            except UpstreamRejected as error:
                observer.failed(error, _timing(started_s))
                lease.succeeded()  # the replica is well, the request was not
                raise
            except UpstreamError as error:
                observer.failed(error, _timing(started_s))
                _count_failure(lease, error)
                failures.append(error)
        raise _nobody_answered(failures)

    async def count_input(self, call: Call, decision: RouteDecision) -> int | None:
        """The request's input tokens as an engine counts them; None if that cannot be known."""
        body = token_count.question(call, decision)
        lease = None if body is None else self._registry.lease(decision.targets[0].pool)
        if body is None or lease is None:
            return None
        try:
            return await token_count.ask(self._client, self._origin(lease.url), body)
        finally:
            lease.release()

    def _tries(self, decision: RouteDecision) -> Iterator[tuple[Target, Lease]]:
        attempts_max = self._attempts_max
        # Pools must not use up every attempt: the overflow exists for when they fail.
        pools_max = max(1, attempts_max - 1) if decision.targets[-1].is_external else attempts_max
        tried: set[str] = set()
        count_outside = 0
        for target in decision.targets:
            if target.is_external:
                if not count_outside or len(tried) + count_outside < attempts_max:
                    count_outside += 1
                    yield target, _OUTSIDE
                continue
            while len(tried) < pools_max:
                lease = self._registry.lease(target.pool, excluding=frozenset(tried))
                if lease is None:
                    break
                tried.add(lease.replica)
                yield target, lease

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
            between_tokens_s=self._timeouts.between_tokens_s,
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


@contextlib.contextmanager
def _released_on_failure(lease: Lease) -> Iterator[None]:
    """Release the lease unless what is inside succeeds: then the stream owns it."""
    try:
        yield
    except BaseException:
        lease.release()
        raise


async def _refusal_in(response: UpstreamResponse, attempt: _Try) -> UpstreamError:
    """What an answer that is not a good one says."""
    try:
        body = await response.read_all(limit_bytes=ERROR_BYTES_MAX)
    finally:
        response.close()
    return error_of(response.status, body, replica=attempt.lease.replica)


def _count_failure(lease: Lease, error: UpstreamError) -> None:
    if isinstance(error, UpstreamOverloaded):
        return  # busy is not ill: ejecting it would only push its load onto the others
    is_gone = isinstance(error, UpstreamUnavailable) and error.upstream_status is None
    lease.failed(error.operator_detail, fatal=is_gone and isinstance(error.__cause__, ConnectionRefusedError))


def _nobody_answered(failures: list[UpstreamError]) -> AllAttemptsFailed | NoEligibleTarget:
    if failures:
        return AllAttemptsFailed(tuple(failures))
    return NoEligibleTarget(
        "No replica is up at the moment. Try again in a few seconds.", removed_by_rules=False
    )


def _ms_since(started_s: float) -> int:
    return round((time.monotonic() - started_s) * 1000)


def _timing(started_s: float) -> AttemptTiming:
    return AttemptTiming(None, _ms_since(started_s))
