"""A program that answers as OpenAI's API does (chat completions and completions, as of 2026-11).

    python -m tests.support.openai_server --api-key sk-test

Prints `listening on http://127.0.0.1:PORT` first, then `control on http://127.0.0.1:PORT`, as mock_vllm does.
The control port answers GET /_stats (everything that was received, and how it ended) and POST /_control (a
`Manner`, in part). As OpenAI does, it refuses a field that it does not know, so nothing that is only ours
can leave unnoticed.
"""

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from tests.support.mock_vllm_http import Connection, Headers, Request, StreamReply, head

FINGERPRINT: Final = "fp_44709d6fcb"
CREATED: Final = 1_790_000_000
_COMMON: Final = {
    *("model", "stream", "stream_options", "max_tokens", "n", "stop", "seed", "temperature", "top_p"),
    *("logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "user"),
}
KNOWN: Final = {
    "/v1/chat/completions": {
        *_COMMON,
        *(
            "messages",
            "max_completion_tokens",
            "top_logprobs",
            "tools",
            "tool_choice",
            "functions",
            "metadata",
        ),
        *(
            "function_call",
            "parallel_tool_calls",
            "response_format",
            "reasoning_effort",
            "verbosity",
            "store",
        ),
        *("service_tier", "safety_identifier", "prompt_cache_key", "prediction", "modalities", "audio"),
    },
    "/v1/completions": {*_COMMON, "prompt", "suffix", "echo", "best_of"},
}
_USAGE: Final = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 4,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


@dataclass(frozen=True, slots=True)
class Manner:
    """How it answers from now on."""

    words: list[str] = field(default_factory=lambda: ["Over", " the", " hills"])
    """What it says; a stream says each in a chunk of its own."""
    usage: dict[str, Any] | None = field(default_factory=lambda: dict(_USAGE))
    status: int = 200
    error: dict[str, Any] | None = None
    """With another status: the error of its body. With 200: an event in the middle of streams."""
    hangs: bool = False
    """Never answer."""
    hangs_after: int | None = None
    """Streams: fall silent after so many words."""
    cuts_after: int | None = None
    """Streams: close the connection after so many words; whole answers: in the middle of the body."""
    ends_after: int | None = None
    """Streams: end the message properly after so many words, without a reason or [DONE]."""
    raw: str | None = None
    """Answer these bytes with status 200, as a web server that is no API would."""
    calls_tool: bool = False
    """Answer with a call of the first tool."""


class OpenAi:
    """The server."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key
        self.manner = Manner()
        self._received: list[dict[str, Any]] = []
        self._in_flight = self._aborted = self._completed = self._connections = 0

    def connection(self) -> Connection:
        """The protocol of a new connection on the serving port."""
        return Connection(self.serve, admit=self._admit, leave=self._leave, keep_alive_s=60)

    def control_connection(self) -> Connection:
        """The same on the control port."""
        return Connection(self.control, admit=lambda _: True, leave=lambda _: None, keep_alive_s=3600)

    def _admit(self, _: Connection) -> bool:
        self._connections += 1
        return True

    def _leave(self, _: Connection) -> None:
        self._connections -= 1

    async def control(self, request: Request, connection: Connection) -> None:
        """Tell what happened, or change the manner."""
        if request.path == "/_stats":
            connection.reply(200, _json(self.stats()))
            return
        wanted = json.loads(request.body or b"{}")
        if wanted.pop("reset", False):
            self.manner = Manner()
            self._received.clear()
            self._aborted = self._completed = 0
        unknown = set(wanted) - {one.name for one in fields(Manner)}
        if unknown:
            connection.reply(400, _json({"error": f"unknown: {sorted(unknown)}"}))
            return
        self.manner = replace(self.manner, **wanted)
        connection.reply(200, _json(asdict(self.manner)))

    def stats(self) -> dict[str, Any]:
        """What happened so far."""
        return {
            "requests": len(self._received),
            "received": self._received,
            "in_flight": self._in_flight,
            "aborted": self._aborted,
            "completed": self._completed,
            "connections_open": self._connections,
        }

    async def serve(self, request: Request, connection: Connection) -> None:
        """Answer one request."""
        body = json.loads(request.body) if request.body else {}
        self._received.append({"path": request.path, "headers": dict(request.headers), "body": body})
        self._in_flight += 1
        try:
            await self._answer(request, body, connection)
        except asyncio.CancelledError:
            self._aborted += 1
            raise
        finally:
            self._in_flight -= 1

    async def _answer(self, request: Request, body: dict[str, Any], connection: Connection) -> None:
        manner = self.manner
        if manner.hangs:
            await asyncio.Event().wait()
        refusal = self._refusal(request, body)
        if manner.raw is not None:
            connection.reply(200, manner.raw.encode(), "text/html")
        elif refusal is not None:
            status, error = refusal
            more: Headers = [("location", "http://127.0.0.1:1/")] if 300 <= status < 400 else []
            connection.reply(status, _json({"error": error}), more=more)
        elif body.get("stream"):
            await _Stream(manner, body, connection, is_chat="messages" in body).run()
        else:
            await self._whole(manner, body, connection)
        self._completed += 1

    def _refusal(self, request: Request, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        known = KNOWN.get(request.path)
        if known is None:
            return 404, _error("Invalid URL", "invalid_request_error")
        presented = request.header("authorization")
        if self._api_key is not None and presented != f"Bearer {self._api_key}":
            shown = (presented or "").removeprefix("Bearer ")
            return 401, _error(
                f"Incorrect API key provided: {shown}.", "invalid_request_error", code="invalid_api_key"
            )
        if self.manner.status != 200:
            return self.manner.status, self.manner.error or _error("Something is wrong.", "server_error")
        for name in body:
            if name not in known:
                return 400, _error(
                    f"Unrecognized request argument supplied: {name}", "invalid_request_error", param=name
                )
        return None

    async def _whole(self, manner: Manner, body: dict[str, Any], connection: Connection) -> None:
        is_chat = "messages" in body
        answer: dict[str, Any] = {
            "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG" if is_chat else "cmpl-uqkvlQyYK7bGYrRHQ0eXlWi7",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": CREATED,
            "model": f"{body['model']}-2024-07-18",
            "choices": [
                _chat_choice(manner, body, index) if is_chat else _text_choice(manner, index)
                for index in range(_choices(body))
            ],
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
        if manner.usage is not None:
            answer["usage"] = manner.usage
        raw = _json(answer)
        if manner.cuts_after is None:
            connection.reply(200, raw)
            return
        connection.write(head(200, [("content-type", "application/json"), ("content-length", str(len(raw)))]))
        connection.write(raw[: len(raw) // 2])
        connection.close()


class _Stream:
    """One answer in events."""

    def __init__(
        self, manner: Manner, body: dict[str, Any], connection: Connection, *, is_chat: bool
    ) -> None:
        self._manner = manner
        self._body = body
        self._connection = connection
        self._is_chat = is_chat
        self._out = StreamReply(connection)
        self._wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))

    async def run(self) -> None:
        manner, connection = self._manner, self._connection
        headers = [("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")]
        connection.write(head(200, headers))
        for index in range(_choices(self._body)):
            if self._is_chat:
                await self._send(index, {"role": "assistant", "content": "", "refusal": None})
            for count, word in enumerate(manner.words):
                if manner.hangs_after == count:
                    await asyncio.Event().wait()
                if manner.cuts_after == count:
                    connection.close()
                    return
                if manner.ends_after == count:
                    await self._out.end()
                    return
                if manner.error is not None and count == 1:
                    await self._out.send(b"data: " + _json({"error": manner.error}) + b"\n\n")
                    await self._out.end()
                    return
                await self._send(index, {"content": word})
            await self._send(index, {}, finish_reason="stop")
        if self._wants_usage and manner.usage is not None:
            await self._event({"choices": [], "usage": manner.usage})
        await self._out.send(b"data: [DONE]\n\n")
        await self._out.end()

    async def _send(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        choice: dict[str, Any] = {"index": index}
        if self._is_chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        more: dict[str, Any] = {"usage": None} if self._wants_usage else {}
        await self._event({"choices": [choice], **more, "obfuscation": "xYz1"})

    async def _event(self, more: dict[str, Any]) -> None:
        event = {
            "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG"
            if self._is_chat
            else "cmpl-uqkvlQyYK7bGYrRHQ0eXlWi7",
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": CREATED,
            "model": f"{self._body['model']}-2024-07-18",
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
            **more,
        }
        await self._out.send(b"data: " + _json(event) + b"\n\n")


def _choices(body: dict[str, Any]) -> int:
    prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    return prompts * int(body.get("n") or 1)


def _chat_choice(manner: Manner, body: dict[str, Any], index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(manner.words)}
    if manner.calls_tool:
        call = {"name": body["tools"][0]["function"]["name"], "arguments": '{"city": "Ulm"}'}
        message["content"] = None
        message["tool_calls"] = [{"id": "call_12345xyz", "type": "function", "function": call}]
    message |= {"refusal": None, "annotations": []}
    logprobs: dict[str, Any] = {
        "content": [{"token": "Over", "logprob": -0.5, "bytes": None, "top_logprobs": []}],
        "refusal": None,
    }
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs if body.get("logprobs") else None,
        "finish_reason": "tool_calls" if manner.calls_tool else "stop",
    }


def _text_choice(manner: Manner, index: int) -> dict[str, Any]:
    return {"text": "".join(manner.words), "index": index, "logprobs": None, "finish_reason": "stop"}


def _error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


async def run(port: int, api_key: str | None) -> None:
    """Serve until the parent's end."""
    loop = asyncio.get_running_loop()
    server = OpenAi(api_key)
    serving = await loop.create_server(server.connection, "127.0.0.1", port)
    control = await loop.create_server(server.control_connection, "127.0.0.1", 0)
    sys.stdout.write(f"listening on http://127.0.0.1:{serving.sockets[0].getsockname()[1]}\n")
    sys.stdout.write(f"control on http://127.0.0.1:{control.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 4096) else ended.set())
    await ended.wait()
    serving.close()
    control.close()


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.openai_server",
        description="Answer as OpenAI's API does, until standard input is closed.",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1; 0 (default) chooses a free one"
    )
    parser.add_argument("--api-key", help="demand this bearer token")
    parser.add_argument("--exit-with-stdin", action="store_true", help="always so; as mock_vllm has it")
    args = parser.parse_args()
    asyncio.run(run(args.port, args.api_key))


if __name__ == "__main__":
    main()
