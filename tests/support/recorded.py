"""Recorded requests as the ledger books them: attempts and receipts, for tests that read history back."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.analysis.history import RecordedRequest
from gateway.inference import AttemptState, Payer, UsageSource
from gateway.ledger.posting import book
from gateway.ledger.records import NO_RECEIPT, AttemptEnd, AttemptStart, Ended
from gateway.routing.receipts import Candidate, Dropped, ReceiptFacts, insert_receipts

_encode = msgspec.json.Encoder().encode


async def book_requests(session: AsyncSession, requests: Sequence[RecordedRequest]) -> None:
    """Book them as the shipper does; the caller commits."""
    batch = [ended for request in requests for ended in ended_of(request)]
    await book(session, batch, owner_id="test", now_ms=1, insert_receipts=insert_receipts)


def ended_of(request: RecordedRequest) -> list[Ended]:
    """The records of a request's attempts."""
    return [
        Ended(_start(request, number), _end(request, number))
        for number in range(1, len(request.attempts) + 1)
    ]


def _id(request: RecordedRequest, number: int) -> str:
    return f"att_{request.request_id}_{number}"


def _start(request: RecordedRequest, number: int) -> AttemptStart:
    attempt = request.attempts[number - 1]
    return AttemptStart(
        attempt_id=_id(request, number),
        request_id=request.request_id,
        attempt_number=number,
        tenant_id=request.tenant_id,
        project_id=request.project_id,
        key_id=request.key_id,
        end_user=None,
        client_request_id=None,
        endpoint=request.endpoint,
        model_alias=request.model_alias,
        is_streaming=request.is_streaming,
        pool=attempt.pool,
        replica=attempt.replica,
        task=request.task.type.value,
        task_source=request.task.source.value,
        nature="predictable",
        policy_version=request.policy,
        price_version=attempt.price_version,
        service_tier=request.service_tier,
        tags=request.tags,
        hold_usd_nanos=0,
        estimated_input_tokens=0,
        estimated_charge_usd_nanos=0,
        started_at_ms=attempt.started_at_ms,
        cache=request.cache,
        receipt=msgspec.Raw(_receipt(request)) if number == 1 and request.policy else NO_RECEIPT,
    )


def _receipt(request: RecordedRequest) -> bytes:
    return _encode(
        ReceiptFacts(
            task=request.task.type.value,
            source=request.task.source.value,
            confidence=request.task.confidence,
            nature="predictable",
            reason="recorded",
            candidates=[Candidate(target, 1, is_external=False) for target in request.targets],
            drops=[Dropped(*drop) for drop in request.drops],
            policy=request.policy,
            baseline=None,
            max_tokens=request.asked.max_tokens or 256,
            why=request.why,
            removed=[],
            asked=request.asked,
        )
    )


def _end(request: RecordedRequest, number: int) -> AttemptEnd:
    attempt = request.attempts[number - 1]
    return AttemptEnd(
        attempt_id=_id(request, number),
        state=AttemptState(attempt.state),
        payer=Payer.TENANT if attempt.is_tenants else Payer.PLATFORM,
        usage_source=UsageSource.MEASURED,
        ended_at_ms=attempt.started_at_ms + int(attempt.total_ms or 0),
        input_tokens=attempt.usage.input,
        cached_input_tokens=attempt.usage.cached_input,
        cache_write_tokens=attempt.usage.cache_write,
        output_tokens=attempt.usage.output,
        reasoning_tokens=attempt.usage.reasoning,
        charge_usd_nanos=attempt.charge_usd_nanos,
        ttft_ms=attempt.ttft_ms,
        total_ms=None if attempt.total_ms is None else int(attempt.total_ms),
        queue_ms=attempt.queue_ms,
        generation_ms=attempt.generation_ms,
        draft_steps=attempt.draft_steps,
        accepted_tokens=attempt.accepted_tokens,
    )
