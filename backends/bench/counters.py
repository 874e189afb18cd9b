"""What did the engine itself count during a load?

Totals of one server's process lifetime as /metrics shows them, and the difference of two readings. vLLM
publishes them shortly after an answer has left (it logs statistics once per step), so a reading waits until
nothing runs and nothing changes. Names as in vLLM 0.32.0 (`v1/metrics/loggers.py`,
`v1/spec_decode/metrics.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from backends.bench.load import BenchError

_TOTALS: Final = {
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:prefix_cache_hits_total": "cached_tokens",
    "vllm:num_preemptions_total": "preemptions",
    # A histogram despite its name: one observation per step that put out tokens.
    "vllm:iteration_tokens_total_count": "steps",
    "vllm:iteration_tokens_total_sum": "step_tokens",
    "vllm:spec_decode_num_drafts_total": "drafts",
    "vllm:spec_decode_num_draft_tokens_total": "draft_tokens",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted_tokens",
}
_PER_POSITION: Final = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
_CACHE: Final = "vllm:cache_config_info"
_BUSY: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_PREFIXES: Final = (*_TOTALS, _PER_POSITION, _CACHE, *_BUSY)
_SETTLE_TRIES: Final = 40
_SETTLE_PAUSE_S: Final = 0.05
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading, or the difference of two. Tokens, steps and drafts are counts."""

    values: dict[str, int]
    """By the short names above; 0 where the server has no such counter."""
    accepted_by_position: tuple[int, ...]
    """Drafts of which the token at this position was accepted; empty: no speculation."""
    requests: int = 0
    """Running or waiting at the reading."""
    kv_cache_tokens: int | None = None
    """Size of the key/value cache; None: the server does not say."""
    block_size: int | None = None

    def __sub__(self, earlier: Counters) -> Counters:
        known = earlier.accepted_by_position or (0,) * len(self.accepted_by_position)
        return Counters(
            {name: value - earlier.values.get(name, 0) for name, value in self.values.items()},
            tuple(now - then for now, then in zip(self.accepted_by_position, known, strict=True)),
            kv_cache_tokens=self.kv_cache_tokens,
            block_size=self.block_size,
        )

    def __add__(self, other: Counters) -> Counters:
        size = max(len(self.accepted_by_position), len(other.accepted_by_position))
        here, there = (
            one.accepted_by_position + (0,) * (size - len(one.accepted_by_position)) for one in (self, other)
        )
        names = self.values.keys() | other.values.keys()
        return Counters(
            {name: self.values.get(name, 0) + other.values.get(name, 0) for name in names},
            tuple(a + b for a, b in zip(here, there, strict=True)),
        )

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Share of drafts that reached each position; empty when nothing was drafted."""
        drafts = self.values.get("drafts", 0)
        return tuple(count / drafts for count in self.accepted_by_position) if drafts else ()

    @property
    def tokens_per_step(self) -> float | None:
        """Mean acceptance length, the bonus token included; None when nothing was drafted."""
        drafts = self.values.get("drafts", 0)
        return 1 + self.values["accepted_tokens"] / drafts if drafts else None


def parse_counters(text: str) -> Counters:
    """Read one /metrics answer; values are summed over the engines of a server.

    Raises:
        BenchError: it is not what a vLLM server exposes.
    """
    values = dict.fromkeys(_TOTALS.values(), 0)
    positions: dict[int, int] = {}
    requests, sizes = 0, {}
    seen = set()
    ours = "\n".join(line for line in text.splitlines() if line.startswith(_PREFIXES)) + "\n"
    try:
        for family in text_string_to_metric_families(ours):
            for sample in family.samples:
                seen.add(sample.name)
                if sample.name in _TOTALS:
                    values[_TOTALS[sample.name]] += round(sample.value)
                elif sample.name == _PER_POSITION:
                    position = int(sample.labels["position"])
                    positions[position] = positions.get(position, 0) + round(sample.value)
                elif sample.name in _BUSY:
                    requests += round(sample.value)
                elif sample.name == _CACHE:
                    sizes = sample.labels
        cache_tokens = _whole(sizes.get("kv_cache_size_tokens"))
        block_size = _whole(sizes.get("block_size"))
    except (ValueError, KeyError, IndexError) as error:  # the parser has no exception of its own
        raise BenchError(f"/metrics is not Prometheus text: {error}") from error
    missing = {"vllm:generation_tokens_total", "vllm:iteration_tokens_total_count"} - seen
    if missing:
        raise BenchError(
            f"/metrics lacks {', '.join(sorted(missing))}: a bench needs a vLLM server with statistics on "
            "(no --disable-log-stats)"
        )
    by_position = tuple(positions[position] for position in sorted(positions))
    return Counters(values, by_position, requests, cache_tokens, block_size)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


async def read_counters(url: str) -> Counters:
    """Read them once nothing runs and two readings agree.

    Raises:
        BenchError: unreachable, no vLLM, or somebody else keeps the server busy.
    """
    async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client:  # noqa: TID251 - as a scrape
        before: Counters | None = None
        for _ in range(_SETTLE_TRIES):
            try:
                answer = await client.get(f"{url}/metrics")
            except httpx.HTTPError as error:
                raise BenchError(f"{url}/metrics: {str(error) or type(error).__name__}") from error
            now = parse_counters(answer.text)
            if now == before and now.requests == 0:
                return now
            before = now
            await asyncio.sleep(_SETTLE_PAUSE_S)
    raise BenchError(
        f"{url} has requests that are not ours: a bench needs the server for itself (stop its traffic, or "
        "bench a replica of its own)"
    )
