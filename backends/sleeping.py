"""How is a vLLM server put to sleep and woken?

By its development endpoints (vLLM 0.32, `entrypoints/serve/dev/sleep`), which exist only with
VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode, on CUDA, ROCm and XPU. Level 1 keeps the weights in the host's
memory; level 2 throws them away, and waking does not bring them back by itself: without `reload_weights` the
engine answers garbage (vLLM issues 29341, 54235), and what the prefix cache held belongs to other weights.
A request that reaches a sleeping server is accepted and never answered: who calls `put_to_sleep` must have
seen to it that none comes.
"""

from __future__ import annotations

from typing import Any

import httpx

from backends.probe import Problem

_SLEEP_TIMEOUT_S = 120.0
"""Level 1 copies the weights to the host's memory."""


async def put_to_sleep(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    level: int,
) -> Problem | None:
    """Let what runs end, then sleep; None once the server says that it does."""
    problem = await _post(client, f"{url}/sleep", params={"level": str(level), "mode": "wait"})
    if problem is not None:
        return problem
    return await _sleeps(client, url, is_wanted=True)


async def wake(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    level: int,
    *,
    timeout_s: float,
) -> Problem | None:
    """Bring everything back; None once the server says that it is awake."""
    steps: list[tuple[str, dict[str, Any]]] = [(f"{url}/wake_up", {})]
    if level > 1:
        steps = [
            (f"{url}/wake_up", {"params": {"tags": "weights"}}),
            (f"{url}/collective_rpc", {"json": {"method": "reload_weights"}}),
            (f"{url}/wake_up", {"params": {"tags": "kv_cache"}}),
            (f"{url}/reset_prefix_cache", {}),
        ]
    for address, how in steps:
        problem = await _post(client, address, timeout_s=timeout_s, **how)
        if problem is not None:
            return problem
    return await _sleeps(client, url, is_wanted=False)


async def _sleeps(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    url: str,
    *,
    is_wanted: bool,
) -> Problem | None:
    try:
        answer = await client.get(f"{url}/is_sleeping", timeout=_SLEEP_TIMEOUT_S)
        is_sleeping = answer.json()["is_sleeping"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        return Problem(f"/is_sleeping: {str(error) or type(error).__name__}", is_certain=True)
    if is_sleeping is is_wanted:
        return None
    return Problem(f"/is_sleeping says {is_sleeping}", is_certain=True)


async def _post(
    client: httpx.AsyncClient,  # noqa: TID251 - control plane
    address: str,
    *,
    timeout_s: float = _SLEEP_TIMEOUT_S,
    **how: Any,
) -> Problem | None:
    path = "/" + address.rpartition("/")[2]
    try:
        answer = await client.post(address, timeout=timeout_s, **how)
    except httpx.HTTPError as error:
        return Problem(f"{path}: {str(error) or type(error).__name__}", is_certain=False)
    if answer.status_code == httpx.codes.OK:
        return None
    return Problem(f"{path}: status {answer.status_code}: {answer.text[:200]}", is_certain=True)
