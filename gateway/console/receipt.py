"""What happened to this request, and why? `/console/traffic/{request_id}`.

Everything that was kept of it and nothing that was written in it: where its time went, which targets were
candidates and what became of each, what was held and charged. The tenant reads the same under
`/v1/receipts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.actual import Actual, actual_of, first_token_ms
from gateway.console.pages import page
from gateway.dependencies import ActorDep, SessionDep
from gateway.errors import NotFound
from gateway.identity.store import tenant_names
from gateway.inference import Payer, TokenUsage
from gateway.ledger.store import attempts_of_request
from gateway.ledger.tables import Attempt
from gateway.pricing.rates import charge
from gateway.pricing.store import rates_of_version
from gateway.routing.economics import Why
from gateway.routing.receipts import CLOCKS_MS, Candidate, Forecast, ReceiptFacts, find_receipt, made_at

WIDTH = 1000
"""Of a waterfall, in its own units."""
METERS = ("input", "cached_input", "cache_write", "output", "reasoning")
_DECIDED_BY = {
    Why.POLICY: "the policy's order",
    Why.GATE: "more requests than speculation pays for, by measurement",
    Why.LATENCY: "the latency target, which the policy's first pool would have missed",
    Why.SPEED: "speed at the 95th percentile, by measurement",
    Why.COST: "cost, by measurement",
    Why.LOAD: "load: the policy's first pool had more to do",
    Why.EXPLORATION: "exploration: this request measured another pool",
}
_SOURCES = {
    "declared": "declared by the caller",
    "signal": "found by a signal in the request",
    "classifier": "found by the classifier",
    "default": "the policy's default: nothing said what it is",
}


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an attempt's time."""

    kind: str
    """waiting, queue, first or generation."""
    title: str
    ms: float
    x: float
    """From the left, of WIDTH."""
    width: float


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt, drawn."""

    row: Attempt
    spans: tuple[Span, ...]
    """Empty: nobody measured it."""
    forecast: Forecast | None
    actual: Actual | None


@dataclass(frozen=True, slots=True)
class Fate:
    """A target, and what became of it."""

    target: str
    candidate: Candidate | None
    """None: it was dropped before it could be one."""
    actual: Actual | None
    outcome: str
    """In words."""
    is_taken: bool


async def show_receipt(session: SessionDep, actor: ActorDep, request_id: str) -> Response:
    """One request.

    Raises:
        NotFound: there is none of that id.
    """
    attempts = await _attempts(session, request_id)
    first, last = attempts[0], attempts[-1]
    facts = await find_receipt(session, request_id, first.tenant_id)
    usage = _paid(attempts)
    baseline = None
    if facts is not None and facts.baseline is not None:
        rates = await rates_of_version(session, facts.baseline[1])
        baseline = (*facts.baseline, None if rates is None else charge(usage, rates))
    paid = [each for each in attempts if each.payer == Payer.TENANT]
    is_unpriced = any(each.charge_usd_nanos is None for each in paid)
    charged = None if is_unpriced else sum(each.charge_usd_nanos or 0 for each in paid)
    tried = waterfall(attempts, facts)
    return page(
        "receipt.html",
        section="traffic",
        actor=actor,
        first=first,
        last=last,
        facts=facts,
        tried=tried,
        fates=fates(tried, facts),
        whole_ms=_whole_ms(attempts),
        width=WIDTH,
        tenant=(await tenant_names(session)).get(first.tenant_id, first.tenant_id),
        task_how=_SOURCES.get(first.task_source, first.task_source),
        decided_by=None if facts is None or facts.why is None else _DECIDED_BY.get(Why(facts.why)),
        meters=[(name.replace("_", " "), f"{name}_tokens") for name in METERS],
        charged=charged,
        released=None if charged is None else first.hold_usd_nanos - charged,
        platform_nanos=sum(each.charge_usd_nanos or 0 for each in attempts if each.payer == Payer.PLATFORM),
        baseline=baseline,
    )


async def _attempts(session: AsyncSession, request_id: str) -> list[Attempt]:
    made_at_ms = made_at(request_id)
    found: list[Attempt] = []
    if made_at_ms is not None:
        between_ms = (made_at_ms - CLOCKS_MS, made_at_ms + CLOCKS_MS)
        found = await attempts_of_request(session, request_id, between_ms=between_ms)
    if not found:
        raise NotFound(
            f"There is no request {request_id[:64]!r}. It is here within a second of its end; its id is the"
            " answer's x-request-id."
        )
    return found


def _paid(attempts: Sequence[Attempt]) -> TokenUsage:
    paid = [each for each in attempts if each.payer == Payer.TENANT]
    return TokenUsage(*(sum(getattr(each, f"{meter}_tokens") for each in paid) for meter in METERS))


# ------------------------------------------------------------------------------------------ where time went
def waterfall(attempts: Sequence[Attempt], facts: ReceiptFacts | None) -> list[Tried]:
    """Each attempt with the parts of its time, all on one scale.

    Args:
        attempts: at least one, in their order.
        facts: how it was decided; None: not known any more.
    """
    whole_ms = max(1.0, _whole_ms(attempts))
    start_ms = attempts[0].started_at_ms
    forecasts = {} if facts is None else {each.target: each.forecast for each in facts.candidates}
    found = []
    for row in attempts:
        forecast = forecasts.get(row.pool)
        found.append(
            Tried(
                row,
                _spans(row, row.started_at_ms - start_ms, whole_ms),
                forecast,
                None if forecast is None else actual_of(row, forecast),
            )
        )
    return found


def _whole_ms(attempts: Sequence[Attempt]) -> float:
    start_ms = attempts[0].started_at_ms
    return max((row.started_at_ms - start_ms + _duration_ms(row) for row in attempts), default=0.0)


def _duration_ms(row: Attempt) -> float:
    return float(row.total_ms if row.total_ms is not None else max(0, row.ended_at_ms - row.started_at_ms))


def _spans(row: Attempt, offset_ms: float, whole_ms: float) -> tuple[Span, ...]:
    """Queue, first token and generation; one part where only the whole is known."""
    total_ms = _duration_ms(row)
    first_ms = first_token_ms(row)
    if first_ms is None:
        parts = [("waiting", "to the end", total_ms)]
    else:
        first_ms = min(first_ms, total_ms)
        queue_ms = min(row.queue_ms or 0.0, first_ms)
        parts = [
            ("queue", "engine's queue", queue_ms),
            ("first", "to the first token", first_ms - queue_ms),
            ("generation", "generation", total_ms - first_ms),
        ]
    spans, at_ms = [], offset_ms
    for kind, title, ms in parts:
        if ms > 0:
            spans.append(Span(kind, title, ms, at_ms / whole_ms * WIDTH, max(1.0, ms / whole_ms * WIDTH)))
        at_ms += ms
    return tuple(spans)


# --------------------------------------------------------------------------------- what became of each target
def fates(tried: Sequence[Tried], facts: ReceiptFacts | None) -> list[Fate]:
    """Each target that might have answered, in its order, then those that were taken out.

    Args:
        tried: the attempts.
        facts: how it was decided; None: not known any more.
    """
    if facts is None:
        return []
    found = []
    for place, candidate in enumerate(facts.candidates):
        mine = [each for each in tried if each.row.pool == candidate.target]
        if not mine:
            outcome = "not needed: one before it answered"
        else:
            outcome = "; then ".join(_told(each.row) for each in mine)
            if place == 0:
                outcome = f"first choice; {outcome}"
        actual = next((each.actual for each in reversed(mine) if each.actual is not None), None)
        is_taken = any(each.row.state == "answered" for each in mine)
        found.append(Fate(candidate.target, candidate, actual, outcome, is_taken))
    found += [
        Fate(each.target, None, None, f"dropped: {each.reason}", is_taken=False) for each in facts.drops
    ]
    return found


def _told(row: Attempt) -> str:
    if row.cache == "hit":
        return "answered from the cache, without a model"
    words = {"answered": "answered", "failed": "failed", "cancelled": "cut off: the caller left"}
    said = words.get(row.state, row.state)
    return f"{said} ({row.error_code})" if row.error_code and row.state != "answered" else said
