"""Rows of the ledger for tests that look at spend without making requests."""

from typing import Any


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
