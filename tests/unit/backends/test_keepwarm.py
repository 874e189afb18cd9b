"""What is asked of a cold replica, and what comes of a server that refuses some of it?"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from backends.keepwarm import WarmUp, shapes_of, warm_up
from backends.probe import Problem
from backends.sleeping import put_to_sleep, wake
from backends.upkeep import Tokens
from tests.support.mock_fleet import mock_pool

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


class Server:
    """Answers as told."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.seen: list[tuple[str, dict[str, Any]]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        self.seen.append((str(request.url.copy_with(scheme="", host="")), body))
        kind = "chat" if "messages" in body else "schema" if "response_format" in body else "text"
        if self.answers.get("slow") == kind:
            await asyncio.sleep(30)
        status = self.answers.get(kind, 200)
        if status != 200:
            return httpx.Response(status, json={"error": "no"})
        if body.get("stream"):
            return httpx.Response(200, text=f"data: {json.dumps({'usage': USAGE})}\n\ndata: [DONE]\n\n")
        return httpx.Response(200, json={"usage": USAGE})


async def warmed(server: Server, *, limit_s: float = 20, **pool: Any) -> WarmUp | Problem:
    async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as client:  # noqa: TID251 - a test
        return await warm_up(client, "http://r", mock_pool(**pool), limit_s=limit_s, first_token_s=5)


async def test_every_shape_is_asked_and_counted() -> None:
    server = Server()
    done = await warmed(server)
    assert isinstance(done, WarmUp)
    assert [shot.shape for shot in done.shots] == [shape.name for shape in shapes_of(mock_pool())]
    assert not any(shot.problem for shot in done.shots)
    assert done.tokens == Tokens(input=6 * 13, cached_input=4 * 13, output=2 * 13)
    longest = max(len(body["prompt"]) for _, body in server.seen if "prompt" in body)
    assert longest == 512, "the batching limit"
    prompts = [json.dumps(body["prompt"]) for _, body in server.seen if isinstance(body.get("prompt"), list)]
    assert len(set(prompts)) == len(prompts), "none is found in the prefix cache"


async def test_a_batch_is_never_larger_than_the_engine_takes() -> None:
    small = {"max_num_seqs": 2, "max_num_batched_tokens": 8192}
    server = Server()
    await warmed(server, batching=small)
    assert max(len(body["prompt"]) for _, body in server.seen if "prompt" in body) == 1024 - 8
    assert max(shape.at_once for shape in shapes_of(mock_pool(batching=small))) == 2


async def test_what_a_server_refuses_needs_no_warming() -> None:
    done = await warmed(Server(chat=400, schema=501))
    assert isinstance(done, WarmUp)
    assert {shot.shape for shot in done.shots if shot.problem} == {"chat", "under a schema"}
    assert str(done).startswith("warm after")


async def test_a_server_that_generates_nothing_at_all_is_not_warm() -> None:
    done = await warmed(Server(text=500))
    assert isinstance(done, Problem)
    assert done.is_lie


async def test_the_time_is_bounded() -> None:
    done = await warmed(Server(slow="schema"), limit_s=0.2)
    assert isinstance(done, WarmUp)
    assert done.is_cut
    assert [shot.shape for shot in done.shots] == ["chat", "drawn", "several at once"]


class Sleeper:
    """Its development endpoints; `fails` is the path that answers 500."""

    def __init__(self, *, is_sleeping: bool, fails: str = "") -> None:
        self.is_sleeping = is_sleeping
        self.fails = fails
        self.seen: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request.url.raw_path.decode())
        if request.url.path == self.fails:
            return httpx.Response(500, text="out of memory")
        return httpx.Response(200, json={"is_sleeping": self.is_sleeping})


async def test_level_2_brings_the_weights_back_before_the_cache() -> None:
    server = Sleeper(is_sleeping=False)
    async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as client:  # noqa: TID251 - a test
        assert await wake(client, "http://r", 2, timeout_s=5) is None
        assert server.seen == [
            "/wake_up?tags=weights",
            "/collective_rpc",
            "/wake_up?tags=kv_cache",
            "/reset_prefix_cache",
            "/is_sleeping",
        ]
        server.seen.clear()
        assert await wake(client, "http://r", 1, timeout_s=5) is None
        assert server.seen == ["/wake_up", "/is_sleeping"]


async def test_what_the_server_says_counts_and_not_what_was_asked() -> None:
    transport = httpx.MockTransport(Sleeper(is_sleeping=False))
    async with httpx.AsyncClient(transport=transport) as client:  # noqa: TID251 - a test
        problem = await put_to_sleep(client, "http://r", 1)
    assert str(problem) == "/is_sleeping says False"
    transport = httpx.MockTransport(Sleeper(is_sleeping=True, fails="/collective_rpc"))
    async with httpx.AsyncClient(transport=transport) as client:  # noqa: TID251 - a test
        problem = await wake(client, "http://r", 2, timeout_s=5)
    assert str(problem) == "/collective_rpc: status 500: out of memory"
