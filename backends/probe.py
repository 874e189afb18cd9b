"""Does this replica serve, not only listen?

vLLM's /health reads a flag: a hung engine answers it (vLLM 0.32, `async_llm.py`), and so does a server whose
first request still compiles for a minute. One token generated through the whole engine is the proof. Each
function answers with a problem, or None when all is well; none raises for what a replica does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from backends.upkeep import Tokens, tokens_of

OnTokens = Callable[[Tokens], None]
"""Is told what a question used."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a replica does not serve."""

    text: str
    """For people."""
    is_certain: bool
    """It refused the connection or said so itself; not merely slow, which a busy server may be."""
    is_lie: bool = False
    """It answered, and not as an engine does that /health calls well: an error of its own, or nonsense."""

    def __str__(self) -> str:
        return self.text


async def health_problem(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    *,
    timeout_s: float,
) -> Problem | None:
    """GET /health; None if it said 200."""
    try:
        answer = await client.get(f"{url}/health", timeout=timeout_s)
    except httpx.HTTPError as error:
        return _transport_problem("/health", error)
    if answer.status_code == httpx.codes.OK:
        return None
    return Problem(f"/health: status {answer.status_code}", is_certain=True)


async def serving_problem(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    served_name: str,
    *,
    timeout_s: float,
    on_tokens: OnTokens | None = None,
) -> Problem | None:
    """Have one token generated; None if that worked.

    A server of a model that generates nothing (embeddings, scores) has no completions; it serves when it
    lists the model.
    """
    body = {"model": served_name, "prompt": "1", "max_tokens": 1, "temperature": 0}
    try:
        answer = await client.post(f"{url}/v1/completions", json=body, timeout=timeout_s)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return await _listing_problem(client, url, served_name, timeout_s=timeout_s)
        if answer.status_code != httpx.codes.OK:
            text = f"one-token completion: status {answer.status_code}: {answer.text[:200]}"
            is_lie = answer.is_server_error and answer.status_code != httpx.codes.SERVICE_UNAVAILABLE
            return Problem(text, is_certain=True, is_lie=is_lie)
        tokens = tokens_of(answer.json()["usage"])
    except httpx.HTTPError as error:
        return _transport_problem("one-token completion", error)
    except (ValueError, LookupError, TypeError, AttributeError):
        text = "one-token completion: the answer is not that of a completion"
        return Problem(text, is_certain=True, is_lie=True)
    if on_tokens is not None:
        on_tokens(tokens)
    return None


async def _listing_problem(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    served_name: str,
    *,
    timeout_s: float,
) -> Problem | None:
    listing: Any = (await client.get(f"{url}/v1/models", timeout=timeout_s)).json()
    names = [str(card["id"]) for card in listing["data"]]
    if served_name in names:
        return None
    return Problem(f"serves {', '.join(names) or 'no model'}, not '{served_name}'", is_certain=True)


def _transport_problem(what: str, error: httpx.HTTPError) -> Problem:
    text = f"{what}: {str(error) or type(error).__name__}"
    return Problem(text, is_certain=isinstance(error, httpx.ConnectError))
