"""What was asked, how was it decided, and what did it take? Recorded requests, from the ledger and receipts.

No text: features, counts, times, money. Read in pages in the order of their first attempts, so that the
database holds no cursor and this process never more than a page of rows beside the requests themselves
(about a kilobyte each, which is why their number has a limit). What an operator's replay needs and older
receipts do not say (`Receipt.asked`) is filled in with what is usual, and counted.

Requests that were refused before any attempt left no record. Seconds are floats, instants epoch milliseconds.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.analysis.donors import Slot, rows_of_donors
from gateway.db import metadata
from gateway.errors import InvalidRequest
from gateway.inference import (
    AttemptState,
    Call,
    CallFacts,
    Endpoint,
    Payer,
    Task,
    TaskSource,
    TaskType,
    TokenUsage,
)
from gateway.ledger.tables import Attempt
from gateway.routing.receipts import Asked, ReceiptFacts, Shows, read_receipt_body
from gateway.routing.refusal_store import refusals_between
from gateway.routing.tables import PolicyVersion, Receipt

PAGE_ROWS: Final = 5_000
REQUESTS_MAX: Final = 500_000
"""Held at once; half a gigabyte."""
PLATFORM_TENANT: Final = "platform"
DOWN: Final = "no replica is up"
"""Why `decide` drops a pool that it would otherwise have taken."""
_STAYS_INSIDE: Final = "requests of this tenant stay inside the company"
_NO_PRICE: Final = "it has no price"
_OBSTACLE_FIELD: Final = "recorded_obstacle"
"""A field that no other model understands: stands in a call for whatever kept the recorded one inside."""
_COLUMNS: Final = (
    "attempt_id",
    "started_at_ms",
    "request_id",
    "attempt_number",
    "tenant_id",
    "project_id",
    "key_id",
    "endpoint",
    "model_alias",
    "is_streaming",
    "pool",
    "replica",
    "task",
    "task_source",
    "service_tier",
    "tags",
    "cache",
    "price_version",
    "state",
    "payer",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "charge_usd_nanos",
    "ttft_ms",
    "total_ms",
    "queue_ms",
    "generation_ms",
    "draft_steps",
    "accepted_tokens",
    "ended_at_ms",
)


class RecordedAttempt(msgspec.Struct, frozen=True):
    """One try at one target, as the ledger has it."""

    pool: str
    replica: str
    started_at_ms: int
    state: AttemptState
    is_tenants: bool
    """The tenant pays for it."""
    usage: TokenUsage
    charge_usd_nanos: int | None
    price_version: str
    ttft_ms: int | None
    total_ms: float | None
    queue_ms: float | None
    generation_ms: float | None
    draft_steps: int | None
    accepted_tokens: int | None

    @property
    def is_answer(self) -> bool:
        """It answered."""
        return self.state is AttemptState.ANSWERED

    @property
    def input_tokens(self) -> int:
        """All that was read, whatever it cost."""
        return self.usage.input + self.usage.cached_input + self.usage.cache_write

    @property
    def output_tokens(self) -> int:
        """All that was written."""
        return self.usage.output + self.usage.reasoning


class RecordedRequest(msgspec.Struct):
    """One request with its attempts."""

    request_id: str
    at_ms: int
    """When its first attempt started."""
    tenant_id: str
    project_id: str
    key_id: str
    endpoint: str
    model_alias: str
    is_streaming: bool
    task: Task
    service_tier: str | None
    tags: dict[str, str]
    cache: str
    asked: Asked
    policy: str
    """The version that decided; empty: no receipt says it."""
    targets: tuple[str, ...]
    """That it might have gone to, in their order."""
    drops: tuple[tuple[str, str], ...]
    why: str | None
    attempts: list[RecordedAttempt]

    @property
    def answer(self) -> RecordedAttempt | None:
        """The attempt that the client got an answer from; None: from the cache, or there was none."""
        if self.cache == "hit":
            return None
        return next((each for each in reversed(self.attempts) if each.is_answer), None)

    @property
    def charge_usd_nanos(self) -> int:
        """What its tenant paid."""
        return sum(each.charge_usd_nanos or 0 for each in self.attempts if each.is_tenants)

    def has(self, what: Shows) -> bool:
        """Whether this holds of it."""
        return bool(self.asked.shows & what)

    @property
    def latency_class(self) -> str:
        """Priority, default or flex."""
        return self.asked.latency_class

    @property
    def obstacle(self) -> str | None:
        """What kept it inside the company although its tenant's requests may leave; None: nothing known."""
        if not self.has(Shows.MAY_LEAVE):
            return None
        usual = {DOWN, _STAYS_INSIDE, _NO_PRICE}
        outside = [why for _, why in self.drops if why not in usual and "own engines" in why]
        return outside[0] if outside else None

    def call(self) -> Call:
        """The request as `decide` wants it; what it says is not kept, so it says nothing."""
        asked, shows = self.asked, self.asked.shows
        fields = {} if self.obstacle is None else {_OBSTACLE_FIELD: msgspec.Raw(b"1")}
        facts = CallFacts(
            has_schema=bool(shows & Shows.SCHEMA),
            has_json_mode=bool(shows & Shows.JSON_MODE),
            has_tools=bool(shows & Shows.TOOLS),
            has_prediction=bool(shows & Shows.PREDICTION),
            has_media=bool(shows & Shows.MEDIA),
            temperature=asked.temperature,
            needs_full_sampling=bool(shows & Shows.FULL_SAMPLING),
        )
        return Call(
            endpoint=Endpoint(self.endpoint),
            model_alias=self.model_alias,
            fields=fields,
            is_streaming=self.is_streaming,
            wants_usage=False,
            wants_continuous_usage=False,
            max_tokens=asked.max_tokens,
            choices=asked.choices,
            facts=facts,
            declared_task=self.task.type if self.task.source is TaskSource.DECLARED else None,
            tags=self.tags,
            end_user=None,
            service_tier=self.service_tier,
            affinity_key=self.request_id,  # nobody kept which conversation it is of
            dropped=(),
            client_request_id=None,
            body_bytes=asked.body_bytes,
            prompts=asked.prompts,
        )


@dataclass(slots=True)
class History:
    """The requests of a span of time, in its order."""

    from_ms: int
    to_ms: int
    requests: list[RecordedRequest] = field(default_factory=list)
    without_receipt: int = 0
    """Requests whose decision nothing tells: they are replayed by what their attempts say."""
    without_asked: int = 0
    """Requests whose receipt is older than what a replay needs; the usual is assumed."""
    platform_usd_nanos: int = 0
    """Charged to the platform's own account: failed attempts, hedges."""
    corrections_usd_nanos: int = 0
    """Reversals, and charges of later attempts of requests that began before the span."""
    donors: dict[Slot, RecordedAttempt] = field(default_factory=dict)
    """Who answered first, before the span, what is answered from the cache in it; as far as it was found."""
    refused: dict[str, int] = field(default_factory=dict)
    """Requests that were refused before any attempt in the hours that begin in the span, by code. They left
    no other trace, and are not replayed."""

    @property
    def charge_usd_nanos(self) -> int:
        """What tenants paid; with the corrections, what the ledger's report of the span says."""
        return sum(each.charge_usd_nanos for each in self.requests) + self.corrections_usd_nanos


async def count_attempts(session: AsyncSession, *, from_ms: int, to_ms: int) -> int:
    """How many attempts started in a span, for a progress bar."""
    started = col(Attempt.started_at_ms)
    found = await session.execute(
        select(func.count()).select_from(Attempt).where(started >= from_ms, started < to_ms)
    )
    return int(found.scalar_one())


async def policy_text(session: AsyncSession, version: str) -> str | None:
    """The YAML of a version that was in force once; None: there was none of that name."""
    found = await session.execute(
        select(col(PolicyVersion.text)).where(col(PolicyVersion.version) == version)
    )
    return found.scalar()


async def read_history(
    session: AsyncSession,
    *,
    from_ms: int,
    to_ms: int,
    on_rows: Callable[[int], None] | None = None,
    requests_max: int = REQUESTS_MAX,
) -> History:
    """The requests whose first attempt started in a span.

    Args:
        session: where they are.
        from_ms: first instant, epoch ms.
        to_ms: first instant that does not count.
        on_rows: told of each page's number of rows.
        requests_max: more are refused.

    Raises:
        InvalidRequest: there are more than that.
    """
    reader = _Reader(History(from_ms, to_ms))
    async for rows in _pages(session, from_ms=from_ms, to_ms=to_ms):
        for row in rows:
            reader.take(row)
        if len(reader.history.requests) > requests_max:
            raise InvalidRequest(
                f"There are more than {requests_max:,} requests from there to there: name a shorter span"
                " with --from and --to."
            )
        if on_rows is not None:
            on_rows(len(rows))
    history = reader.history
    older = await rows_of_donors(
        session, _hits_without_donor(history.requests), columns=_COLUMNS, before_ms=from_ms
    )
    history.donors = {slot: _attempt(row, is_tenants=True) for slot, row in older.items()}
    history.refused = await refusals_between(session, from_ms=from_ms, to_ms=to_ms)
    return history


def _hits_without_donor(requests: Sequence[RecordedRequest]) -> set[Slot]:
    """Slots that are answered from the cache before anybody in the span has answered them."""
    answered: set[Slot] = set()
    found: set[Slot] = set()
    for request in requests:
        if request.asked.slot is None:
            continue
        slot = (request.tenant_id, request.asked.slot)
        if request.answer is not None:
            answered.add(slot)
        elif request.cache == "hit" and slot not in answered:
            found.add(slot)
    return found


async def _pages(session: AsyncSession, *, from_ms: int, to_ms: int) -> AsyncIterator[list[Any]]:
    started, number = col(Attempt.started_at_ms), col(Attempt.attempt_id)
    after, table = (from_ms, ""), metadata.tables["attempts"]
    while True:
        statement = (
            select(*(table.c[name] for name in _COLUMNS), col(Receipt.body))
            .select_from(Attempt)
            .outerjoin(
                Receipt,
                (col(Receipt.request_id) == col(Attempt.request_id))
                & (col(Receipt.started_at_ms) == started)
                & (col(Attempt.attempt_number) == 1),
            )
            .where(started >= after[0], started < to_ms, tuple_(started, number) > after)
            .order_by(started, number)
            .limit(PAGE_ROWS)
        )
        rows = list(await session.execute(statement))
        if not rows:
            return
        yield rows
        after = (rows[-1].started_at_ms, rows[-1].attempt_id)


class _Reader:
    """Puts rows together to requests."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._open: dict[str, RecordedRequest] = {}
        """By id; those whose further attempts may still come."""
        self._tasks: dict[tuple[str, str, float], Task] = {}
        self._tuples: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def take(self, row: Any) -> None:
        """One attempt, in the order in which they started."""
        history = self.history
        if row.attempt_id.startswith("rev_"):
            if row.payer == Payer.TENANT:
                history.corrections_usd_nanos += row.charge_usd_nanos or 0
            return
        is_tenants = row.payer == Payer.TENANT
        if not is_tenants:
            history.platform_usd_nanos += row.charge_usd_nanos or 0
        if row.tenant_id == PLATFORM_TENANT:
            return  # warm-up and the like: nobody's request
        attempt = _attempt(row, is_tenants=is_tenants)
        request = self._open.get(row.request_id)
        if request is None:
            if row.attempt_number != 1:  # it began before the span
                history.corrections_usd_nanos += (row.charge_usd_nanos or 0) if is_tenants else 0
                return
            request = self._request(row)
            if len(self._open) >= 2 * PAGE_ROWS:
                self._open = dict(list(self._open.items())[PAGE_ROWS:])
            self._open[row.request_id] = request
            history.requests.append(request)
        request.attempts.append(attempt)

    def _request(self, row: Any) -> RecordedRequest:
        facts = None if row.body is None else read_receipt_body(row.body)
        if facts is None:
            self.history.without_receipt += 1
        asked = None if facts is None else facts.asked
        if asked is None:
            self.history.without_asked += 1
            asked = _usual(row)
        confidence = 1.0 if facts is None else facts.confidence
        targets, drops = ((), ()) if facts is None else self._decision(facts)
        return RecordedRequest(
            row.request_id,
            row.started_at_ms,
            sys.intern(row.tenant_id),
            sys.intern(row.project_id),
            sys.intern(row.key_id),
            sys.intern(row.endpoint),
            sys.intern(row.model_alias),
            row.is_streaming,
            self._task(row.task, row.task_source, confidence),
            row.service_tier,
            row.tags or {},
            sys.intern(row.cache),
            asked,
            "" if facts is None else sys.intern(facts.policy),
            targets,
            drops,
            None if facts is None else facts.why,
            [],
        )

    def _task(self, name: str, source: str, confidence: float) -> Task:
        key = (name, source, confidence)
        found = self._tasks.get(key)
        if found is None:
            found = self._tasks[key] = Task(TaskType(name), TaskSource(source), confidence)
        return found

    def _decision(self, facts: ReceiptFacts) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        targets = tuple(each.target for each in facts.candidates)
        drops = tuple((each.target, each.reason) for each in facts.drops)
        return self._tuples.setdefault(targets, targets), self._tuples.setdefault(drops, drops)


def _attempt(row: Any, *, is_tenants: bool) -> RecordedAttempt:
    return RecordedAttempt(
        sys.intern(row.pool),
        sys.intern(row.replica),
        row.started_at_ms,
        AttemptState(row.state),
        is_tenants,
        TokenUsage(
            row.input_tokens,
            row.cached_input_tokens,
            row.cache_write_tokens,
            row.output_tokens,
            row.reasoning_tokens,
        ),
        row.charge_usd_nanos,
        sys.intern(row.price_version),
        row.ttft_ms,
        row.total_ms if row.total_ms is not None else max(0, row.ended_at_ms - row.started_at_ms),
        row.queue_ms,
        row.generation_ms,
        row.draft_steps,
        row.accepted_tokens,
    )


def _usual(row: Any) -> Asked:
    """What is assumed of a request whose receipt does not say more."""
    tokens = row.input_tokens + row.cached_input_tokens + row.cache_write_tokens
    return Asked(
        shows=int(Shows.MAY_READ | Shows.MAY_KEEP),
        body_bytes=tokens * 4,
        prompts=1,
        choices=1,
        max_tokens=None,
        temperature=None,
        latency_class=row.service_tier if row.service_tier in {"priority", "flex"} else "default",
        slot=None,
        ttl_s=None,
    )


class Reach:
    """Which pools had a replica up, as far as decisions tell.

    A decision names each pool that it could have used: as a candidate, or as one without a replica. What is
    known last of a pool is taken to hold until another decision says otherwise; unheard of is up.
    """

    def __init__(self) -> None:
        self._down: set[str] = set()

    def after(self, request: RecordedRequest) -> frozenset[str]:
        """Take in what a request's decision tells; the pools that are down then."""
        for target in request.targets:
            self._down.discard(target)
        for target, why in request.drops:
            if why == DOWN:
                self._down.add(target)
        return frozenset(self._down) if self._down else _NOTHING


_NOTHING: Final[frozenset[str]] = frozenset()


def used(history: History) -> dict[tuple[str, TaskType], int]:
    """How many requests of each task each pool answered."""
    counts: defaultdict[tuple[str, TaskType], int] = defaultdict(int)
    for request in history.requests:
        answer = request.answer
        if answer is not None:
            counts[answer.pool, request.task.type] += 1
    return dict(counts)
