"""What happens to a chat or completions request between the edge and the pipeline?

Bytes become a call, the answer becomes bytes and headers. One function for both paths, because their
requests differ only in how a prompt is written, which `protocols/openai.py` knows.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable

from gateway.api.edge_types import EdgeRequest
from gateway.api.error_bodies import Headers
from gateway.api.streaming import EventStreamResponse, PlainResponse, Response
from gateway.inference import Endpoint, Task
from gateway.money import charge_text
from gateway.plan import ServedFacts
from gateway.protocols.openai import parse_call

_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_UNBUFFERED = (b"x-accel-buffering", b"no")
_UNCACHED = (b"cache-control", b"no-store")


def chat_completions(request: EdgeRequest) -> Awaitable[Response]:
    """POST /v1/chat/completions."""
    return _serve(Endpoint.CHAT_COMPLETIONS, request)


def completions(request: EdgeRequest) -> Awaitable[Response]:
    """POST /v1/completions."""
    return _serve(Endpoint.COMPLETIONS, request)


async def _serve(endpoint: Endpoint, request: EdgeRequest) -> Response:
    services = request.services
    call = parse_call(endpoint, request.body, request.headers, limits=services.parse_limits)
    pipeline = services.pipeline
    if call.is_streaming:
        stream = await pipeline.serve_stream(call, request.caller, request.request_id)
        headers = [_EVENTS, _UNBUFFERED, _UNCACHED, *answer_headers(stream.facts)]
        return EventStreamResponse(stream, headers)
    served = await pipeline.serve(call, request.caller, request.request_id)
    headers = [_JSON, *answer_headers(served.facts)]
    headers.append((b"x-tollgate-cost-usd", charge_text(served.charge_usd_nanos).encode()))
    return PlainResponse(200, headers, served.body)


def answer_headers(facts: ServedFacts) -> Headers:
    """What an answer says about itself."""
    headers = [
        (b"x-request-id", facts.request_id.encode()),
        (b"x-tollgate-task", _task_header(facts.task)),
        (b"x-tollgate-pool", facts.pool.encode()),
        (b"x-tollgate-replica", facts.replica.encode()),
        (b"x-tollgate-policy", facts.policy_version.encode()),
        (b"x-tollgate-cache", facts.cache.encode()),
    ]
    if facts.max_tokens_set is not None:
        headers.append((b"x-tollgate-max-tokens", str(facts.max_tokens_set).encode()))
    if facts.dropped:
        headers.append((b"x-tollgate-dropped", ", ".join(facts.dropped).encode()))
    return headers


@functools.lru_cache(maxsize=256)
def _task_header(task: Task) -> bytes:
    return f"{task.type}; source={task.source}; confidence={task.confidence:.2f}".encode()
