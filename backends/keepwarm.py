"""Is this replica warm: has it done what requests will ask of it?

What is slow is the first time: kernels compile, a chat template is read, a grammar's library loads, a draft
model runs. So before a replica counts as ready it answers real completions at the shapes that matter: a short
chat, as a stream; a prompt near the batching limit; a few at once; output under a schema; drawn at a
temperature, which takes another path through the sampler and through speculation. Every shape is asked once,
all of them in a bounded time. What a server refuses (no chat template, no grammars) it will refuse to clients
too: it needs no warming. Prompts are token ids, so that their length is known without a tokenizer, and begin
differently each time, so that the prefix cache answers none. Checked against vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from backends.pool import PoolSpec
from backends.probe import Problem, serving_problem
from backends.upkeep import Tokens, tokens_of

AT_ONCE_MAX = 8
OUTPUT_TOKENS = 8
_TOKEN_IDS = range(10, 200)
"""Ids that every vocabulary has."""
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of request."""

    name: str
    path: str
    body: dict[str, Any]
    at_once: int = 1


@dataclass(frozen=True, slots=True)
class Shot:
    """What came of one shape."""

    shape: str
    first_s: float
    """Until the first byte of the answer's body, of the slowest where several were asked at once."""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a warm-up did."""

    shots: tuple[Shot, ...]
    tokens: Tokens
    took_s: float
    is_cut: bool = False
    """The time was over before all shapes had been asked."""

    def __str__(self) -> str:
        """For people."""
        done = sum(1 for shot in self.shots if shot.problem is None)
        text = f"warm after {self.took_s:.1f} s: {done} kinds of requests, {self.tokens.total} tokens"
        return f"{text}, cut short" if self.is_cut else text


def shapes_of(spec: PoolSpec) -> Iterator[Shape]:
    """What to ask of a replica of this pool, the cheapest first."""
    name, batching = spec.model.served_name, spec.batching
    content = f"{secrets.token_hex(4)} Answer with one word."
    short = {"model": name, "max_tokens": OUTPUT_TOKENS, "temperature": 0}
    chat = {**short, "messages": [{"role": "user", "content": content}], "stream": True}
    yield Shape("chat", "/v1/chat/completions", {**chat, "stream_options": {"include_usage": True}})
    drawn = {**short, "prompt": _prompt(16), "temperature": 0.8, "top_p": 0.9, "ignore_eos": True}
    yield Shape("drawn", "/v1/completions", drawn)
    several = max(1, min(AT_ONCE_MAX, batching.max_num_seqs))
    yield Shape(
        "several at once", "/v1/completions", {**drawn, "prompt": _prompt(16), "temperature": 0}, several
    )
    schema = {"type": "json_schema", "json_schema": {"name": "warm", "schema": _SCHEMA}}
    yield Shape(
        "under a schema", "/v1/completions", {**short, "prompt": _prompt(16), "response_format": schema}
    )
    longest = min(batching.max_num_batched_tokens, spec.model.max_model_len - OUTPUT_TOKENS)
    if longest > 0:
        yield Shape("long prompt", "/v1/completions", {**short, "prompt": _prompt(longest), "max_tokens": 1})


async def warm_up(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    spec: PoolSpec,
    *,
    limit_s: float,
    first_token_s: float,
) -> WarmUp | Problem:
    """Ask a replica everything once.

    Args:
        client: what to ask with.
        url: the replica's base URL.
        spec: its pool.
        limit_s: for everything after the first token; what is not done then is left.
        first_token_s: for the first token, without which it is not serving at all.

    Returns:
        What was done, or why it serves nothing.
    """
    began_s = time.monotonic()
    used: list[Tokens] = []
    name = spec.model.served_name
    problem = await serving_problem(client, url, name, timeout_s=first_token_s, on_tokens=used.append)
    if problem is not None:
        return problem
    shots: list[Shot] = []
    is_cut = False
    if used:  # a server without completions, of embeddings for instance, has nothing to warm up
        try:
            async with asyncio.timeout(limit_s):
                for shape in shapes_of(spec):
                    shot = await _ask(client, url, shape, used=used)
                    shots.append(shot)
        except TimeoutError:
            is_cut = True
    took_s = time.monotonic() - began_s
    return WarmUp(tuple(shots), sum(used, Tokens()), took_s, is_cut)


async def _ask(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    shape: Shape,
    *,
    used: list[Tokens],
) -> Shot:
    more = range(1, shape.at_once)
    bodies = [
        shape.body,
        *({**shape.body, "prompt": _prompt(len(shape.body["prompt"]) + number)} for number in more),
    ]
    outcomes = await asyncio.gather(
        *(_answer(client, f"{url}{shape.path}", body, used=used) for body in bodies)
    )
    problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
    slowest_s = max((outcome for outcome in outcomes if isinstance(outcome, float)), default=0.0)
    return Shot(shape.name, slowest_s, problems[0] if problems else None)


async def _answer(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    body: dict[str, Any],
    *,
    used: list[Tokens],
) -> float | str:
    """Seconds until the answer began, or why there was none."""
    began_s = time.monotonic()
    first_s: float | None = None
    text = ""
    try:
        async with client.stream("POST", url, json=body, timeout=None) as answer:
            async for piece in answer.aiter_text():
                first_s = first_s if first_s is not None else time.monotonic() - began_s
                text += piece
            if answer.status_code != httpx.codes.OK:
                return f"status {answer.status_code}: {text[:200]}"
        tokens = _usage_in(text)
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    except (ValueError, LookupError, TypeError, AttributeError):
        return "the answer is not that of a completion"
    used.append(tokens)
    return first_s or 0.0


def _usage_in(text: str) -> Tokens:
    """Of a whole answer, or of the last event of a stream that has any."""
    if not text.startswith("data:"):
        return tokens_of(json.loads(text)["usage"])
    events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    usages = [found for event in events if event != "[DONE]" and (found := json.loads(event).get("usage"))]
    return tokens_of(usages[-1])


def _prompt(tokens: int) -> list[int]:
    """So many token ids, none of them like the last time."""
    return [_TOKEN_IDS[secrets.randbelow(len(_TOKEN_IDS))] for _ in range(tokens)]
