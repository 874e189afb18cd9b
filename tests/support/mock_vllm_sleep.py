"""How does the mock sleep, as vLLM 0.32 does it on a GPU?

After `entrypoints/serve/dev/sleep` and `v1/engine/core.py`: while it sleeps requests are accepted and wait
without a word; a wake by parts counts once both parts are back; after level 2 the weights are gone, and
without `reload_weights` what it says is garbage.
"""

import asyncio
import json
from typing import Any, Final
from urllib.parse import parse_qs

PATHS: Final = {"/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache"}
_PARTS: Final = frozenset({"weights", "kv_cache"})


class Sleep:
    """Whether it sleeps, and how."""

    def __init__(self, *, wake_s: float) -> None:
        """Awake.

        Args:
            wake_s: how long a wake takes.
        """
        self._wake_s = wake_s
        self._missing: set[str] = set()
        self._has_weights = True
        self._awake = asyncio.Event()
        self._awake.set()
        self.level = 0
        """0: awake."""
        self.sleeps = 0
        self.wakes = 0
        """Finished ones."""
        self.waking = 0
        """Wakes under way."""
        self.waking_most = 0
        """The most of these at once."""

    async def until_awake(self) -> bool:
        """Wait; whether the weights are there."""
        await self._awake.wait()
        return self._has_weights

    async def answer(self, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """What one of PATHS answers."""
        path, _, query = target.partition("?")
        asked = parse_qs(query)
        if path == "/is_sleeping":
            return 200, {"is_sleeping": bool(self._missing)}
        if path == "/sleep":
            return self._fall_asleep(int(asked.get("level", ["1"])[0]))
        if path == "/wake_up":
            return await self._wake(set(asked.get("tags", _PARTS)))
        if path == "/collective_rpc" and json.loads(body).get("method") == "reload_weights":
            if "weights" in self._missing:
                return 500, {"error": "the weights' memory is not mapped"}
            self._has_weights = True
        return 200, {}

    def _fall_asleep(self, level: int) -> tuple[int, dict[str, Any]]:
        self.level, self._missing = level, set(_PARTS)
        self.sleeps += 1
        self._has_weights = level < 2
        self._awake.clear()
        return 200, {"status": "sleeping", "level": level}

    async def _wake(self, parts: set[str]) -> tuple[int, dict[str, Any]]:
        self.waking += 1
        self.waking_most = max(self.waking_most, self.waking)
        await asyncio.sleep(self._wake_s * len(parts & self._missing) / len(_PARTS))
        self.waking -= 1
        was_asleep, self._missing = bool(self._missing), self._missing - parts
        if was_asleep and not self._missing:
            self.level = 0
            self.wakes += 1
            self._awake.set()
        return 200, {"status": "sleeping" if self._missing else "awake", "tags": sorted(parts)}
