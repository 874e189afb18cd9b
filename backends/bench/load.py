"""What does a client see of a server under this load?

Sends chat completions, streamed, and notes when each began, when its first and last token came and how many
there were. Two ways to load: so many requests at any time (closed loop), or at given moments whatever is
still under way (open loop). Tokens are counted by the server (`usage`), never by chunks: with speculation one
chunk carries several. Times are of `time.perf_counter`, seconds.

The client shares the machine's cores with a server on the same machine; `LoadResult.client_cpu_s` says how
much of them it took.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from backends.bench.workload import Prompt

REQUEST_TIMEOUT_S: Final = 300.0
_ERROR_CHARS: Final = 300


class BenchError(RuntimeError):
    """The bench cannot go on; the text is for the operator and says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it."""

    prompt: Prompt
    start_s: float
    first_token_s: float
    end_s: float
    """Of the last token, not of the usage that follows it."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    draft_steps: int | None
    """Engine steps behind the first token; None: the server does not speculate."""

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.first_token_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None with a single token."""
        if self.output_tokens < 2:  # noqa: PLR2004 - one token has no other to be apart from
            return None
        return (self.end_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def step_s(self) -> float | None:
        """Mean time of an engine step while it was decoded; None where there was none."""
        steps = self.output_tokens - 1 if self.draft_steps is None else self.draft_steps
        return (self.end_s - self.first_token_s) / steps if steps > 0 else None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """All requests of one load, in the order in which they were sent."""

    samples: tuple[Sample, ...]
    duration_s: float
    """From the first request's start to the last one's end."""
    client_cpu_s: float
    """Processor time of this process meanwhile."""


class Client:
    """Sends requests to one server."""

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._model = model
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=4.0)
        # A company's HTTP proxy is not the way to a pool.
        self._client = httpx.AsyncClient(  # noqa: TID251 - measures a pool, serves nobody
            trust_env=False, limits=limits, timeout=REQUEST_TIMEOUT_S
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, prompt: Prompt) -> Sample:
        """One request, to its end.

        Raises:
            BenchError: the server refused it, cut it off or answered in another form.
        """
        start_s = time.perf_counter()
        first_s = last_s = 0.0
        final: dict[str, Any] = {}
        try:
            async with self._client.stream("POST", self._url, json=prompt.body(self._model)) as answer:
                if answer.status_code != httpx.codes.OK:
                    text = (await answer.aread()).decode(errors="replace")
                    raise BenchError(f"{self._url}: status {answer.status_code}: {text[:_ERROR_CHARS]}")
                async for line in answer.aiter_lines():
                    # The first chunk carries the role and no token; its finish_reason is null as others'.
                    if not line.startswith("data: {"):
                        continue
                    if '"choices":[]' in line:
                        final = json.loads(line[6:])
                    elif '"role":' not in line:
                        last_s = time.perf_counter()
                        first_s = first_s or last_s
                    if '"error":' in line:
                        raise BenchError(f"{self._url}: the stream failed: {line[6 : 6 + _ERROR_CHARS]}")
        except httpx.HTTPError as error:
            raise BenchError(f"{self._url}: {str(error) or type(error).__name__}") from error
        return _sample(prompt, final, start_s=start_s, first_s=first_s, last_s=last_s)


def _sample(
    prompt: Prompt, final: dict[str, Any], *, start_s: float, first_s: float, last_s: float
) -> Sample:
    try:
        usage = final["usage"]
        details = usage.get("prompt_tokens_details") or {}
        drafts = (final.get("metrics") or {}).get("speculative_decoding")
        return Sample(
            prompt,
            start_s,
            first_s,
            last_s,
            int(usage["prompt_tokens"]),
            int(details.get("cached_tokens") or 0),
            int(usage["completion_tokens"]),
            int(drafts["num_spec_steps"]) if drafts else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"the answer ended without usage as vLLM states it: {error!r}") from error


async def closed_loop(
    client: Client,
    prompts: Sequence[Prompt],
    *,
    concurrency: int,
    on_answer: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Send all prompts, `concurrency` of them at any time; a new one when one has ended.

    Raises:
        BenchError: one of them failed; the others are given up.
    """
    waiting = iter(enumerate(prompts))
    samples: dict[int, Sample] = {}

    async def one_after_the_other() -> None:
        for index, prompt in waiting:
            samples[index] = await client.send(prompt)
            on_answer()

    cpu_s = time.process_time()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(prompts))):
                group.create_task(one_after_the_other())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return _result(samples, cpu_s)


async def open_loop(
    client: Client,
    prompts: Sequence[Prompt],
    at_s: Sequence[float],
    *,
    on_answer: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Send each prompt at its moment, counted from now in seconds, whatever became of the others.

    Raises:
        BenchError: one of them failed; the others are given up.
    """
    begin_s = time.perf_counter()
    samples: dict[int, Sample] = {}

    async def at_its_moment(index: int, prompt: Prompt, moment_s: float) -> None:
        await asyncio.sleep(max(0.0, begin_s + moment_s - time.perf_counter()))
        samples[index] = await client.send(prompt)
        on_answer()

    cpu_s = time.process_time()
    try:
        async with asyncio.TaskGroup() as group:
            for index, (prompt, moment_s) in enumerate(zip(prompts, at_s, strict=True)):
                group.create_task(at_its_moment(index, prompt, moment_s))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return _result(samples, cpu_s)


def _result(samples: dict[int, Sample], cpu_s: float) -> LoadResult:
    ordered = tuple(samples[index] for index in sorted(samples))
    duration_s = max(one.end_s for one in ordered) - min(one.start_s for one in ordered)
    return LoadResult(ordered, duration_s, time.process_time() - cpu_s)
