"""What has the mock served, in the metric names and the exposition format of vLLM 0.32?

Same client library as vLLM, own registry. Counters count what was really served; gauges can be overridden
at run time, because a test of routing by load should not have to produce the load.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from tests.support.mock_vllm_requests import ServerProfile
from tests.support.mock_vllm_wire import Timing

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
CACHE_TOKENS: Final = 65536
"""Size of the pretended KV cache."""
_LABELS: Final = ("model_name", "engine")
_LATENCY: Final = (
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_TTFT: Final = (
    *(
        0.001,
        0.005,
        0.01,
        0.02,
        0.04,
        0.06,
        0.08,
        0.1,
        0.25,
        0.5,
        0.75,
        1,
        2.5,
        5,
        7.5,
        10,
        20,
        40,
        80,
        160,
        640,
    ),
    2560,
)
_ITL: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_STEP_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_GAUGES: Final = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}
_COUNTERS: Final = {
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prompt_tokens": "Number of prefill tokens processed.",
    "prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "generation_tokens": "Number of generation tokens processed.",
}
_SPECULATION: Final = {
    "spec_decode_num_drafts": "Number of spec decoding drafts.",
    "spec_decode_num_draft_tokens": "Number of draft tokens.",
    "spec_decode_num_accepted_tokens": "Number of accepted tokens.",
}
_HISTOGRAMS: Final[dict[str, tuple[str, Sequence[float]]]] = {
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _STEP_TOKENS),
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _TTFT),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _ITL),
    "request_time_per_output_token_seconds": (
        "Histogram of time_per_output_token_seconds per request.",
        _ITL,
    ),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _LATENCY),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _LATENCY),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _LATENCY),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _LATENCY),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _LATENCY),
}


class ServerMetrics:
    """The /metrics page."""

    def __init__(self, profile: ServerProfile) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._draft_tokens = profile.draft_tokens
        self._registry = CollectorRegistry()
        self._model = profile.models[0]
        self._overrides: dict[str, float] = {}
        self._running = 0
        self._live_tokens = 0
        registry = self._registry
        self._gauges = {
            name: Gauge(f"vllm:{name}", text, _LABELS, registry=registry).labels(self._model, "0")
            for name, text in _GAUGES.items()
        }
        names = _COUNTERS | (_SPECULATION if profile.draft_tokens else {})
        self._counters = {
            name: Counter(f"vllm:{name}", text, _LABELS, registry=registry).labels(self._model, "0")
            for name, text in names.items()
        }
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, _LABELS, registry=registry, buckets=buckets).labels(
                self._model, "0"
            )
            for name, (text, buckets) in _sized_histograms(profile.max_model_len).items()
        }
        success = self._labelled(
            "request_success", "Count of successfully processed requests.", "finished_reason"
        )
        reasons = ("stop", "length", "abort", "error", "repetition")
        self._finished = {reason: success.labels(self._model, "0", reason) for reason in reasons}
        rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused by a limit.",
            ("model_name", "reason"),
            registry=registry,
        )
        self._rejections = rejections.labels(self._model, "max_num_queued_reqs")
        self._per_position: list[Counter] = []
        if profile.draft_tokens:
            accepted = self._labelled(
                "spec_decode_num_accepted_tokens_per_pos", "Accepted tokens per draft position.", "position"
            )
            positions = range(profile.draft_tokens)
            self._per_position = [accepted.labels(self._model, "0", str(position)) for position in positions]
        self._cache_info(profile)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"vllm:{name}", text, (*_LABELS, label), registry=self._registry)

    def _cache_info(self, profile: ServerProfile) -> None:
        info = {
            "block_size": "16",
            "cache_dtype": "auto",
            "enable_prefix_caching": str(profile.has_prefix_cache),
            "engine": "0",
            "gpu_memory_utilization": "0.92",
            "kv_cache_size_tokens": str(CACHE_TOKENS),
            "num_gpu_blocks": str(CACHE_TOKENS // 16),
        }
        text = "Information of the LLMEngine CacheConfig"
        Gauge("vllm:cache_config_info", text, tuple(info), registry=self._registry).labels(
            *info.values()
        ).set(1)

    # --------------------------------------------------------------------------------------- recording
    def override(self, gauges: dict[str, float]) -> None:
        """Show these gauge values instead of the real ones; an empty mapping shows the real ones again.

        Raises:
            KeyError: a name that is no gauge (written without vllm:).
        """
        unknown = set(gauges) - set(_GAUGES)
        if unknown:
            raise KeyError(f"no such gauge: {', '.join(sorted(unknown))}; known: {', '.join(_GAUGES)}")
        self._overrides = dict(gauges)

    def started(self, tokens: int) -> None:
        """A request runs, holding this many tokens of cache."""
        self._running += 1
        self._live_tokens += tokens

    def ended(self, tokens: int) -> None:
        """It does no longer."""
        self._running -= 1
        self._live_tokens -= tokens

    def rejected(self) -> None:
        """A request was refused by the queue limit."""
        self._rejections.inc()

    def finished(self, reason: str) -> None:
        """A choice ended."""
        self._finished[reason].inc()

    def served_prompt(self, tokens: int, cached: int) -> None:
        """A prompt was processed."""
        for name, amount in (
            ("prompt_tokens", tokens),
            ("prefix_cache_queries", tokens),
            ("prefix_cache_hits", cached),
            ("prompt_tokens_cached", cached),
        ):
            self._counters[name].inc(amount)
        self._histograms["request_prompt_tokens"].observe(tokens)
        self._histograms["iteration_tokens_total"].observe(tokens - cached)

    def served_step(self, tokens: int, accepted: int | None) -> None:
        """An engine step put out tokens; `accepted` of them were drafts (None: no verify step)."""
        self._counters["generation_tokens"].inc(tokens)
        self._histograms["iteration_tokens_total"].observe(tokens)
        if accepted is None or not self._draft_tokens:
            return
        self._counters["spec_decode_num_drafts"].inc()
        self._counters["spec_decode_num_draft_tokens"].inc(self._draft_tokens)
        self._counters["spec_decode_num_accepted_tokens"].inc(accepted)
        for position in range(accepted):
            self._per_position[position].inc()

    def served_answer(self, timing: Timing, tokens: int, limit: int) -> None:
        """A request ended by itself."""
        whole_s = timing.ttft_s + timing.decode_s
        observed = {
            "time_to_first_token_seconds": timing.ttft_s,
            "e2e_request_latency_seconds": timing.queue_s + whole_s,
            "request_queue_time_seconds": timing.queue_s,
            "request_inference_time_seconds": whole_s,
            "request_prefill_time_seconds": timing.ttft_s,
            "request_decode_time_seconds": timing.decode_s,
            "request_generation_tokens": tokens,
            "request_params_max_tokens": limit,
        }
        if tokens > 1:
            observed["request_time_per_output_token_seconds"] = timing.decode_s / (tokens - 1)
            observed["inter_token_latency_seconds"] = timing.decode_s / (tokens - 1)
        for name, value in observed.items():
            self._histograms[name].observe(value)

    def page(self) -> bytes:
        """The exposition."""
        shown = {
            "num_requests_running": float(self._running),
            "num_requests_waiting": 0.0,
            "kv_cache_usage_perc": min(1.0, self._live_tokens / CACHE_TOKENS),
        } | self._overrides
        for name, value in shown.items():
            self._gauges[name].set(value)
        return generate_latest(self._registry)


def _sized_histograms(max_model_len: int) -> dict[str, tuple[str, Sequence[float]]]:
    """All histograms; those of token counts end at the context length."""
    sizes = [
        digit * 10**power for power in range(9) for digit in (1, 2, 5) if digit * 10**power <= max_model_len
    ]
    return _HISTOGRAMS | {
        "request_prompt_tokens": ("Number of prefill tokens processed.", sizes),
        "request_generation_tokens": ("Number of generation tokens processed.", sizes),
        "request_params_max_tokens": ("Histogram of the max_tokens request parameter.", sizes),
    }
