"""How does the mock serve: routes, pacing, faults, and the books it keeps?"""

import asyncio
import json
import os
import time
import zlib
from collections import Counter, OrderedDict
from dataclasses import replace
from typing import Any, Final

from tests.support.mock_vllm_checks import Refused, error_body
from tests.support.mock_vllm_faults import FaultError, Faults, Hits, parse_fault
from tests.support.mock_vllm_http import VARY, Connection, Headers, Request, StreamReply, head
from tests.support.mock_vllm_metrics import CONTENT_TYPE, ServerMetrics
from tests.support.mock_vllm_requests import (
    Generation,
    Prompt,
    ServerProfile,
    count_tokens,
    parse_generation,
)
from tests.support.mock_vllm_sleep import PATHS as SLEEP_PATHS
from tests.support.mock_vllm_sleep import Sleep
from tests.support.mock_vllm_text import Manner, Script, script, script_of_text
from tests.support.mock_vllm_wire import DONE, Answer, Timing, compact, error_event, models_body

GENERATION_PATHS: Final = {"/v1/chat/completions", "/v1/completions"}
VERSION: Final = "0.32.0"
GARBAGE: Final = b"<html><body><h1>It works!</h1></body></html>\n"
GARBAGE_EVENT: Final = b'data: {"id":"chatcmpl-\n\n'
_EVENT_STREAM: Final = [
    ("content-type", "text/event-stream; charset=utf-8"),
    VARY,
    ("transfer-encoding", "chunked"),
]
_PREFIXES_MAX: Final = 8192
_BLOCK_TOKENS: Final = 16
_MID_STREAM_ERROR: Final = error_body("Internal server error", "InternalServerError", 500)
_BUSY: Final = error_body(
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance.",
    "Service Unavailable",
    503,
)
_STATUS_BODIES: Final = {
    400: error_body("The request is not valid.", "BadRequestError", 400),
    401: {"error": "Unauthorized"},
    429: error_body("Too Many Requests", "Too Many Requests", 429),
    500: error_body(
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "InternalServerError",
        500,
    ),
    503: _BUSY,
}
_TUNABLE: Final = {"ttft_ms", "tpot_ms", "step_ms", "answer_tokens", "acceptance", "queued_requests_max"}


class _Cut(Exception):
    """A fault ended the stream."""


class MockServer:
    """A vLLM server that only pretends."""

    def __init__(self, profile: ServerProfile, faults: Faults) -> None:
        self.profile = profile
        self.faults = faults
        self.metrics = ServerMetrics(profile)
        self.sleep = Sleep(wake_s=profile.wake_s or 0.0)
        self._connections: set[Connection] = set()
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._last: Request | None = None
        self._in_flight = 0
        self._created = _epoch_s()
        self._counts: Counter[str] = Counter()
        self._paths: Counter[str] = Counter()

    # ----------------------------------------------------------------------------------------- sockets
    def connection(self) -> Connection:
        """The protocol of a new connection on the serving port."""
        return Connection(
            self.serve,
            admit=self._admit,
            leave=self._connections.discard,
            keep_alive_s=self.profile.keep_alive_s,
        )

    def control_connection(self) -> Connection:
        """The same on the control port, where no fault applies."""
        return Connection(self._control_only, admit=lambda _: True, leave=lambda _: None, keep_alive_s=3600)

    def _admit(self, connection: Connection) -> bool:
        self._counts["connections"] += 1
        if self.faults.take("connection"):
            self._counts["connections_refused"] += 1
            return False
        self._connections.add(connection)
        return True

    # ------------------------------------------------------------------------------------------ routes
    async def serve(self, request: Request, connection: Connection) -> None:
        """Answer one request."""
        path = request.path
        if path.startswith("/_"):
            await self._control_only(request, connection)
            return
        self._paths[path] += 1
        if path in SLEEP_PATHS and self.profile.wake_s is not None:
            status, said = await self.sleep.answer(request.target, request.body)
            self.metrics.sleep_level = self.sleep.level
            connection.reply(status, compact(said).encode())
            return
        if path in GENERATION_PATHS and request.method == "POST":
            self._last = request
            await self._generate(request, connection)
            return
        if path.startswith("/v1/") and not self._is_authorized(request):
            connection.reply(401, compact({"error": "Unauthorized"}).encode())
            return
        if path in GENERATION_PATHS or (
            path in {"/health", "/version", "/metrics", "/v1/models"} and request.method != "GET"
        ):
            allowed = "POST" if path in GENERATION_PATHS else "GET"
            connection.reply(405, b'{"detail":"Method Not Allowed"}', more=[("allow", allowed)])
        elif path == "/health":
            connection.reply(503 if self.faults.take("health") else 200, b"")
        elif path == "/version":
            connection.reply(200, compact({"version": VERSION}).encode())
        elif path == "/metrics":
            connection.reply(200, self.metrics.page(), CONTENT_TYPE)
        elif path == "/tokenize" and request.method == "POST":
            count = count_tokens(request.body)
            limit = self.profile.max_model_len
            connection.reply(200, compact({"count": count, "max_model_len": limit}).encode())
        elif path == "/v1/models":
            connection.reply(200, compact(models_body(self.profile, self._created)).encode())
        else:
            connection.reply(404, b'{"detail":"Not Found"}')

    def _is_authorized(self, request: Request) -> bool:
        wanted = self.profile.api_key
        return wanted is None or request.header("authorization") == f"Bearer {wanted}"

    # ----------------------------------------------------------------------------------------- control
    async def _control_only(self, request: Request, connection: Connection) -> None:
        if request.path == "/_stats":
            status, answer = 200, self.stats()
        elif request.path == "/_control" and request.method == "POST":
            status, answer = self._control(request.body)
        else:
            status, answer = 404, {"error": "GET /_stats or POST /_control"}
        connection.reply(status, compact(answer).encode())

    def _control(self, raw: bytes) -> tuple[int, dict[str, Any]]:
        try:
            wanted = json.loads(raw or b"{}")
            unknown = set(wanted) - {"fault", "value", "times", "clear", "reset", "gauges"} - _TUNABLE
            if unknown:
                raise FaultError(f"unknown key: {', '.join(sorted(unknown))}")
            if wanted.get("clear"):
                self.faults.clear()
            if wanted.get("reset"):
                self._counts.clear()
                self._paths.clear()
                self._last = None
            if wanted.get("fault"):
                self.faults.switch(parse_fault(wanted["fault"], wanted.get("value"), wanted.get("times")))
            if "gauges" in wanted:
                self.metrics.override(wanted["gauges"])
            self.profile = replace(self.profile, **{name: wanted[name] for name in _TUNABLE & set(wanted)})
        except (ValueError, KeyError, TypeError) as error:
            return 400, {"error": str(error)}
        return 200, {"faults": self.faults.as_json()}

    def stats(self) -> dict[str, Any]:
        """What happened so far."""
        last = None
        if self._last is not None:
            try:
                body: Any = json.loads(self._last.body)
            except ValueError:
                body = self._last.body.decode("utf-8", errors="replace")
            last = {"path": self._last.path, "headers": dict(self._last.headers), "body": body}
        return {
            "requests": self._counts["requests"],
            "completed": self._counts["completed"],
            "aborted": self._counts["aborted"],
            "refused": self._counts["refused"],
            "in_flight": self._in_flight,
            "connections": self._counts["connections"],
            "connections_open": len(self._connections),
            "connections_refused": self._counts["connections_refused"],
            "prompt_tokens": self._counts["prompt_tokens"],
            "completion_tokens": self._counts["completion_tokens"],
            "paths": dict(self._paths),
            "sleeps": self.sleep.sleeps,
            "wakes": self.sleep.wakes,
            "wakes_at_once": self.sleep.waking_most,
            "faults": self.faults.as_json(),
            "last_request": last,
        }

    # -------------------------------------------------------------------------------------- generation
    async def _generate(self, request: Request, connection: Connection) -> None:
        self._counts["requests"] += 1
        self._in_flight += 1
        hits = self.faults.take("generation")
        try:
            if not await self.sleep.until_awake():
                hits = {**hits, "garbage": ()}
            if not await self._misbehaved(request, connection, hits):
                await self._answer(request, connection, hits)
        except asyncio.CancelledError:
            # The client closed before the end: what vLLM aborts in the engine.
            self._counts["aborted"] += 1
            self.metrics.finished("abort")
            raise
        finally:
            self._in_flight -= 1

    async def _misbehaved(self, request: Request, connection: Connection, hits: Hits) -> bool:
        """Faults that never look at the request."""
        if "hang" in hits:
            await asyncio.Event().wait()
        if "hold" in hits:
            await self.faults.cleared.wait()
        if "status" in hits:
            code = int(hits["status"][0])
            more: Headers = [("retry-after", f"{hits['status'][1]:g}")] if len(hits["status"]) > 1 else []
            body = _STATUS_BODIES.get(code) or error_body("Something is wrong.", "InternalServerError", code)
            self._refuse(connection, code, body, more)
        elif "error_string_body" in hits:
            self._refuse(connection, 401, {"error": "Unauthorized"})
        elif "garbage" in hits:
            is_stream = b'"stream":true' in request.body.replace(b" ", b"")
            kind = "text/event-stream; charset=utf-8" if is_stream else "application/json"
            connection.reply(200, GARBAGE_EVENT if hits["garbage"] else GARBAGE, kind)
        else:
            return False
        return True

    def _refuse(
        self, connection: Connection, status: int, body: dict[str, Any], more: Headers | None = None
    ) -> None:
        self._counts["refused"] += 1
        connection.reply(status, compact(body).encode(), more=more)

    async def _answer(self, request: Request, connection: Connection, hits: Hits) -> None:
        if not self._is_authorized(request):
            self._refuse(connection, 401, {"error": "Unauthorized"})
            return
        is_chat = request.path == "/v1/chat/completions"
        try:
            generation = parse_generation(
                request.body, request.header("content-type") or "", self.profile, is_chat=is_chat
            )
        except Refused as refusal:
            await self._send_refusal(connection, refusal)
            return
        limit = self.profile.queued_requests_max
        if limit is not None and self._in_flight - 1 + generation.n > limit:
            self.metrics.rejected()
            self._refuse(connection, 503, _BUSY)
            return
        answer = self._compose(generation, request.header("x-request-id"))
        tokens = answer.prompt_tokens + answer.completion_tokens
        self.metrics.started(tokens)
        try:
            run = _Run(self, connection, answer, hits)
            await (run.stream() if generation.is_streaming else run.plain())
        finally:
            self.metrics.ended(tokens)

    async def _send_refusal(self, connection: Connection, refusal: Refused) -> None:
        if not refusal.is_in_stream:
            self._refuse(connection, refusal.status, refusal.body)
            return
        self._counts["refused"] += 1
        connection.write(head(200, _EVENT_STREAM))
        out = StreamReply(connection)
        await out.send(error_event(refusal.body))
        await out.send(DONE)
        await out.end()

    def _compose(self, generation: Generation, request_id: str | None) -> Answer:
        """Decide what is said."""
        prefix = "chatcmpl" if generation.is_chat else "cmpl"
        cached = [self._cached_tokens(prompt) for prompt in generation.prompts]
        for prompt, hit in zip(generation.prompts, cached, strict=True):
            self.metrics.served_prompt(prompt.tokens, hit)
            self._counts["prompt_tokens"] += prompt.tokens
        scripts = tuple(
            self._script(generation, zlib.crc32(b"%d" % index, prompt.seed) if index else prompt.seed)
            for prompt in generation.prompts
            for index in range(generation.n)
        )
        return Answer(
            generation,
            self.profile,
            f"{prefix}-{request_id or os.urandom(8).hex()}",
            _epoch_s(),
            scripts,
            cached[-1],
        )

    def _script(self, generation: Generation, seed: int) -> Script:
        manner = Manner(self.profile.draft_tokens, self.profile.acceptance, generation.stops)
        limit = generation.limit_tokens
        if generation.fixed_text is not None:
            return script_of_text(generation.fixed_text, limit, seed, manner)
        tokens = min(limit, max(self.profile.answer_tokens, generation.least_tokens))
        return script(seed, tokens, manner)

    def _cached_tokens(self, prompt: Prompt) -> int:
        """Whole blocks of a prompt seen before; the last token is always computed."""
        if not self.profile.has_prefix_cache:
            return 0
        is_known = prompt.seed in self._prefixes
        self._prefixes[prompt.seed] = None
        self._prefixes.move_to_end(prompt.seed)
        if len(self._prefixes) > _PREFIXES_MAX:
            self._prefixes.popitem(last=False)
        return (prompt.tokens - 1) // _BLOCK_TOKENS * _BLOCK_TOKENS if is_known else 0

    # --------------------------------------------------------------------------------------- the books
    def said(self, tokens: int, accepted: int | None, times: int = 1) -> None:
        """Engine steps put out tokens."""
        self._counts["completion_tokens"] += tokens * times
        self.metrics.served_steps(tokens, accepted, times)

    def completed(self, answer: Answer, timing: Timing) -> None:
        """An answer went out whole."""
        self._counts["completed"] += 1
        generation = answer.generation
        self.metrics.served_answer(
            timing, tokens=answer.completion_tokens, limit=generation.limit_tokens, n=generation.n
        )
        for one in answer.scripts:
            reason = answer.finish_reason(one)
            self.metrics.finished("length" if reason == "length" else "stop")


class _Run:
    """One answer being given, with its pace and its faults."""

    def __init__(self, server: MockServer, connection: Connection, answer: Answer, hits: Hits) -> None:
        self._server = server
        self._connection = connection
        self._answer = answer
        self._hits = hits
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self._first_at: float | None = None
        self._slow_s = hits["slow_headers"][0] if "slow_headers" in hits else None
        self._out = StreamReply(
            connection, split=int(hits.get("split", (0,))[0]), coalesce=int(hits.get("coalesce", (0,))[0])
        )

    def _timing(self) -> Timing:
        now = self._loop.time()
        first = now if self._first_at is None else self._first_at
        return Timing(ttft_s=first - self._start, decode_s=now - first)

    async def _until(self, tokens_before: int) -> None:
        """Wait until the token after so many of them is due."""
        profile = self._answer.profile
        due_ms = profile.ttft_ms + profile.tpot_ms * tokens_before / len(self._answer.scripts)
        if profile.step_ms:
            due_ms = profile.ttft_ms + profile.step_ms * self._steps_of(tokens_before)
        if due_ms:
            delay = self._start + due_ms / 1000 - self._loop.time()
            if delay > 0:
                await asyncio.sleep(delay)

    def _steps_of(self, tokens: int) -> float:
        """Steps that so many tokens after the first took, each as long as the others."""
        steps = max(len(one.steps) for one in self._answer.scripts) - 1
        return steps * tokens / max(1, self._answer.completion_tokens - 1)

    # ------------------------------------------------------------------------------------------- plain
    async def plain(self) -> None:
        """An answer in one body."""
        if "stall_before_first" in self._hits:
            await asyncio.sleep(self._hits["stall_before_first"][0])
        await self._until(0)
        self._first_at = self._loop.time()
        await self._until(self._answer.completion_tokens - 1)
        if "stall_mid_stream" in self._hits:
            await asyncio.sleep(self._hits["stall_mid_stream"][1])
        if {"error_first_event", "error_before_first_content", "error_mid_stream"} & set(self._hits):
            self._connection.reply(500, compact(_MID_STREAM_ERROR).encode())
            return
        self._said_all()
        timing = self._timing()
        body = compact(self._answer.plain(timing)).encode()
        missing = 64 if "wrong_length" in self._hits else 0
        headers = [("content-length", str(len(body) + missing)), ("content-type", "application/json"), VARY]
        await self._connection.write_head(head(200, headers), self._slow_s)
        if "die_before_first_chunk" in self._hits:
            body = b""
        elif {"die_mid_stream", "half_event"} & set(self._hits):
            body = body[: len(body) // 2]
        self._connection.write(body)
        if {"wrong_length", "die_before_first_chunk", "die_mid_stream", "half_event"} & set(self._hits):
            self._connection.close()
            return
        self._server.completed(self._answer, timing)

    # ------------------------------------------------------------------------------------------ stream
    async def stream(self) -> None:
        """An answer in events."""
        await self._connection.write_head(head(200, _EVENT_STREAM), self._slow_s)
        try:
            await self._events()
        except _Cut:
            return
        timing = self._timing()
        if self._answer.generation.has_usage_chunk and "no_usage" not in self._hits:
            await self._out.send(self._answer.usage_event(timing).data)
        if "no_done" not in self._hits:
            await self._out.send(DONE)
        self._server.completed(self._answer, timing)
        if "wrong_length" in self._hits:
            await self._out.flush()
            self._connection.write(b"40\r\ndata: ")
            self._connection.close()
            return
        await self._out.end()

    async def _events(self) -> None:
        if "die_before_first_chunk" in self._hits:
            self._cut(b"")
        if "stall_before_first" in self._hits:
            await asyncio.sleep(self._hits["stall_before_first"][0])
        if "error_first_event" in self._hits:
            await self._fail()
        await self._until(0)
        if not self._hits and not self._answer.profile.tpot_ms and not self._answer.profile.step_ms:
            await self._all_at_once()
            return
        said = contents = 0
        for event in self._answer.events():
            if event.kind == "content":
                await self._interrupt(contents, event.data)
                await self._until(said)
                contents += 1
                said += event.tokens
                self._server.said(event.tokens, event.accepted)
            await self._out.send(event.data)
            if self._first_at is None:
                self._first_at = self._loop.time()
        await self._interrupt(contents, DONE)

    async def _all_at_once(self) -> None:
        """The events when nothing comes between them: the same bytes, at a third of the effort."""
        self._first_at = self._loop.time()
        for event in self._answer.events():
            await self._out.send(event.data)
        self._said_all()

    def _said_all(self) -> None:
        for one in self._answer.scripts:
            for tokens, accepted, times in one.step_kinds:
                self._server.said(tokens, accepted, times)

    async def _interrupt(self, contents: int, following: bytes) -> None:
        """The faults that are due after so many content chunks."""
        hits = self._hits
        if "stall_mid_stream" in hits and hits["stall_mid_stream"][0] == contents:
            await self._out.flush()
            await asyncio.sleep(hits["stall_mid_stream"][1])
        if "error_before_first_content" in hits or hits.get("error_mid_stream") == (contents,):
            await self._fail()
        if hits.get("die_mid_stream") == (contents,):
            await self._out.flush()
            self._cut(b"")
        if hits.get("half_event") == (contents,):
            await self._out.flush()
            self._cut(following[: len(following) // 2])

    async def _fail(self) -> None:
        await self._out.send(error_event(_MID_STREAM_ERROR))
        await self._out.send(DONE)
        await self._out.end()
        self._server.metrics.finished("error")
        raise _Cut

    def _cut(self, last: bytes) -> None:
        if last:
            self._connection.write(b"%x\r\n%s\r\n" % (len(last), last))
        self._connection.close()
        raise _Cut


def _epoch_s() -> int:
    """Seconds since 1970: `created` in the answers is wall-clock time, as in vLLM's."""
    return time.time_ns() // 1_000_000_000
