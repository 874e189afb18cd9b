"""Rows of the ledger for tests that look at spend without making requests."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.inference import AttemptState, Payer, TokenUsage, UsageSource
from gateway.ledger.posting import book
from gateway.ledger.records import AttemptEnd, AttemptStart, Ended
from gateway.pricing.rates import Rates, charge
from gateway.pricing.tables import PriceVersion
from gateway.routing.receipts import insert_receipts


def attempt_row(number: int, **values: Any) -> dict[str, Any]:
    """An answered attempt that its tenant pays for; `values` replace what matters to the test."""
    row: dict[str, Any] = {
        "attempt_id": f"att_{number}",
        "request_id": f"req_{number}",
        "attempt_number": 1,
        "tenant_id": "ten_1",
        "project_id": "prj_1",
        "key_id": "key1",
        "end_user": None,
        "client_request_id": None,
        "endpoint": "chat/completions",
        "model_alias": "auto",
        "is_streaming": False,
        "pool": "speculative",
        "replica": "speculative-0",
        "task": "extraction",
        "task_source": "signal",
        "nature": "predictable",
        "policy_version": "default@0",
        "price_version": "price@0",
        "service_tier": None,
        "tags": {},
        "hold_usd_nanos": 0,
        "state": "answered",
        "payer": "tenant",
        "usage_source": "measured",
        "input_tokens": 100,
        "cached_input_tokens": 0,
        "cache_write_tokens": 0,
        "output_tokens": 10,
        "reasoning_tokens": 0,
        "charge_usd_nanos": 1_000_000,
        "status_code": 200,
        "error_code": None,
        "ttft_ms": 10,
        "total_ms": 50,
        "queue_ms": None,
        "generation_ms": None,
        "draft_steps": None,
        "draft_tokens": None,
        "accepted_tokens": None,
        "started_at_ms": 0,
        "ended_at_ms": 50,
    }
    return row | values


RATES = Rates(input=1_234_567_890, cached_input=123_456_789, cache_write=0, output=4_938_271_560, reasoning=0)
"""Nano-USD for a million tokens of each kind."""


async def know_price(session: AsyncSession) -> None:
    """The price of `priced` is one that the ledger knows; the caller commits."""
    session.add(
        PriceVersion(version="price@0", target="speculative", first_seen_at_ms=1, **dataclasses.asdict(RATES))
    )
    await session.flush()


def priced(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the charge that its tokens come to, so that the auditor agrees."""
    usage = TokenUsage(**{name: row[f"{name}_tokens"] for name in TokenUsage.__struct_fields__})
    amount = charge(usage, RATES)
    return row | {"charge_usd_nanos": amount, "hold_usd_nanos": amount}


async def book_rows(session: AsyncSession, rows: Sequence[dict[str, Any]], *, now_ms: int = 1) -> None:
    """Book rows as the shipper does; the caller commits."""
    batch = [ended_of(row) for row in rows]
    await book(session, batch, owner_id="test", now_ms=now_ms, insert_receipts=insert_receipts)


def ended_of(row: dict[str, Any]) -> Ended:
    """The records that a row is made of."""
    start = {name: row[name] for name in AttemptStart.__struct_fields__ if name in row}
    end = {name: row[name] for name in AttemptEnd.__struct_fields__ if name in row}
    end["state"] = AttemptState(end["state"])
    end["payer"] = Payer(end["payer"])
    end["usage_source"] = UsageSource(end["usage_source"])
    return Ended(
        AttemptStart(**start, estimated_input_tokens=0, estimated_charge_usd_nanos=0), AttemptEnd(**end)
    )
