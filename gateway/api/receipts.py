"""What was done with my request, and what did it cost? GET /v1/receipts/{request_id}.

For the tenant that made the request and nobody else. Readable within a second of the answer: the records have
to reach the database first.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.actual import actual_of
from gateway.api.edge_types import EdgeRequest
from gateway.api.streaming import PlainResponse, Response
from gateway.clock import instant_text
from gateway.errors import NotFound
from gateway.inference import Payer, TokenUsage
from gateway.ledger.store import attempts_of
from gateway.ledger.tables import Attempt
from gateway.money import usd_text
from gateway.pricing.rates import charge
from gateway.pricing.store import rates_of_version
from gateway.routing.receipts import CLOCKS_MS, Dropped, Forecast, ReceiptFacts, find_receipt, made_at

PATH = "/v1/receipts/{request_id}"
_METERS = ("input", "cached_input", "cache_write", "output", "reasoning")
_encode = msgspec.json.Encoder().encode


async def read_receipt(request: EdgeRequest) -> Response:
    """GET /v1/receipts/{request_id}."""
    request_id = request.path.rpartition("/")[2]
    tenant_id = request.caller.tenant_id
    made_at_ms = made_at(request_id)
    async with request.services.sessions() as session:
        attempts: list[Attempt] = []
        facts = None
        if made_at_ms is not None:
            between_ms = (made_at_ms - CLOCKS_MS, made_at_ms + CLOCKS_MS)
            attempts = await attempts_of(session, request_id, tenant_id=tenant_id, between_ms=between_ms)
            facts = await find_receipt(session, request_id, tenant_id)
        if not attempts:
            raise NotFound(
                f"There is no receipt {request_id[:64]!r}. A receipt can be read within a second after its"
                " answer, by the tenant that made the request; its id is the answer's x-request-id."
            )
        baseline = None
        if facts is not None and facts.baseline is not None:
            target, version = facts.baseline
            rates = await rates_of_version(session, version)
            usage = _tokens(attempts)
            if rates is not None:
                baseline = {"target": target, "price": version, "charge_usd": usd_text(charge(usage, rates))}
    headers = [(b"content-type", b"application/json"), (b"x-request-id", request.request_id.encode())]
    return PlainResponse(200, headers, _encode(receipt_view(attempts, facts, baseline)))


def receipt_view(
    attempts: list[Attempt], facts: ReceiptFacts | None, baseline: dict[str, str] | None
) -> dict[str, Any]:
    """A receipt as its tenant sees it; money as decimal strings of USD.

    Args:
        attempts: at least one, in their order.
        facts: how it was decided; None: older than receipts, or they were cleared away.
        baseline: what the policy's default target would have charged for the same tokens.
    """
    first, last = attempts[0], attempts[-1]
    paid = [each for each in attempts if each.payer == Payer.TENANT]
    usage = _tokens(attempts)
    is_unpriced = any(each.charge_usd_nanos is None for each in paid)
    return {
        "id": first.request_id,
        "object": "tollgate.receipt",
        "created_at": instant_text(first.started_at_ms),
        "ended_at": instant_text(last.ended_at_ms),
        "tenant": first.tenant_id,
        "project": first.project_id,
        "key": first.key_id,
        "client_request_id": first.client_request_id,
        "endpoint": first.endpoint,
        "model": first.model_alias,
        "stream": first.is_streaming,
        "service_tier": first.service_tier,
        "tags": first.tags,
        "cache": first.cache,
        "task": _task(first, facts),
        "decision": None if facts is None else _decision(facts),
        "attempts": [_attempt(each, facts) for each in attempts],
        "tokens": {meter: getattr(usage, meter) for meter in _METERS},
        "hold_usd": usd_text(first.hold_usd_nanos),
        "charge_usd": None if is_unpriced else usd_text(sum(each.charge_usd_nanos or 0 for each in paid)),
        "is_unpriced": is_unpriced,
        "baseline": baseline,
    }


def _tokens(attempts: list[Attempt]) -> TokenUsage:
    """What the tenant pays for."""
    paid = [each for each in attempts if each.payer == Payer.TENANT]
    return TokenUsage(*(sum(getattr(each, f"{meter}_tokens") for each in paid) for meter in _METERS))


def _task(first: Attempt, facts: ReceiptFacts | None) -> dict[str, Any]:
    confidence = None if facts is None else facts.confidence
    return {
        "type": first.task,
        "source": first.task_source,
        "confidence": confidence,
        "nature": first.nature,
    }


def _decision(facts: ReceiptFacts) -> dict[str, Any]:
    return {
        "reason": facts.reason,
        "decided_by": facts.why,
        "rule": facts.rule,
        "branch": facts.branch,
        "budget_low": facts.budget_low,
        "policy": facts.policy,
        "candidates": [
            {
                "target": each.target,
                "is_external": each.is_external,
                "charge_usd_at_most": None
                if each.bound_usd_nanos is None
                else usd_text(each.bound_usd_nanos),
                "predicted": None if each.forecast is None else _predicted(each.forecast),
            }
            for each in facts.candidates
        ],
        "drops": [{"target": each.target, "reason": each.reason} for each in _dropped(facts)],
        "max_tokens": facts.max_tokens,
        "removed_fields": facts.removed,
    }


def _dropped(facts: ReceiptFacts) -> list[Dropped]:
    if facts.not_copied is None:
        return facts.drops
    return [*facts.drops, Dropped("shadow", f"the tenant is {facts.not_copied}: no copy was made")]


def _predicted(forecast: Forecast) -> dict[str, Any]:
    """Times, and what the call was to cost the company; the tenant's charge is another thing."""
    return {
        "queue_ms": forecast.queue_us / 1000,
        "first_token_ms": forecast.ttft_us / 1000,
        "token_ms": forecast.tpot_us / 1000,
        "total_ms": forecast.total_us / 1000,
        "cost_usd": usd_text(forecast.cost_usd_nanos),
        "requests_per_step": forecast.share_hundredths / 100,
    }


def _actual(row: Attempt, forecast: Forecast) -> dict[str, Any]:
    """The same as measured."""
    found = actual_of(row, forecast)
    return {
        "queue_ms": found.queue_ms,
        "first_token_ms": found.first_token_ms,
        "token_ms": found.token_ms,
        "total_ms": found.total_ms,
        "cost_usd": None if found.cost_usd_nanos is None else usd_text(found.cost_usd_nanos),
    }


def _attempt(row: Attempt, facts: ReceiptFacts | None = None) -> dict[str, Any]:
    forecasts = {} if facts is None else {each.target: each.forecast for each in facts.candidates}
    forecast = forecasts.get(row.pool)
    charged = row.charge_usd_nanos
    drafted = row.draft_tokens
    return {
        "number": row.attempt_number,
        "target": row.pool,
        "replica": row.replica,
        "state": row.state,
        "payer": row.payer,
        "status_code": row.status_code,
        "error_code": row.error_code,
        "usage": row.usage_source,
        "tokens": {meter: getattr(row, f"{meter}_tokens") for meter in _METERS},
        "price": row.price_version,
        "charge_usd": None if charged is None else usd_text(charged),
        "timing_ms": {
            "queue": row.queue_ms,
            "first_token": row.ttft_ms,
            "generation": row.generation_ms,
            "total": row.total_ms,
        },
        "predicted": None if forecast is None else _predicted(forecast),
        "actual": None if forecast is None else _actual(row, forecast),
        "speculation": None
        if not drafted
        else {
            "steps": row.draft_steps,
            "drafted_tokens": drafted,
            "accepted_tokens": row.accepted_tokens,
            "acceptance": round((row.accepted_tokens or 0) / drafted, 4),
        },
    }
