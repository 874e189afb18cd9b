"""What has the mock served, in the metric names and the exposition format of vLLM 0.32?

Counters count what was really served; gauges can be overridden at run time, because a test of routing by
load should not have to produce the load. Written by hand instead of with the client library, whose locks
and label look-ups would be most of what a request costs here.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tests.support.mock_vllm_requests import ServerProfile
from tests.support.mock_vllm_wire import Timing

CONTENT_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"
CACHE_TOKENS: Final = 65536
"""Size of the pretended KV cache."""
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
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
    *(640, 2560),
)
_ITL: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_STEP_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_PARAMS_N: Final = (1, 2, 5, 10, 20)
_PREEMPTIONS: Final = (1, 2, 3, 4, 5, 10, 20)
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
    "prompt_tokens_by_source": "Number of prompt tokens by source.",
    "prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "generation_tokens": "Number of generation tokens processed.",
    "request_success": "Count of successfully processed requests.",
    "admission_rejections": "Requests rejected by admission control.",
}
_SPECULATION: Final = {
    "spec_decode_num_drafts": "Number of spec decoding drafts.",
    "spec_decode_num_draft_tokens": "Number of draft tokens.",
    "spec_decode_num_accepted_tokens": "Number of accepted tokens.",
    "spec_decode_num_accepted_tokens_per_pos": "Accepted tokens per draft position.",
}
_HISTOGRAMS: Final[dict[str, tuple[str, Sequence[float]]]] = {
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _STEP_TOKENS),
    "request_params_n": ("Histogram of the n request parameter.", _PARAMS_N),
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
    "request_num_preemptions": ("Histogram of the number of times a request was preempted.", _PREEMPTIONS),
}
_SIZED_HISTOGRAMS: Final = {
    "request_prompt_tokens": "Number of prefill tokens processed.",
    "request_generation_tokens": "Number of generation tokens processed.",
    "request_params_max_tokens": "Histogram of the max_tokens request parameter.",
    "request_max_num_generation_tokens": "Histogram of maximum number of requested generation tokens.",
}
FINISHED_REASONS: Final = ("stop", "length", "abort", "error", "repetition")
_VARIANTS: Final = {
    "request_success": ("finished_reason", FINISHED_REASONS),
    "prompt_tokens_by_source": ("source", ("local_compute", "local_cache_hit", "external_kv_transfer")),
    "admission_rejections": ("reason", ("max_num_queued_reqs", "max_num_queued_tokens")),
}


class _Histogram:
    """Counts by bucket; made cumulative when shown."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class ServerMetrics:
    """The /metrics page."""

    def __init__(self, profile: ServerProfile) -> None:
        self._profile = profile
        self._draft_tokens = profile.draft_tokens
        self._overrides: dict[str, float] = {}
        self.sleep_level = 0
        self._running = 0
        self._live_tokens = 0
        self._totals: Counter[str] = Counter()
        """By name, or by name/variant."""
        self._accepted_at = [0] * profile.draft_tokens
        sizes = [digit * 10**power for power in range(9) for digit in (1, 2, 5)]
        sizes = [size for size in sizes if size <= profile.max_model_len]
        self._texts = {name: text for name, (text, _) in _HISTOGRAMS.items()} | _SIZED_HISTOGRAMS
        self._histograms = {name: _Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self._histograms |= {name: _Histogram(sizes) for name in _SIZED_HISTOGRAMS}

    # --------------------------------------------------------------------------------------- recording
    def override(self, gauges: dict[str, float]) -> None:
        """Show these gauge values instead of the real ones; an empty mapping shows the real ones again.

        Raises:
            KeyError: a name that is no gauge (written without vllm:).
        """
        unknown = set(gauges) - set(_GAUGES)
        if unknown:
            raise KeyError(f"no such gauge: {', '.join(sorted(unknown))}; known: {', '.join(_GAUGES)}")
        self._overrides = {name: float(value) for name, value in gauges.items()}

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
        self._totals["admission_rejections/max_num_queued_reqs"] += 1

    def finished(self, reason: str) -> None:
        """A choice ended, for one of FINISHED_REASONS."""
        self._totals[f"request_success/{reason}"] += 1

    def served_prompt(self, tokens: int, cached: int) -> None:
        """A prompt was processed."""
        totals = self._totals
        totals["prompt_tokens"] += tokens
        totals["prefix_cache_queries"] += tokens
        totals["prompt_tokens_by_source/local_compute"] += tokens - cached
        if cached:
            totals["prefix_cache_hits"] += cached
            totals["prompt_tokens_cached"] += cached
            totals["prompt_tokens_by_source/local_cache_hit"] += cached
        self._histograms["request_prompt_tokens"].observe(tokens)
        self._histograms["iteration_tokens_total"].observe(tokens - cached)

    def served_steps(self, tokens: int, accepted: int | None, times: int = 1) -> None:
        """Engine steps put out so many tokens each, `accepted` of them drafts (None: no verify step)."""
        totals = self._totals
        totals["generation_tokens"] += tokens * times
        self._histograms["iteration_tokens_total"].observe(tokens, times)
        if accepted is None:
            return
        totals["spec_decode_num_drafts"] += times
        totals["spec_decode_num_draft_tokens"] += self._draft_tokens * times
        totals["spec_decode_num_accepted_tokens"] += accepted * times
        for position in range(accepted):
            self._accepted_at[position] += times

    def served_answer(self, timing: Timing, *, tokens: int, limit: int, n: int) -> None:
        """A request ended by itself."""
        seen = self._histograms
        whole_s = timing.ttft_s + timing.decode_s
        seen["time_to_first_token_seconds"].observe(timing.ttft_s)
        seen["e2e_request_latency_seconds"].observe(timing.queue_s + whole_s)
        seen["request_queue_time_seconds"].observe(timing.queue_s)
        seen["request_inference_time_seconds"].observe(whole_s)
        seen["request_prefill_time_seconds"].observe(timing.ttft_s)
        seen["request_decode_time_seconds"].observe(timing.decode_s)
        seen["request_num_preemptions"].observe(0)
        seen["request_params_n"].observe(n)
        seen["request_generation_tokens"].observe(tokens)
        seen["request_max_num_generation_tokens"].observe(tokens)
        seen["request_params_max_tokens"].observe(limit)
        if tokens > 1:
            seen["request_time_per_output_token_seconds"].observe(timing.decode_s / (tokens - 1))
            seen["inter_token_latency_seconds"].observe(timing.decode_s / (tokens - 1), tokens - 1)

    # ----------------------------------------------------------------------------------------- showing
    def page(self) -> bytes:
        """The exposition."""
        return "\n".join(
            [*self._gauge_lines(), *self._counter_lines(), *self._histogram_lines(), ""]
        ).encode()

    def _gauge_lines(self) -> Iterator[str]:
        values = {
            "num_requests_running": float(self._running),
            "num_requests_waiting": 0.0,
            "kv_cache_usage_perc": min(1.0, self._live_tokens / CACHE_TOKENS),
        } | self._overrides
        for name, text in _GAUGES.items():
            yield from _heading(name, text, "gauge")
            yield self._sample(name, values[name])
        yield from _heading("engine_sleep_state", "Engine sleep state; awake = 0 means asleep.", "gauge")
        for level, state in enumerate(("awake", "weights_offloaded", "discard_all")):
            is_now = float(level == self.sleep_level)
            yield self._sample("engine_sleep_state", is_now, ("sleep_state", state))
        yield from _heading("cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
        info = {
            "block_size": "16",
            "cache_dtype": "auto",
            "enable_prefix_caching": str(self._profile.has_prefix_cache),
            "engine": "0",
            "gpu_memory_utilization": "0.92",
            "kv_cache_size_tokens": str(CACHE_TOKENS),
            "num_gpu_blocks": str(CACHE_TOKENS // 16),
        }
        yield f"vllm:cache_config_info{_labels(info)} 1.0"

    def _counter_lines(self) -> Iterator[str]:
        for name, text in (_COUNTERS | (_SPECULATION if self._draft_tokens else {})).items():
            yield from _heading(f"{name}_total", text, "counter")
            if name == "spec_decode_num_accepted_tokens_per_pos":
                for position, count in enumerate(self._accepted_at):
                    yield self._sample(f"{name}_total", count, ("position", str(position)))
                continue
            label, variants = _VARIANTS.get(name, ("", ()))
            for variant in variants:
                # The one metric of the front end instead of an engine.
                engine = None if name == "admission_rejections" else "0"
                value = self._totals[f"{name}/{variant}"]
                yield self._sample(f"{name}_total", value, (label, variant), engine=engine)
            if not variants:
                yield self._sample(f"{name}_total", self._totals[name])

    def _histogram_lines(self) -> Iterator[str]:
        for name, histogram in self._histograms.items():
            yield from _heading(name, self._texts[name], "histogram")
            total = 0
            for bound, count in zip([*map(float, histogram.bounds), None], histogram.counts, strict=True):
                total += count
                yield self._sample(f"{name}_bucket", total, ("le", "+Inf" if bound is None else str(bound)))
            yield self._sample(f"{name}_count", total)
            yield self._sample(f"{name}_sum", histogram.sum)

    def _sample(
        self, name: str, value: float, more: tuple[str, str] | None = None, *, engine: str | None = "0"
    ) -> str:
        labels = {"model_name": self._profile.models[0]}
        if engine is not None:
            labels["engine"] = engine
        if more is not None:
            labels[more[0]] = more[1]
        return f"vllm:{name}{_labels(labels)} {float(value)}"


def _heading(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"
