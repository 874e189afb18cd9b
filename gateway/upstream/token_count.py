"""How many tokens will an engine read in this request, by its own count?

Asked only when a budget cannot hold what the request's bytes allow for: vLLM's `/tokenize` (0.32, outside
`/v1`) applies the same tokenizer and chat template as the request itself. None is a normal answer: media and
several prompts are not counted, an external target's tokenizer is not ours, and an engine may be busy.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from gateway.errors import UpstreamError
from gateway.inference import Call, Endpoint, RouteDecision
from gateway.protocols.json_body import encode_object, raw
from gateway.upstream.client import Origin, UpstreamClient
from gateway.upstream.vllm import REQUEST_HEADERS

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 64_000_000
"""The tokens themselves come with their count."""
PATH = "/tokenize"
_CHAT_FIELDS = (
    "messages",
    "tools",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
)
_OK = 200


class _Count(msgspec.Struct):
    count: int


_count = msgspec.json.Decoder(_Count)


def question(call: Call, decision: RouteDecision) -> bytes | None:
    """What an engine has to be asked; None where its count would not bound what may be read."""
    models = {target.upstream_model for target in decision.targets}
    if call.facts.has_media or call.prompts > 1 or len(models) > 1:
        return None
    if any(target.is_external for target in decision.targets):
        return None
    if call.endpoint is Endpoint.CHAT_COMPLETIONS:
        fields = {name: call.fields[name] for name in _CHAT_FIELDS if name in call.fields}
    elif bytes(call.fields["prompt"]).lstrip().startswith(b'"'):
        fields = {"prompt": call.fields["prompt"]}
    else:
        return None
    return encode_object({"model": raw(models.pop()), **fields})


async def ask(client: UpstreamClient, origin: Origin, body: bytes) -> int | None:
    """The engine's count, or None if it did not say in time."""
    with contextlib.suppress(UpstreamError, TimeoutError, msgspec.DecodeError):
        async with asyncio.timeout(TIMEOUT_S):
            response = await client.post(origin, PATH, headers=REQUEST_HEADERS, body=body)
            try:
                if response.status == _OK:
                    return _count.decode(await response.read_all(limit_bytes=ANSWER_BYTES_MAX)).count
            finally:
                response.close()
    return None
