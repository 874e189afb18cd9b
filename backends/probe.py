"""Does this replica serve, not only listen?

vLLM's /health reads a flag: a hung engine answers it (vLLM 0.32, `async_llm.py`), and so does a server whose
first request still compiles for a minute. One token generated through the whole engine is the proof. Each
function answers with a reason for people, or None when all is well; none raises for what a replica does.
"""

from __future__ import annotations

from typing import Any

import httpx


async def health_problem(client: httpx.AsyncClient, url: str, *, timeout_s: float) -> str | None:  # noqa: TID251 - control plane
    """GET /health; None if it said 200."""
    try:
        answer = await client.get(f"{url}/health", timeout=timeout_s)
    except httpx.HTTPError as error:
        return f"/health: {_described(error)}"
    return None if answer.status_code == httpx.codes.OK else f"/health: status {answer.status_code}"


async def serving_problem(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    served_name: str,
    *,
    timeout_s: float,
) -> str | None:
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
            return f"one-token completion: status {answer.status_code}: {answer.text[:200]}"
        answer.json()["usage"]["completion_tokens"]
    except httpx.HTTPError as error:
        return f"one-token completion: {_described(error)}"
    except (ValueError, LookupError, TypeError):
        return "one-token completion: the answer is not that of a completion"
    return None


async def _listing_problem(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    served_name: str,
    *,
    timeout_s: float,
) -> str | None:
    listing: Any = (await client.get(f"{url}/v1/models", timeout=timeout_s)).json()
    names = [card["id"] for card in listing["data"]]
    return None if served_name in names else f"serves {', '.join(names)}, not '{served_name}'"


def _described(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
