"""How does a test steer a gateway over HTTP, as an administrator would?"""

import asyncio
import time
from typing import Any

import httpx

from tests.integration.gateway.rig import CHAT, PATIENCE_S, Gateway, bearer
from tests.support.clock import MovableClock

ADMIN = "/admin/v1"
Answer = dict[str, Any]


class Desk:
    """An administrator of a gateway whose clock a test moves."""

    def __init__(self, gateway: Gateway, clock: MovableClock) -> None:
        self.gateway = gateway
        self.clock = clock

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = more.pop("headers", self.gateway.admin)
        return await self.gateway.client.request(method, ADMIN + path, headers=headers, **more)

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.ask("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Answer | None = None) -> Any:
        answer = await self.ask("POST", path, json=body)
        assert answer.status_code in {200, 201}, answer.text
        return answer.json()

    async def patch(self, path: str, body: Answer) -> Any:
        answer = await self.ask("PATCH", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, method: str, path: str, body: Answer | None = None) -> tuple[int, str, str]:
        """Status, wrong field and message of an error in our form."""
        answer = await self.ask(method, path, json=body)
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return answer.status_code, error["param"], error["message"]

    async def models(self, key: str) -> httpx.Response:
        return await self.gateway.client.get("/v1/models", headers=bearer(key))

    async def until(self, key: str, status: int) -> httpx.Response:
        """The gateway's answer to a key once it is this one; news takes a moment."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (answer := await self.models(key)).status_code != status:
            assert time.monotonic() < deadline_s, answer.text
            await asyncio.sleep(0.02)
        return answer

    async def until_admin(self, key: str, status: int) -> httpx.Response:
        """The control plane's answer to an administrator's key once it is this one."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (answer := await self.ask("GET", "/tenants", headers=bearer(key))).status_code != status:
            assert time.monotonic() < deadline_s, answer.text
            await asyncio.sleep(0.02)
        return answer

    async def until_named(self, key: str, aliases: list[str]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while [model["id"] for model in (await self.models(key)).json()["data"]] != aliases:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)

    async def chat(self, key: str, **fields: Any) -> httpx.Response:
        body = {"model": "auto", "messages": [{"role": "user", "content": "Hm"}], **fields}
        return await self.gateway.client.post(CHAT, json=body, headers=bearer(key))
