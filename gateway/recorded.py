"""What is known of a request that was served, so that it can be asked about again?

From its attempts and its receipt, and from its key as that is now: names, tags and permissions are not kept
with a request. No text is kept either, so the task is the one that was found then. SQL is the stores'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import NotFound
from gateway.identity.auth import CLASS_UNASKED, Caller
from gateway.identity.key_store import KeyRecord, list_keys
from gateway.identity.tags import fixed_tags
from gateway.imagined import Given, call_of
from gateway.inference import Call, Endpoint, Task, TaskSource, TaskType
from gateway.ledger.records import OURS
from gateway.ledger.store import attempts_of_request
from gateway.ledger.tables import Attempt
from gateway.routing.receipts import CLOCKS_MS, ReceiptFacts, find_receipt, made_at


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request that was served."""

    call: Call
    task: Task
    caller: Caller
    at_ms: int
    went_to: tuple[str, ...]
    """Targets in the order in which they were tried."""
    policy: str
    """The version that decided."""


async def recorded(session: AsyncSession, request_id: str) -> Recorded:
    """What is known of a request, whoever made it.

    Raises:
        NotFound: there is no such request, or it is not booked yet.
    """
    made_at_ms = made_at(request_id)
    attempts: list[Attempt] = []
    if made_at_ms is not None:
        between_ms = (made_at_ms - CLOCKS_MS, made_at_ms + CLOCKS_MS)
        attempts = await attempts_of_request(session, request_id, between_ms=between_ms)
    if not attempts:
        raise NotFound(
            f"There is no receipt {request_id[:64]!r}. A receipt can be read within a second after its"
            " answer; its id is the answer's x-request-id (req_…)."
        )
    first = attempts[0]
    facts = await find_receipt(session, request_id, first.tenant_id)
    caller = caller_among(await list_keys(session), await _key_of(session, first))
    task = Task(
        type=TaskType(first.task),
        source=TaskSource(first.task_source),
        confidence=1.0 if facts is None else facts.confidence,
    )
    return Recorded(
        call=_call(attempts, facts, task),
        task=task,
        caller=caller,
        at_ms=first.started_at_ms,
        went_to=tuple(each.pool for each in attempts),
        policy=first.policy_version,
    )


async def _key_of(session: AsyncSession, attempt: Attempt) -> str:
    """Who asked; of a copy that judges a candidate, whoever sent the original."""
    made_at_ms = None if attempt.client_request_id is None else made_at(attempt.client_request_id)
    if attempt.tenant_id != OURS or made_at_ms is None or attempt.client_request_id is None:
        return attempt.key_id
    between_ms = (made_at_ms - CLOCKS_MS, made_at_ms + CLOCKS_MS)
    originals = await attempts_of_request(session, attempt.client_request_id, between_ms=between_ms)
    return originals[0].key_id if originals else attempt.key_id


def _call(attempts: list[Attempt], facts: ReceiptFacts | None, task: Task) -> Call:
    first = attempts[0]
    read = max(each.input_tokens + each.cached_input_tokens for each in attempts)
    call = call_of(
        Given(
            model=first.model_alias,
            task=task.type if task.source is TaskSource.DECLARED else None,
            input_tokens=read or None,
            max_tokens=None if facts is None else facts.max_tokens,
        )
    )
    return msgspec.structs.replace(
        call,
        endpoint=Endpoint(first.endpoint),
        is_streaming=first.is_streaming,
        service_tier=first.service_tier,
        tags=dict(first.tags),
    )


async def caller_of(session: AsyncSession, key_id: str) -> Caller:
    """Who calls with a key.

    Raises:
        NotFound: there is no such key.
    """
    return caller_among(await list_keys(session), key_id)


def caller_among(records: Iterable[KeyRecord], key_id: str) -> Caller:
    """The caller behind a key, without what only serving needs: salts, secrets and limits.

    Raises:
        NotFound: there is no such key.
    """
    by_id = {record.id: record for record in records}
    record = by_id.get(key_id)
    if record is None:
        raise NotFound(f"There is no API key {key_id[:64]!r}; `tollgate keys list` shows them.")
    lineage = [record.id]
    while (older := by_id[lineage[-1]].rotated_from) is not None and older in by_id:
        lineage.append(older)
    classes = record.allowed_classes
    return Caller(
        key_id=record.id,
        tenant_id=record.tenant_id,
        tenant_name=record.tenant_name,
        project_id=record.project_id,
        project_name=record.project_name,
        cache_salt="",
        end_user_secret=b"",
        is_internal_only=record.is_internal_only,
        caches_answers=record.caches_answers,
        class_unasked=CLASS_UNASKED if classes is None or CLASS_UNASKED in classes else classes[0],
        fixed_tags=fixed_tags(record.project_tags, record.tags),
        key_lineage=tuple(lineage),
    )
