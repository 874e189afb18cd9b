"""What does the /metrics text of a vLLM server say about its load?

Pure. The names are those of vLLM 0.32.0 (`v1/metrics/loggers.py`, `v1/spec_decode/metrics.py`); what older
versions called them stands beside them. Values are summed over the engines of one server (data parallel),
except the cache's fill level, of which the fullest engine counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from backends.pool import ReplicaLoad

SAMPLE_NAMES: dict[str, tuple[str, ...]] = {
    "requests_running": ("vllm:num_requests_running",),
    "requests_waiting": ("vllm:num_requests_waiting",),
    # "perc" is vLLM's word; the value is 0 to 1. Renamed in 0.10 (vLLM issue 24110).
    "kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "prompt_tokens_total": ("vllm:prompt_tokens_total",),
    "generation_tokens_total": ("vllm:generation_tokens_total",),
    # A histogram despite its name: one observation per step that put out tokens.
    "engine_steps_total": ("vllm:iteration_tokens_total_count",),
    # In tokens since V1; V0 counted blocks under the old name, and is not supported.
    "prefix_cache_query_tokens_total": (
        "vllm:prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries_total",
    ),
    "prefix_cache_hit_tokens_total": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    # Only there when the engine speculates.
    "draft_steps_total": ("vllm:spec_decode_num_drafts_total",),
    "draft_tokens_total": ("vllm:spec_decode_num_draft_tokens_total",),
    "accepted_tokens_total": ("vllm:spec_decode_num_accepted_tokens_total",),
}
"""Field of ReplicaLoad → sample names, the present one first."""

_FIELD_OF = {name: field for field, names in SAMPLE_NAMES.items() for name in names}
_ALL_NAMES = tuple(_FIELD_OF)
_REQUIRED = ("requests_running", "requests_waiting", "prompt_tokens_total", "generation_tokens_total")


class NotVllmMetrics(ValueError):
    """The text is not what a vLLM server exposes."""


def parse_metrics(text: str, *, scraped_at_s: float) -> ReplicaLoad:
    """Read one /metrics answer.

    Args:
        text: the body, in Prometheus' text format.
        scraped_at_s: time.monotonic() of the scrape.

    Raises:
        NotVllmMetrics: unreadable, or without the metrics that every vLLM has.
    """
    engines: dict[str, list[float]] = {}
    try:
        # Hundreds of lines are histograms of no interest; parsing them would hold up the event loop.
        ours = "\n".join(line for line in text.splitlines() if line.startswith(_ALL_NAMES)) + "\n"
        for family in text_string_to_metric_families(ours):
            for sample in family.samples:
                field = _FIELD_OF.get(sample.name)
                if field is not None and math.isfinite(sample.value):
                    engines.setdefault(field, []).append(sample.value)
    except (ValueError, KeyError, IndexError) as error:  # the parser has no exception of its own
        raise NotVllmMetrics(f"/metrics is not Prometheus text: {error}") from error
    missing = [SAMPLE_NAMES[field][0] for field in _REQUIRED if field not in engines]
    if missing:
        raise NotVllmMetrics(f"/metrics lacks {', '.join(missing)}: is this a vLLM server?")

    def total(field: str) -> int:
        return round(sum(engines.get(field, ())))

    def total_if_there(field: str) -> int | None:
        return total(field) if field in engines else None

    return ReplicaLoad(
        requests_running=total("requests_running"),
        requests_waiting=total("requests_waiting"),
        kv_cache_usage_ratio=_fullest(engines.get("kv_cache_usage_ratio", ())),
        prompt_tokens_total=total("prompt_tokens_total"),
        generation_tokens_total=total("generation_tokens_total"),
        prefix_cache_query_tokens_total=total("prefix_cache_query_tokens_total"),
        prefix_cache_hit_tokens_total=total("prefix_cache_hit_tokens_total"),
        draft_steps_total=total_if_there("draft_steps_total"),
        draft_tokens_total=total_if_there("draft_tokens_total"),
        accepted_tokens_total=total_if_there("accepted_tokens_total"),
        scraped_at_s=scraped_at_s,
        engine_steps_total=total_if_there("engine_steps_total"),
    )


def _fullest(ratios: Iterable[float]) -> float:
    return min(1.0, max(0.0, *ratios, 0.0))
