"""How was a request decided, and how is that kept? SQL of the noun; flushes, never commits.

A receipt holds facts, candidates and reasons, never a word of a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Any, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import insert_ignoring_duplicates
from gateway.routing.split import Unit
from gateway.routing.tables import Receipt


class Forecast(msgspec.Struct, frozen=True, array_like=True):
    """What the call was thought to take and to cost us at a candidate; supply's cost, not the charge."""

    queue_us: int
    ttft_us: int
    """The queue included."""
    tpot_us: int
    total_us: int
    cost_usd_nanos: int
    read_us: int
    """The part of it that is the prompt's, engine time."""
    share_hundredths: int
    """Requests that the cost takes to share a step, times 100."""
    usd_nanos_per_hour: int
    """Of one replica."""


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A target that might have answered, in its order."""

    target: str
    bound_usd_nanos: int | None
    """The most that it could have charged; None: unpriced."""
    is_external: bool
    forecast: Forecast | None = None
    """None: nothing was predicted of it."""


class Dropped(msgspec.Struct, frozen=True, array_like=True):
    """A target that was taken out, and why."""

    target: str
    reason: str


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """What a replay needs of the request beside its decision: shapes and sizes, nothing that was written."""

    shows: int
    """What holds of it, as bits: `Shows`."""
    body_bytes: int
    prompts: int
    choices: int
    max_tokens: int | None
    """As the client said."""
    temperature: float | None
    latency_class: str
    slot: str | None
    """Half of the first half of its key in the answer cache, hex: equal for equal requests of a tenant."""
    ttl_s: int | None
    """How long the caller lets its answer be kept; None: as long as the policy does."""
    fixed_tags: tuple[str, ...] = ()
    """Names of the cost tags that the operator fixed."""


class Shows(IntFlag):
    """Of a request, in `Asked.shows`."""

    MEDIA = 1
    FULL_SAMPLING = 2
    SCHEMA = 4
    JSON_MODE = 8
    TOOLS = 16
    PREDICTION = 32
    MAY_LEAVE = 64
    """Its tenant's requests may be sent outside the company."""
    MAY_READ = 128
    MAY_KEEP = 256
    """The caller has nothing against an answer from the cache, and against keeping its own there."""
    CACHES = 512
    """Its tenant's answers may be kept at all."""


class ReceiptFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a decision."""

    task: str
    source: str
    confidence: float
    nature: str
    reason: str
    candidates: list[Candidate]
    drops: list[Dropped]
    policy: str
    baseline: tuple[str, str] | None
    """The policy's default target and the version of its price."""
    max_tokens: int
    rule: str | None = None
    """The policy's rule that decided; None: none is the call's."""
    branch: str | None = None
    """`canary` or `budget_low`; None: the rule's main part."""
    budget_low: str | None = None
    """What was done because a budget ran low."""
    why: str | None = None
    """What put the first candidate first, where something was predicted."""
    removed: list[str]
    """Fields and headers that tenants may not set."""
    asked: Asked | None = None
    """None: of a receipt that is older than this field."""
    unit: str | None = None
    """What it belonged to in a canary, hexadecimal; None: no canary was about it. A copy's: in its shadow."""
    split: int | None = None
    """The canary's number; a shadow's is below zero. None beside a unit: of older receipts."""
    not_copied: str | None = None
    """Why no copy of it was made, though a shadow was about it; None: for no reason of its tenant's."""


read_receipt_body = msgspec.json.Decoder(ReceiptFacts).decode
"""A receipt as it is kept."""
CLOCKS_MS = 3_600_000
"""An attempt starts soon after its request's id is made; generous, for it only narrows the search."""


_SEPARATOR = "\x1e"
_COLUMNS = ("request_id", "started_at_ms", "tenant_id", "body")
_INSERT_COLUMNS = (
    f"INSERT INTO receipts ({', '.join(_COLUMNS)}) SELECT * FROM unnest("  # noqa: S608 - names of columns
    "string_to_array($1, chr(30)), CAST(string_to_array($2, chr(30)) AS bigint[]),"
    " string_to_array($3, chr(30)), string_to_array($4, chr(30)))"
    " ON CONFLICT DO NOTHING"
)


async def insert_receipts(connection: Any, rows: list[dict[str, Any]]) -> None:
    """Write receipts down; the ledger calls it in the transaction that books their attempts.

    Args:
        connection: a session; or, on PostgreSQL, asyncpg's own connection.
        rows: their columns.
    """
    if isinstance(connection, AsyncSession):
        await insert_ignoring_duplicates(connection, Receipt, rows)
        return
    # A column is one parameter: several times as fast as a row at a time. As one text, because asyncpg takes
    # 2 µs for each element of an array; neither our ids nor JSON can hold the character between them.
    columns = [_SEPARATOR.join([str(row[name]) for row in rows]) for name in _COLUMNS]
    await connection.execute(_INSERT_COLUMNS, *columns)


def with_unit(receipt: bytes, unit: Unit) -> bytes:
    """An encoded receipt that says what the request belonged to in a canary."""
    return b'%b,"unit":"%016x","split":%d}' % (receipt.removesuffix(b"}"), unit.key, unit.split)


KEPT_INSIDE: Final = "internal_only"


def with_no_copy(receipt: bytes) -> bytes:
    """An encoded receipt that says that nothing of its tenant's may be copied."""
    return b'%b,"not_copied":"%b"}' % (receipt.removesuffix(b"}"), KEPT_INSIDE.encode())


class _Unit(msgspec.Struct, frozen=True):
    unit: str | None = None
    split: int | None = None


_decode_unit = msgspec.json.Decoder(_Unit).decode
_IDS_AT_ONCE = 500


async def units_of(
    session: AsyncSession, requests: Sequence[tuple[str, int]], *, split: int
) -> dict[str, str]:
    """What requests belonged to in a canary; those that it was not about are left out.

    Args:
        session: the caller's.
        requests: id and start of the first attempt, epoch ms.
        split: the canary's number, or a shadow's, below zero.
    """
    found: dict[str, str] = {}
    for start in range(0, len(requests), _IDS_AT_ONCE):
        some = requests[start : start + _IDS_AT_ONCE]
        instants = [at_ms for _, at_ms in some]
        rows = await session.execute(
            select(col(Receipt.request_id), col(Receipt.body)).where(
                col(Receipt.request_id).in_([request_id for request_id, _ in some]),
                col(Receipt.started_at_ms).between(min(instants), max(instants)),
            )
        )
        for request_id, body in rows:
            told = _decode_unit(body)
            if told.unit is not None and told.split in {split, None}:
                found[request_id] = told.unit
    return found


async def find_receipt(session: AsyncSession, request_id: str, tenant_id: str) -> ReceiptFacts | None:
    """How a tenant's request was decided; None where it has none of that id."""
    made_at_ms = made_at(request_id)
    if made_at_ms is None:
        return None
    found = await session.execute(
        select(col(Receipt.body)).where(
            col(Receipt.request_id) == request_id,
            col(Receipt.tenant_id) == tenant_id,
            col(Receipt.started_at_ms).between(made_at_ms - CLOCKS_MS, made_at_ms + CLOCKS_MS),
        )
    )
    body = found.scalar()
    return None if body is None else read_receipt_body(body)


def made_at(request_id: str) -> int | None:
    """When one of our ids was made, epoch ms; None: it is none of ours."""
    try:
        return int(request_id.removeprefix("req_")[:12], 16) if request_id.startswith("req_") else None
    except ValueError:
        return None
