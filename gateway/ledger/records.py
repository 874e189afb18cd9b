"""What does the ledger want to be told of an attempt?

Two records: one when an attempt starts, one when it ends. They are what the spool keeps (one JSON line
each) and together they are one row of `attempts`. Plain values, filled in by the pipeline; by position where
every request makes one, because 28 keywords take 1.5 µs and 28 positions 0.25.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from gateway.inference import AttemptState, Payer, UsageSource

NO_RECEIPT = msgspec.Raw(b"null")
OURS = "platform"
"""The tenant of attempts that are the platform's own: warm-ups, heartbeats, copies that judge a candidate."""


class AttemptStart(msgspec.Struct, frozen=True, tag="start"):
    """Who tries what, where, at which price; written before the request is sent."""

    attempt_id: str
    request_id: str
    attempt_number: int
    tenant_id: str
    project_id: str
    key_id: str
    end_user: str | None
    client_request_id: str | None
    endpoint: str
    model_alias: str
    is_streaming: bool
    pool: str
    replica: str
    task: str
    task_source: str
    nature: str
    policy_version: str
    price_version: str
    service_tier: str | None
    tags: dict[str, str]
    hold_usd_nanos: int
    estimated_input_tokens: int
    """What is booked if nothing is ever heard of the attempt again."""
    estimated_charge_usd_nanos: int | None
    started_at_ms: int
    cache: str = "bypass"
    """hit, miss or bypass; spools that were written before the cache existed do not say."""
    buckets: tuple[tuple[str, int], ...] = ()
    """Where the charge counts: budget ids and the first instants of their windows."""
    receipt: msgspec.Raw = NO_RECEIPT
    """How the request was decided, JSON; of its first attempt only."""
    modelled_ttft_ms: float | None = None
    modelled_step_ms: float | None = None
    """What the pool's model says without what was learned: measurements are compared with it."""


class AttemptEnd(msgspec.Struct, frozen=True, tag="end"):
    """How it ended, what it used, who pays."""

    attempt_id: str
    state: AttemptState
    payer: Payer
    usage_source: UsageSource
    ended_at_ms: int
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    charge_usd_nanos: int | None = 0
    """None: unpriced."""
    status_code: int | None = None
    error_code: str | None = None
    ttft_ms: int | None = None
    total_ms: int | None = None
    queue_ms: float | None = None
    generation_ms: float | None = None
    draft_steps: int | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None


Record = AttemptStart | AttemptEnd
_encode = msgspec.json.Encoder().encode
RECORD = (
    *(name if name != "tags" else "" for name in AttemptStart.__struct_fields__),
    *AttemptEnd.__struct_fields__,
    "journal_id",
    "tags",
)
"""What the values of `record_of` are; tags stand at the end instead of as a dictionary."""


class Ended(NamedTuple):
    """An attempt that is over: what one row of `attempts` is made of."""

    start: AttemptStart
    end: AttemptEnd


_NOT_KEPT = (
    "estimated_input_tokens",
    "estimated_charge_usd_nanos",
    "buckets",
    "receipt",
    "modelled_ttft_ms",
    "modelled_step_ms",
)
"""Of a start, no column of `attempts`."""


def row_of(ended: Ended, *, journal_id: str | None = None) -> dict[str, Any]:
    """The row of `attempts` that the two records make."""
    row: dict[str, Any] = msgspec.structs.asdict(ended.start)
    row.update(msgspec.structs.asdict(ended.end))
    for name in _NOT_KEPT:
        del row[name]
    for name in ("state", "payer", "usage_source"):
        row[name] = row[name].value
    row["journal_id"] = journal_id
    return row


def record_of(ended: Ended, *, journal_id: str) -> tuple[Any, ...]:
    """The same as values in the order of `RECORD`, tags as JSON text; several times as fast."""
    tags = _encode(ended.start.tags).decode()
    return (*msgspec.structs.astuple(ended.start), *msgspec.structs.astuple(ended.end), journal_id, tags)


def interrupted(start: AttemptStart, *, ended_at_ms: int) -> AttemptEnd:
    """The end of an attempt that a process started and did not live to end: its estimate, on the platform."""
    return AttemptEnd(
        attempt_id=start.attempt_id,
        state=AttemptState.INTERRUPTED,
        payer=Payer.PLATFORM,
        usage_source=UsageSource.ESTIMATED,
        input_tokens=start.estimated_input_tokens,
        charge_usd_nanos=start.estimated_charge_usd_nanos,
        error_code="gateway_died",
        ended_at_ms=ended_at_ms,
    )
