"""What did an attempt really take, in the terms in which it was predicted?

Times are the engine's where it says them, the gateway's elsewhere. The cost is supply's by the measured
generation and the share of a step that was predicted: who really shared its steps nobody measures. Pure.
"""

from __future__ import annotations

import msgspec

from gateway.ledger.tables import Attempt
from gateway.routing.receipts import Forecast

_MS_PER_HOUR = 3_600_000


class Actual(msgspec.Struct, frozen=True):
    """As measured; None where nobody did."""

    queue_ms: float | None
    first_token_ms: float | None
    token_ms: float | None
    """Between two tokens."""
    total_ms: int | None
    cost_usd_nanos: int | None


def actual_of(row: Attempt, forecast: Forecast) -> Actual:
    """What an attempt took.

    Args:
        row: the attempt.
        forecast: what was predicted of its target.
    """
    generated, cost = row.output_tokens + row.reasoning_tokens, None
    ttft_ms = first_token_ms(row)
    if row.generation_ms is not None:
        shared_ms = row.generation_ms * 100 / max(1, forecast.share_hundredths)
        engine_ms = forecast.read_us / 1000 + shared_ms
        cost = round(forecast.usd_nanos_per_hour * engine_ms / _MS_PER_HOUR)
    has_pace = row.generation_ms is not None and generated > 1
    return Actual(
        row.queue_ms,
        ttft_ms,
        round((row.generation_ms or 0) / (generated - 1), 3) if has_pace else None,
        row.total_ms,
        cost,
    )


def first_token_ms(row: Attempt) -> float | None:
    """To the first token; of a whole answer to where its generation began."""
    if row.ttft_ms is None and row.generation_ms is not None and row.total_ms is not None:
        return max(0.0, row.total_ms - row.generation_ms)
    return row.ttft_ms
